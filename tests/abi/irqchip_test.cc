// SPDX-License-Identifier: Apache-2.0
// The VM's interrupt controllers: their requests, and guests that use them. Guests run in real mode
// with the interrupt table at 0; DS reaches the APIC's page where a test says so.
#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "tests/abi/kvm_client.h"

namespace kvm_client {
namespace {

using Bytes = std::vector<u8>;

class Irqchip : public Machine {
 protected:
  static constexpr u32 kCode = 0x1000, kHandler = 0x1800, kApCode = 0x2000;

  void SetUp() override {
    Machine::SetUp();
    ASSERT_EQ(call(vm_, KVM_CREATE_IRQCHIP), 0);
    add_memory(0);
    add_vcpu();
  }
  void code(u32 at, const Bytes& bytes) { std::memcpy(memory_ + at, bytes.data(), bytes.size()); }
  // Vector -> 0:kHandler, which leaves a mark in BL and ends the interrupt with `eoi`.
  void handle(u8 vector, const Bytes& eoi) {
    const u32 entry = kHandler;
    std::memcpy(memory_ + vector * 4, &entry, sizeof(entry));
    Bytes handler = {0xb3, 0x55};  // mov bl, 0x55
    handler.insert(handler.end(), eoi.begin(), eoi.end());
    handler.push_back(0xcf);  // iret
    code(kHandler, handler);
  }
  void start(u64 ds_base = 0) {
    kvm_sregs sregs{};
    ASSERT_EQ(call(vcpu_, KVM_GET_SREGS, &sregs), 0);
    sregs.cs.base = 0;
    sregs.cs.selector = 0;
    sregs.ds.base = ds_base;
    ASSERT_EQ(call(vcpu_, KVM_SET_SREGS, &sregs), 0);
    kvm_regs regs{};
    regs.rip = kCode;
    regs.rsp = 0x3000;
    regs.rflags = 2;
    ASSERT_EQ(call(vcpu_, KVM_SET_REGS, &regs), 0);
  }
  void expect_out(u16 port) {
    ASSERT_EQ(call(vcpu_, KVM_RUN), 0);
    ASSERT_EQ(run_->exit_reason, static_cast<u32>(KVM_EXIT_IO));
    ASSERT_EQ(run_->io.port, port);
  }
  long line(u32 gsi, u32 level) {
    kvm_irq_level irq{};
    irq.irq = gsi;
    irq.level = level;
    const long done = call(vm_, KVM_IRQ_LINE_STATUS, &irq);
    return done < 0 ? done : irq.status;
  }
  // mov dword [offset], value
  static Bytes apic_write(u16 offset, u32 value) {
    Bytes b = {0x66, 0xc7, 0x06};
    for (int i = 0; i < 2; ++i) b.push_back(static_cast<u8>(offset >> 8 * i));
    for (int i = 0; i < 4; ++i) b.push_back(static_cast<u8>(value >> 8 * i));
    return b;
  }
  static Bytes join(std::initializer_list<Bytes> parts) {
    Bytes all;
    for (const Bytes& part : parts) all.insert(all.end(), part.begin(), part.end());
    return all;
  }
  // ICW1..4 of the master with vectors from 0x20, only line `n` open.
  static Bytes pic_init(u8 n) {
    return {0xb0, 0x11, 0xe6, 0x20, 0xb0, 0x20, 0xe6, 0x21, 0xb0,
            0x04, 0xe6, 0x21, 0xb0, 0x01, 0xe6, 0x21, 0xb0, static_cast<u8>(~(1 << n)),
            0xe6, 0x21};
  }
  static constexpr u64 kApicPage = 0xfee00000;
};

TEST_F(Irqchip, StatesComeBackAsSet) {
  kvm_irqchip state{};
  for (u32 chip = 0; chip < 3; ++chip) {
    state.chip_id = chip;
    ASSERT_EQ(call(vm_, KVM_GET_IRQCHIP, &state), 0);
    EXPECT_EQ(call(vm_, KVM_SET_IRQCHIP, &state), 0);
  }
  EXPECT_EQ(state.chip.ioapic.base_address, 0xfec00000U);
  EXPECT_EQ(state.chip.ioapic.redirtbl[5].fields.mask, 1U);
  state.chip_id = 3;
  EXPECT_EQ(call(vm_, KVM_GET_IRQCHIP, &state), -EINVAL);
  EXPECT_EQ(call(vm_, KVM_SET_IRQCHIP, &state), -EINVAL);
  EXPECT_EQ(call(vm_, KVM_GET_IRQCHIP, kBadPointer), -EFAULT);
}

TEST_F(Irqchip, WithoutOneItsRequestsAreEnxio) {
  const Fd bare(call(device_, KVM_CREATE_VM));
  kvm_irqchip state{};
  EXPECT_EQ(call(bare, KVM_GET_IRQCHIP, &state), -ENXIO);
  EXPECT_EQ(call(bare, KVM_SET_IRQCHIP, &state), -ENXIO);
  kvm_irq_level irq{};
  EXPECT_EQ(call(bare, KVM_IRQ_LINE, &irq), -ENXIO);
  kvm_msi msi{};
  EXPECT_EQ(call(bare, KVM_SIGNAL_MSI, &msi), -EINVAL);
}

TEST_F(Irqchip, ApicStateComesBackAsSet) {
  kvm_lapic_state state{};
  ASSERT_EQ(call(vcpu_, KVM_GET_LAPIC, &state), 0);
  u32 version = 0;
  std::memcpy(&version, state.regs + 0x30, sizeof(version));
  EXPECT_EQ(version & 0xff, 0x14U);
  state.regs[0x80] = 0x30;  // task priority
  ASSERT_EQ(call(vcpu_, KVM_SET_LAPIC, &state), 0);
  kvm_sregs sregs{};
  ASSERT_EQ(call(vcpu_, KVM_GET_SREGS, &sregs), 0);
  EXPECT_EQ(sregs.cr8, 3U);
}

TEST_F(Irqchip, InterruptRequestIsEnxio) {
  kvm_interrupt irq{32};
  EXPECT_EQ(call(vcpu_, KVM_INTERRUPT, &irq), -ENXIO);
}

TEST_F(Irqchip, ApplicationProcessorsWaitForInit) {
  const Fd ap(call(vm_, KVM_CREATE_VCPU, 1));
  kvm_mp_state state{};
  ASSERT_EQ(call(ap, KVM_GET_MP_STATE, &state), 0);
  EXPECT_EQ(state.mp_state, static_cast<u32>(KVM_MP_STATE_UNINITIALIZED));
}

TEST_F(Irqchip, LineOfThePicInterruptsAHaltedGuest) {
  handle(0x20, {0xb0, 0x20, 0xe6, 0x20});  // mov al, 0x20; out 0x20, al
  code(kCode, join({pic_init(0), {0xe6, 0x81, 0xfb, 0xf4, 0xe6, 0x80}}));  // out; sti; hlt; out
  start();
  expect_out(0x81);
  EXPECT_GT(line(0, 1), 0);
  expect_out(0x80);
  EXPECT_EQ(regs().rbx & 0xff, 0x55U);
}

TEST_F(Irqchip, LineRaisedByAnotherThreadWakesTheGuest) {
  handle(0x21, {0xb0, 0x20, 0xe6, 0x20});
  code(kCode, join({pic_init(1), {0xe6, 0x81, 0xfb, 0xf4, 0xe6, 0x80}}));
  start();
  expect_out(0x81);
  std::thread device([&] {
    usleep(20000);
    EXPECT_GT(line(1, 1), 0);
  });
  expect_out(0x80);
  device.join();
  EXPECT_EQ(regs().rbx & 0xff, 0x55U);
}

TEST_F(Irqchip, LineInterruptsASpinningGuest) {
  handle(0x21, {0xb0, 0x20, 0xe6, 0x20});
  // sti; 1: cmp bl, 0x55; jne 1b; out 0x80
  code(kCode, join({pic_init(1), {0xe6, 0x81, 0xfb, 0x80, 0xfb, 0x55, 0x75, 0xfb, 0xe6, 0x80}}));
  start();
  expect_out(0x81);
  std::thread device([&] {
    usleep(20000);
    line(1, 1);
  });
  expect_out(0x80);
  device.join();
}

TEST_F(Irqchip, TimerOfTheApicWakesTheGuest) {
  handle(0x40, apic_write(0xb0, 0));
  code(kCode, join({apic_write(0xf0, 0x1ff),
                    apic_write(0x3e0, 0xb),
                    apic_write(0x320, 0x40),
                    apic_write(0x380, 5'000'000),
                    {0xfb, 0xf4, 0xe6, 0x80}}));
  start(kApicPage);
  const auto begin = std::chrono::steady_clock::now();
  expect_out(0x80);
  EXPECT_EQ(regs().rbx & 0xff, 0x55U);
  if (!on_oracle()) {
    EXPECT_GE(std::chrono::steady_clock::now() - begin, std::chrono::milliseconds(4));
  }
}

TEST_F(Irqchip, TimerInterruptsASpinningGuest) {
  handle(0x40, apic_write(0xb0, 0));
  code(kCode, join({apic_write(0xf0, 0x1ff),
                    apic_write(0x3e0, 0xb),
                    apic_write(0x320, 0x40),
                    apic_write(0x380, 1'000'000),
                    {0xfb, 0x80, 0xfb, 0x55, 0x75, 0xfb, 0xe6, 0x80}}));
  start(kApicPage);
  expect_out(0x80);
}

TEST_F(Irqchip, MessageReachesTheProcessorItNames) {
  handle(0x50, apic_write(0xb0, 0));
  code(kCode, join({apic_write(0xf0, 0x1ff), {0xe6, 0x81, 0xfb, 0xf4, 0xe6, 0x80}}));
  start(kApicPage);
  expect_out(0x81);
  kvm_msi msi{};
  msi.address_lo = 0xfee00000;
  msi.data = 0x50;
  EXPECT_EQ(call(vm_, KVM_SIGNAL_MSI, &msi), 1);
  msi.flags = 2;
  EXPECT_EQ(call(vm_, KVM_SIGNAL_MSI, &msi), -EINVAL);
  expect_out(0x80);
  EXPECT_EQ(regs().rbx & 0xff, 0x55U);
}

TEST_F(Irqchip, InitAndStartupMessagesStartAProcessor) {
  const Fd ap(call(vm_, KVM_CREATE_VCPU, 1));
  code(kApCode, {0xe6, 0x82, 0xf4});
  code(kCode, join({apic_write(0xf0, 0x1ff),
                    apic_write(0x310, 1 << 24),
                    apic_write(0x300, 0x4500),
                    apic_write(0x300, 0x4600 | kApCode >> 12),
                    {0xe6, 0x80}}));
  start(kApicPage);
  void* area = ::mmap(nullptr, 3 * 4096, PROT_READ | PROT_WRITE, MAP_SHARED, ap, 0);
  ASSERT_NE(area, MAP_FAILED);
  auto* ap_run = static_cast<kvm_run*>(area);
  std::thread second([&] {
    long done = -EAGAIN;
    while (done == -EAGAIN) done = call(ap, KVM_RUN);
    EXPECT_EQ(done, 0);
    EXPECT_EQ(ap_run->exit_reason, static_cast<u32>(KVM_EXIT_IO));
    EXPECT_EQ(ap_run->io.port, 0x82U);
  });
  expect_out(0x80);
  second.join();
  ::munmap(area, 3 * 4096);
}

TEST_F(Irqchip, RoutingRefusesPinsAndTablesThatCannotBe) {
  struct {
    u32 nr = 1;
    u32 flags = 0;
    kvm_irq_routing_entry entry[2]{};
  } table;
  table.entry[0].gsi = 5;
  table.entry[0].type = KVM_IRQ_ROUTING_IRQCHIP;
  table.entry[0].u.irqchip = {.irqchip = KVM_IRQCHIP_IOAPIC, .pin = 23};
  EXPECT_EQ(call(vm_, KVM_SET_GSI_ROUTING, &table), 0);
  table.entry[0].u.irqchip.pin = 24;
  EXPECT_EQ(call(vm_, KVM_SET_GSI_ROUTING, &table), -EINVAL);
  table.entry[0].u.irqchip = {.irqchip = KVM_IRQCHIP_PIC_MASTER, .pin = 8};
  EXPECT_EQ(call(vm_, KVM_SET_GSI_ROUTING, &table), -EINVAL);
  table.entry[0].u.irqchip.pin = 7;
  table.flags = 1;
  EXPECT_EQ(call(vm_, KVM_SET_GSI_ROUTING, &table), -EINVAL);
  table.flags = 0;
  table.nr = 4097;
  EXPECT_EQ(call(vm_, KVM_SET_GSI_ROUTING, &table), -EINVAL);
  table.nr = 2;
  table.entry[1] = table.entry[0];
  EXPECT_EQ(call(vm_, KVM_SET_GSI_ROUTING, &table), -EINVAL) << "one entry a chip";
  table.entry[1].type = KVM_IRQ_ROUTING_MSI;
  EXPECT_EQ(call(vm_, KVM_SET_GSI_ROUTING, &table), -EINVAL) << "a message stands alone";
  table.entry[1].gsi = 6;
  EXPECT_EQ(call(vm_, KVM_SET_GSI_ROUTING, &table), 0);
  table.entry[1].type = 77;
  EXPECT_EQ(call(vm_, KVM_SET_GSI_ROUTING, &table), -EINVAL);
  EXPECT_EQ(call(vm_, KVM_SET_GSI_ROUTING, kBadPointer), -EFAULT);
}

TEST_F(Irqchip, LineWithoutARouteGoesNowhere) {
  EXPECT_LT(line(1000, 1), 0);
}

TEST_F(Irqchip, BusRateIsSetBeforeTheFirstProcessor) {
  kvm_enable_cap cap{};
  cap.cap = KVM_CAP_X86_APIC_BUS_CYCLES_NS;
  cap.args[0] = 10;
  EXPECT_EQ(call(vm_, KVM_ENABLE_CAP, &cap), -EINVAL) << "too late";
  const Fd bare(call(device_, KVM_CREATE_VM));
  EXPECT_EQ(call(bare, KVM_ENABLE_CAP, &cap), -ENXIO) << "no APIC";
  ASSERT_EQ(call(bare, KVM_CREATE_IRQCHIP), 0);
  EXPECT_EQ(call(bare, KVM_ENABLE_CAP, &cap), 0);
  cap.args[0] = 0;
  EXPECT_EQ(call(bare, KVM_ENABLE_CAP, &cap), -EINVAL);
  cap.args[0] = u64{1} << 60;
  EXPECT_EQ(call(bare, KVM_ENABLE_CAP, &cap), -EINVAL);
}

}  // namespace
}  // namespace kvm_client

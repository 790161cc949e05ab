// SPDX-License-Identifier: Apache-2.0
#include "vcpu/interrupt_unit.h"

#include <gtest/gtest.h>

#include <memory>
#include <thread>

#include "base/sys.h"
#include "tests/unit/vcpu/guest.h"

namespace stagetwo::vcpu {
namespace {

using Turn = InterruptUnit::Turn;

// A long-mode guest with controllers; the caller plays KVM_RUN.
class Unit : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(chip_.init());
    guest_.policy.irqchip = true;
    InterruptUnit::Config config;
    config.vcpu = &guest_.cpu();
    config.chip = &chip_;
    config.boot_cpu = true;
    unit_ = std::make_unique<InterruptUnit>(config);
    guest_.long_mode();
    enable();
  }
  void enable() {
    const u32 spurious = 0x1ff;
    ASSERT_TRUE(unit_->mmio_write(Gpa(0xfee000f0), &spurious, sizeof(spurious)));
  }
  void post(u8 vector) { unit_->lapic().accept({.vector = vector}); }
  Turn prepare() { return unit_->prepare(&request_); }

  testing::Guest guest_;
  Irqchip chip_;
  std::unique_ptr<InterruptUnit> unit_;
  RunRequest request_;
};

TEST_F(Unit, InterruptIsHandedOverWhenTheGuestTakesInterrupts) {
  guest_.state().rflags |= rflags::kIf;
  post(0x40);
  EXPECT_EQ(prepare(), Turn::kRun);
  EXPECT_TRUE(guest_.state().events.interrupt_injected);
  EXPECT_EQ(guest_.state().events.interrupt_vector, 0x40);
  EXPECT_FALSE(request_.request_interrupt_window);
}

TEST_F(Unit, InterruptThatCannotBeTakenAsksForTheWindow) {
  post(0x40);
  EXPECT_EQ(prepare(), Turn::kRun);
  EXPECT_FALSE(guest_.state().events.interrupt_injected);
  EXPECT_TRUE(request_.request_interrupt_window);
}

TEST_F(Unit, TaskPriorityHoldsInterruptsBack) {
  guest_.state().rflags |= rflags::kIf;
  guest_.state().sys.cr8 = 4;
  post(0x40);
  EXPECT_EQ(prepare(), Turn::kRun);
  EXPECT_FALSE(guest_.state().events.interrupt_injected);
  guest_.state().sys.cr8 = 3;
  EXPECT_EQ(prepare(), Turn::kRun);
  EXPECT_TRUE(guest_.state().events.interrupt_injected);
}

TEST_F(Unit, HaltedProcessorWaitsForAnInterruptItWouldTake) {
  guest_.state().mp_state = MpState::kHalted;
  post(0x40);
  EXPECT_EQ(prepare(), Turn::kWait) << "interrupts are off";
  guest_.state().rflags |= rflags::kIf;
  EXPECT_EQ(prepare(), Turn::kRun);
  EXPECT_EQ(guest_.state().mp_state, MpState::kRunnable);
}

TEST_F(Unit, NmiEndsAHaltWithInterruptsOff) {
  guest_.state().mp_state = MpState::kHalted;
  unit_->lapic().accept({.mode = DeliveryMode::kNmi});
  EXPECT_EQ(prepare(), Turn::kRun);
}

TEST_F(Unit, InitResetsAndStartupStarts) {
  guest_.reg(kRbx) = 7;
  unit_->set_mp_state(MpState::kUninitialized);
  EXPECT_EQ(prepare(), Turn::kWait);
  unit_->set_mp_state(MpState::kInitReceived);
  unit_->lapic().accept({.vector = 0x12, .mode = DeliveryMode::kStartup});
  EXPECT_EQ(prepare(), Turn::kRun);
  EXPECT_EQ(guest_.state().sys.seg[kSegCs].base, 0x12000U);
  EXPECT_EQ(guest_.state().sys.seg[kSegCs].selector, 0x1200U);
  EXPECT_EQ(guest_.state().rip, 0U);
}

TEST_F(Unit, StartupIsLostOnAProcessorThatRuns) {
  const u64 rip = guest_.state().rip;
  unit_->lapic().accept({.vector = 0x12, .mode = DeliveryMode::kStartup});
  EXPECT_EQ(prepare(), Turn::kRun);
  EXPECT_EQ(guest_.state().rip, rip);
}

TEST_F(Unit, ReadOfTheApicsPageIsAnswered) {
  Exit exit;
  exit.kind = ExitKind::kMmio;
  exit.mmio = {.gpa = Gpa(0xfee00030), .data = {}, .len = 4, .write = false};
  ASSERT_TRUE(unit_->absorb(exit, &request_, guest_.pio));
  EXPECT_EQ(request_.completion.mmio_data[0], 0x14);
  exit.mmio.gpa = Gpa(0xfed00000);
  EXPECT_FALSE(unit_->absorb(exit, &request_, guest_.pio)) << "the client's";
}

TEST_F(Unit, BaseMovesThePage) {
  ASSERT_TRUE(unit_->set_base(0xfe000900, true));
  const u32 value = 0;
  EXPECT_FALSE(unit_->mmio_write(Gpa(0xfee000b0), &value, sizeof(value)));
  EXPECT_TRUE(unit_->mmio_write(Gpa(0xfe0000b0), &value, sizeof(value)));
  EXPECT_EQ(guest_.state().sys.apic_base, 0xfe000900U);
  EXPECT_FALSE(unit_->set_base(0xfe000400, true)) << "x2APIC without enable";
}

TEST_F(Unit, SleepEndsWithAWake) {
  const u32 ticket = unit_->sleep_ticket();
  std::thread other([&] { unit_->wake(); });
  const u64 begin = sys::monotonic_ns();
  unit_->sleep(ticket, 10'000'000'000);
  other.join();
  EXPECT_LT(sys::monotonic_ns() - begin, 5'000'000'000U);
}

TEST_F(Unit, WakeBeforeTheSleepIsNotLost) {
  const u32 ticket = unit_->sleep_ticket();
  unit_->wake();
  const u64 begin = sys::monotonic_ns();
  unit_->sleep(ticket, 10'000'000'000);
  EXPECT_LT(sys::monotonic_ns() - begin, 5'000'000'000U);
}

}  // namespace
}  // namespace stagetwo::vcpu

// SPDX-License-Identifier: Apache-2.0
// vCPU descriptors: registers, MSRs, CPUID, events; everything but running.
#include "tests/abi/kvm_client.h"

namespace kvm_client {
namespace {

class Vcpu : public Machine {
 protected:
  void SetUp() override {
    Machine::SetUp();
    add_vcpu();
  }
  kvm_sregs sregs() {
    kvm_sregs out{};
    EXPECT_EQ(call(vcpu_, KVM_GET_SREGS, &out), 0);
    return out;
  }
  u64 msr(u32 index) {
    Table<kvm_msr_entry, 1> one;
    one.entry[0].index = index;
    EXPECT_EQ(call(vcpu_, KVM_GET_MSRS, &one), 1) << std::hex << index;
    return one.entry[0].data;
  }
  bool set_msr(u32 index, u64 value) {
    Table<kvm_msr_entry, 1> one;
    one.entry[0] = {.index = index, .reserved = 0, .data = value};
    return call(vcpu_, KVM_SET_MSRS, &one) == 1;
  }
};

TEST_F(Vcpu, UnknownRequestIsEinval) {
  EXPECT_EQ(call(vcpu_, 0xae77), -EINVAL);
  EXPECT_EQ(call(vcpu_, KVM_CREATE_VCPU), -EINVAL);
  EXPECT_EQ(call(vcpu_, 0x1234), -EINVAL);
  EXPECT_EQ(call(vcpu_, KVM_GET_NESTED_STATE, kBadPointer) < 0, true);
  if (!on_oracle()) {
    EXPECT_EQ(call(vcpu_, KVM_SMI), -ENOTTY) << "no system management mode";
  }
}
TEST_F(Vcpu, BadPointerIsEfaultEverywhere) {
  for (const unsigned long request :
       {KVM_GET_REGS,        KVM_SET_REGS,      KVM_GET_SREGS,     KVM_SET_SREGS,
        KVM_GET_SREGS2,      KVM_SET_SREGS2,    KVM_GET_FPU,       KVM_SET_FPU,
        KVM_GET_XSAVE,       KVM_SET_XSAVE,     KVM_GET_XCRS,      KVM_SET_XCRS,
        KVM_GET_MSRS,        KVM_SET_MSRS,      KVM_SET_CPUID,     KVM_SET_CPUID2,
        KVM_GET_CPUID2,      KVM_GET_MP_STATE,  KVM_SET_MP_STATE,  KVM_GET_VCPU_EVENTS,
        KVM_SET_VCPU_EVENTS, KVM_GET_DEBUGREGS, KVM_SET_DEBUGREGS, KVM_SET_GUEST_DEBUG,
        KVM_SET_SIGNAL_MASK, KVM_INTERRUPT,     KVM_TRANSLATE,     KVM_X86_SETUP_MCE,
        KVM_X86_SET_MCE,     KVM_ENABLE_CAP})
    EXPECT_EQ(call(vcpu_, request, kBadPointer), -EFAULT) << std::hex << request;
}

TEST_F(Vcpu, ResetStateIsTheProcessors) {
  EXPECT_EQ(regs().rip, 0xfff0U);
  EXPECT_EQ(regs().rflags, 2U);
  const kvm_sregs s = sregs();
  EXPECT_EQ(s.cs.base, 0xffff0000U);
  EXPECT_EQ(s.cs.selector, 0xf000U);
  EXPECT_EQ(s.cs.type, 11U);
  EXPECT_EQ(s.cr0, 0x60000010U);
  EXPECT_EQ(s.apic_base, 0xfee00900U) << "enabled, boot processor";
}
TEST_F(Vcpu, RegistersComeBackAsSet) {
  kvm_regs in{};
  auto* words = reinterpret_cast<u64*>(&in);
  for (u64 i = 0; i < 17; ++i) words[i] = 0x1111111111111111 * (i % 15 + 1);
  in.rflags = 0x246;
  ASSERT_EQ(call(vcpu_, KVM_SET_REGS, &in), 0);
  const kvm_regs out = regs();
  EXPECT_EQ(std::memcmp(&in, &out, sizeof(in)), 0);
}
TEST_F(Vcpu, FixedFlagIsAlwaysOne) {
  kvm_regs in{};
  ASSERT_EQ(call(vcpu_, KVM_SET_REGS, &in), 0);
  EXPECT_EQ(regs().rflags, 2U);
}

TEST_F(Vcpu, ImpossibleControlRegistersAreRefusedAndChangeNothing) {
  const kvm_sregs before = sregs();
  auto refused = [&](auto&& change) {
    kvm_sregs s = before;
    change(s);
    EXPECT_EQ(call(vcpu_, KVM_SET_SREGS, &s), -EINVAL);
    const kvm_sregs after = sregs();
    EXPECT_EQ(std::memcmp(&before, &after, sizeof(before)), 0);
  };
  refused([](kvm_sregs& s) { s.cr0 |= u64{1} << 32; });
  refused([](kvm_sregs& s) { s.cr0 = 0x80000000; });  // paging, no protection
  refused([](kvm_sregs& s) { s.cr0 = 0x20000000; });  // NW without CD
  refused([](kvm_sregs& s) { s.efer |= 0x400; });     // LMA alone
  refused([](kvm_sregs& s) { s.cr4 |= u64{1} << 40; });
  refused([](kvm_sregs& s) {  // long mode, a root beyond any address
    s.cr0 = 0x80000011;
    s.cr4 = 0x20;
    s.efer = 0x500;
    s.cr3 = u64{1} << 63 | 0x1000;
  });
  refused([](kvm_sregs& s) { s.apic_base = 1 << 10; });  // x2APIC, not enabled
  refused([](kvm_sregs& s) { s.apic_base |= u64{1} << 60; });
}
TEST_F(Vcpu, ApicBaseMayBeMoved) {
  kvm_sregs s = sregs();
  s.apic_base = 1 << 11;
  ASSERT_EQ(call(vcpu_, KVM_SET_SREGS, &s), 0);
  EXPECT_EQ(sregs().apic_base, 1U << 11);
}
TEST_F(Vcpu, InjectedInterruptShowsInTheBitmap) {
  kvm_sregs s = sregs();
  s.interrupt_bitmap[1] = u64{1} << 3;
  ASSERT_EQ(call(vcpu_, KVM_SET_SREGS, &s), 0);
  EXPECT_EQ(sregs().interrupt_bitmap[1], u64{1} << 3);
}
TEST_F(Vcpu, SecondFormOfSystemRegistersChecksItsFlags) {
  kvm_sregs2 s{};
  ASSERT_EQ(call(vcpu_, KVM_GET_SREGS2, &s), 0);
  EXPECT_EQ(s.flags, 0U) << "no PAE paging";
  EXPECT_EQ(call(vcpu_, KVM_SET_SREGS2, &s), 0);
  s.flags = 2;
  EXPECT_EQ(call(vcpu_, KVM_SET_SREGS2, &s), -EINVAL);
  s.flags = KVM_SREGS2_FLAGS_PDPTRS_VALID;
  EXPECT_EQ(call(vcpu_, KVM_SET_SREGS2, &s), -EINVAL);
}

TEST_F(Vcpu, FloatingPointStateComesBackAsSet) {
  kvm_fpu in{};
  for (unsigned i = 0; i < sizeof(in.xmm); ++i)
    reinterpret_cast<u8*>(in.xmm)[i] = static_cast<u8>(i);
  in.fcw = 0x27f;
  in.ftwx = 0x80;
  in.last_ip = 0x1234;
  ASSERT_EQ(call(vcpu_, KVM_SET_FPU, &in), 0);
  kvm_fpu out{};
  ASSERT_EQ(call(vcpu_, KVM_GET_FPU, &out), 0);
  EXPECT_EQ(std::memcmp(in.xmm, out.xmm, sizeof(in.xmm)), 0);
  EXPECT_EQ(out.fcw, 0x27f);
  EXPECT_EQ(out.ftwx, 0x80);
}
TEST_F(Vcpu, XsaveImageComesBackAsSet) {
  kvm_xsave in{};
  ASSERT_EQ(call(vcpu_, KVM_GET_XSAVE, &in), 0);
  in.region[40] = 0xdeadbeef;  // xmm0
  in.region[128] = 3;
  ASSERT_EQ(call(vcpu_, KVM_SET_XSAVE, &in), 0);
  kvm_xsave out{};
  ASSERT_EQ(call(vcpu_, KVM_GET_XSAVE, &out), 0);
  EXPECT_EQ(out.region[40], 0xdeadbeefU);
}
TEST_F(Vcpu, XsaveImageWithUnknownPartsOrBadMxcsrIsEinval) {
  kvm_xsave in{};
  ASSERT_EQ(call(vcpu_, KVM_GET_XSAVE, &in), 0);
  kvm_xsave bad = in;
  bad.region[129] = 1u << 30;
  EXPECT_EQ(call(vcpu_, KVM_SET_XSAVE, &bad), -EINVAL);
  bad = in;
  bad.region[128] = 3;
  bad.region[6] = 0xffffffff;
  EXPECT_EQ(call(vcpu_, KVM_SET_XSAVE, &bad), -EINVAL);
  bad.region[128] = 1;
  EXPECT_EQ(call(vcpu_, KVM_SET_XSAVE, &bad), -EINVAL) << "checked with either part";
  bad = in;
  bad.region[132] = 1;
  EXPECT_EQ(call(vcpu_, KVM_SET_XSAVE, &bad), -EINVAL) << "reserved in the header";
}

TEST_F(Vcpu, MsrsAreWrittenUntilTheFirstRefusal) {
  Table<kvm_msr_entry, 3> msrs;
  msrs.entry[0] = {.index = 0x174, .reserved = 0, .data = 0x10};
  msrs.entry[1] = {.index = 0x12345, .reserved = 0, .data = 0};
  msrs.entry[2] = {.index = 0x175, .reserved = 0, .data = 0x20};
  EXPECT_EQ(call(vcpu_, KVM_SET_MSRS, &msrs), 1);
  msrs.entry[0].data = 0;
  EXPECT_EQ(call(vcpu_, KVM_GET_MSRS, &msrs), 1);
  EXPECT_EQ(msrs.entry[0].data, 0x10U);
  msrs.count = 256;
  EXPECT_EQ(call(vcpu_, KVM_GET_MSRS, &msrs), -E2BIG);
}
TEST_F(Vcpu, EveryListedMsrCanBeRead) {
  struct {
    u32 count = 512;
    u32 index[512]{};
  } list;
  ASSERT_EQ(call(device_, KVM_GET_MSR_INDEX_LIST, &list), 0);
  for (u32 i = 0; i < list.count; ++i) {
    Table<kvm_msr_entry, 1> one;
    one.entry[0].index = list.index[i];
    EXPECT_EQ(call(vcpu_, KVM_GET_MSRS, &one), 1) << std::hex << list.index[i];
  }
}
TEST_F(Vcpu, NumberOfMachineCheckBanksIsNoMsrToWrite) {
  EXPECT_EQ(msr(0x179), 32U) << "before KVM_X86_SETUP_MCE";
  EXPECT_FALSE(set_msr(0x179, 0xff));
  EXPECT_EQ(msr(0x179), 32U);
  EXPECT_FALSE(set_msr(0x400 + 4 * 200, 0));
  EXPECT_TRUE(set_msr(0x400 + 4 * 31, 0));
}
TEST_F(Vcpu, MachineCheckMsrsTakeWhatABankCanHold) {
  EXPECT_FALSE(set_msr(0x400, 5)) << "control: all or nothing";
  EXPECT_TRUE(set_msr(0x400, ~u64{0}));
  EXPECT_TRUE(set_msr(0x401, 5)) << "status: the host may";
  EXPECT_FALSE(set_msr(0x17b, ~u64{0})) << "no global control";
  u64 cap = 10 | 1 << 8;
  ASSERT_EQ(call(vcpu_, KVM_X86_SETUP_MCE, &cap), 0);
  EXPECT_TRUE(set_msr(0x17b, 0));
  EXPECT_FALSE(set_msr(0x17b, 1));
}
TEST_F(Vcpu, LongModeBitOfEferFollowsPagingAlone) {
  EXPECT_TRUE(set_msr(0xc0000080, 0x501));
  EXPECT_EQ(msr(0xc0000080), 0x101U);
}
TEST_F(Vcpu, SysenterAddressIsMadeCanonical) {
  EXPECT_TRUE(set_msr(0x176, 0x0100'0000'0000'0000));
  EXPECT_NE(msr(0x176), 0x0100'0000'0000'0000U);
  EXPECT_FALSE(set_msr(0xc0000082, 0x0100'0000'0000'0000)) << "others are refused";
}
TEST_F(Vcpu, MemoryTypesMustExist) {
  EXPECT_FALSE(set_msr(0x2ff, 2));
  EXPECT_FALSE(set_msr(0x2ff, 0x1006));
  EXPECT_TRUE(set_msr(0x2ff, 0xc06));
  EXPECT_FALSE(set_msr(0x250, 0x0606'0602'0606'0606));
  EXPECT_TRUE(set_msr(0x250, 0x0606'0606'0606'0606));
  EXPECT_FALSE(set_msr(0x200, 0x106));
  EXPECT_FALSE(set_msr(0x201, 0x400));
  EXPECT_TRUE(set_msr(0x201, 0x800));
}

TEST_F(Vcpu, CpuidComesBackAndNeedsRoom) {
  Table<kvm_cpuid_entry2, 100> in, out;
  ASSERT_EQ(call(device_, KVM_GET_SUPPORTED_CPUID, &in), 0);
  ASSERT_EQ(call(vcpu_, KVM_SET_CPUID2, &in), 0);
  out.count = in.count - 1;
  EXPECT_EQ(call(vcpu_, KVM_GET_CPUID2, &out), -E2BIG);
  EXPECT_EQ(out.count, in.count - 1) << "unchanged";
  out.count = 100;
  ASSERT_EQ(call(vcpu_, KVM_GET_CPUID2, &out), 0);
  EXPECT_EQ(out.count, in.count);
  EXPECT_EQ(std::memcmp(in.entry, out.entry, in.count * sizeof(in.entry[0])), 0);
}
TEST_F(Vcpu, TooManyCpuidEntriesAreE2big) {
  static Table<kvm_cpuid_entry2, 300> table;
  table.count = 257;
  EXPECT_EQ(call(vcpu_, KVM_SET_CPUID2, &table), -E2BIG);
  EXPECT_EQ(call(vcpu_, KVM_SET_CPUID, &table), -E2BIG);
}
TEST_F(Vcpu, LinearAddressWidthMustBeOneThatExists) {
  Table<kvm_cpuid_entry2, 1> in;
  in.entry[0].function = 0x80000008;
  in.entry[0].eax = 0x3a2e;
  EXPECT_EQ(call(vcpu_, KVM_SET_CPUID2, &in), -EINVAL);
  in.entry[0].eax = 0x302e;
  EXPECT_EQ(call(vcpu_, KVM_SET_CPUID2, &in), 0);
}

TEST_F(Vcpu, StatesThatNeedAnApicAreEinvalWithoutOne) {
  kvm_mp_state state{};
  for (const u32 wanted : {1U, 2U, 3U, 4U, 5U, 10U, 99U}) {
    state.mp_state = wanted;
    EXPECT_EQ(call(vcpu_, KVM_SET_MP_STATE, &state), -EINVAL) << wanted;
  }
  state.mp_state = KVM_MP_STATE_RUNNABLE;
  EXPECT_EQ(call(vcpu_, KVM_SET_MP_STATE, &state), 0);
  EXPECT_EQ(call(vcpu_, KVM_GET_MP_STATE, &state), 0);
  EXPECT_EQ(state.mp_state, 0U);
}
TEST_F(Vcpu, SignalMaskIsEightBytes) {
  struct {
    u32 length;
    u8 set[8];
  } __attribute__((packed)) mask{8, {}};
  EXPECT_EQ(call(vcpu_, KVM_SET_SIGNAL_MASK, &mask), 0);
  mask.length = 4;
  EXPECT_EQ(call(vcpu_, KVM_SET_SIGNAL_MASK, &mask), -EINVAL);
  EXPECT_EQ(call(vcpu_, KVM_SET_SIGNAL_MASK, 0UL), 0);
}

TEST_F(Vcpu, EventsRefuseWhatCannotBe) {
  kvm_vcpu_events events{};
  ASSERT_EQ(call(vcpu_, KVM_GET_VCPU_EVENTS, &events), 0);
  EXPECT_EQ(call(vcpu_, KVM_SET_VCPU_EVENTS, &events), 0);
  kvm_vcpu_events bad = events;
  bad.flags = 0x80000000;
  EXPECT_EQ(call(vcpu_, KVM_SET_VCPU_EVENTS, &bad), -EINVAL);
  bad = events;
  bad.exception.injected = 1;
  bad.exception.nr = 32;
  EXPECT_EQ(call(vcpu_, KVM_SET_VCPU_EVENTS, &bad), -EINVAL);
  bad.exception.nr = 2;
  EXPECT_EQ(call(vcpu_, KVM_SET_VCPU_EVENTS, &bad), -EINVAL) << "an NMI is no exception";
  bad = events;
  bad.flags = KVM_VCPUEVENT_VALID_PAYLOAD;
  EXPECT_EQ(call(vcpu_, KVM_SET_VCPU_EVENTS, &bad), -EINVAL) << "not enabled";
  bad.flags = KVM_VCPUEVENT_VALID_TRIPLE_FAULT;
  EXPECT_EQ(call(vcpu_, KVM_SET_VCPU_EVENTS, &bad), -EINVAL) << "not enabled";
}
TEST_F(Vcpu, DebugRegistersHaveNoHighHalf) {
  kvm_debugregs debug{};
  ASSERT_EQ(call(vcpu_, KVM_GET_DEBUGREGS, &debug), 0);
  EXPECT_EQ(debug.dr6, 0xffff0ff0U);
  EXPECT_EQ(debug.dr7, 0x400U);
  EXPECT_EQ(call(vcpu_, KVM_SET_DEBUGREGS, &debug), 0);
  debug.flags = 1;
  EXPECT_EQ(call(vcpu_, KVM_SET_DEBUGREGS, &debug), -EINVAL);
  debug.flags = 0;
  debug.dr7 = u64{1} << 32;
  EXPECT_EQ(call(vcpu_, KVM_SET_DEBUGREGS, &debug), -EINVAL);
}
TEST_F(Vcpu, InterruptVectorEndsAt255) {
  kvm_interrupt irq{256};
  EXPECT_EQ(call(vcpu_, KVM_INTERRUPT, &irq), -EINVAL);
  irq.irq = 32;
  EXPECT_EQ(call(vcpu_, KVM_INTERRUPT, &irq), 0);
  EXPECT_EQ(sregs().interrupt_bitmap[0], u64{1} << 32);
}
TEST_F(Vcpu, LaterInterruptReplacesTheOneThatWaits) {
  kvm_interrupt irq{32};
  EXPECT_EQ(call(vcpu_, KVM_INTERRUPT, &irq), 0);
  irq.irq = 33;
  EXPECT_EQ(call(vcpu_, KVM_INTERRUPT, &irq), 0);
  EXPECT_EQ(sregs().interrupt_bitmap[0], u64{1} << 33);
}
TEST_F(Vcpu, OneNmiWaitsWhileTheyAreBlockedElseTwo) {
  kvm_vcpu_events events{};
  for (int i = 0; i < 3; ++i) ASSERT_EQ(call(vcpu_, KVM_NMI), 0);
  ASSERT_EQ(call(vcpu_, KVM_GET_VCPU_EVENTS, &events), 0);
  EXPECT_EQ(events.nmi.pending, 2);
  events.nmi.masked = 1;
  events.nmi.pending = 200;
  ASSERT_EQ(call(vcpu_, KVM_SET_VCPU_EVENTS, &events), 0);
  ASSERT_EQ(call(vcpu_, KVM_GET_VCPU_EVENTS, &events), 0);
  EXPECT_EQ(events.nmi.pending, 1);
}
TEST_F(Vcpu, ImpossibleTaskPriorityIsLeftOutOfTheSystemRegisters) {
  kvm_sregs s = sregs();
  s.cr8 = 5;
  ASSERT_EQ(call(vcpu_, KVM_SET_SREGS, &s), 0);
  s.cr8 = 0x123;
  EXPECT_EQ(call(vcpu_, KVM_SET_SREGS, &s), 0);
  EXPECT_EQ(sregs().cr8, 5U);
}
TEST_F(Vcpu, MachineCheckBanksAreBounded) {
  u64 cap = 0;
  EXPECT_EQ(call(vcpu_, KVM_X86_SETUP_MCE, &cap), -EINVAL);
  cap = 33;
  EXPECT_EQ(call(vcpu_, KVM_X86_SETUP_MCE, &cap), -EINVAL);
  cap = 10 | u64{1} << 60;
  EXPECT_EQ(call(vcpu_, KVM_X86_SETUP_MCE, &cap), -EINVAL);
  cap = 10 | 1 << 8;
  EXPECT_EQ(call(vcpu_, KVM_X86_SETUP_MCE, &cap), 0);
  kvm_x86_mce mce{};
  mce.bank = 10;
  mce.status = u64{1} << 63;
  EXPECT_EQ(call(vcpu_, KVM_X86_SET_MCE, &mce), -EINVAL);
  mce.bank = 9;
  EXPECT_EQ(call(vcpu_, KVM_X86_SET_MCE, &mce), 0);
  mce.status = 0;
  EXPECT_EQ(call(vcpu_, KVM_X86_SET_MCE, &mce), -EINVAL) << "not valid";
}
TEST_F(Vcpu, LapicNeedsAnIrqchip) {
  kvm_lapic_state state{};
  EXPECT_EQ(call(vcpu_, KVM_GET_LAPIC, &state), -EINVAL);
  EXPECT_EQ(call(vcpu_, KVM_SET_LAPIC, &state), -EINVAL);
}
TEST_F(Vcpu, TranslationWithoutPagingIsTheAddressItself) {
  kvm_translation tr{};
  tr.linear_address = 0x12345;
  ASSERT_EQ(call(vcpu_, KVM_TRANSLATE, &tr), 0);
  EXPECT_EQ(tr.physical_address, 0x12345U);
  EXPECT_EQ(tr.valid, 1U);
}
TEST_F(Vcpu, RunAreaCanBeMappedInParts) {
  void* pio = ::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu_, 4096);
  ASSERT_NE(pio, MAP_FAILED);
  *static_cast<u8*>(pio) = 7;
  EXPECT_EQ(reinterpret_cast<u8*>(run_)[4096], 7);
  ::munmap(pio, 4096);
}

}  // namespace
}  // namespace kvm_client

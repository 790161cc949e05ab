// SPDX-License-Identifier: Apache-2.0
#include "tests/unit/vcpu/guest.h"

namespace stagetwo::vcpu::testing {
namespace {

constexpr u64 kHandler = 0x3000;
constexpr u64 kNowhere = 0x500000;  // beyond the tables: not present

TEST(Exceptions, PageFaultPushesErrorCodeAndSetsCr2) {
  Guest g;
  g.long_mode();
  g.gate(14, kHandler);
  g.reg(kRbx) = kNowhere;
  g.code({0x48, 0x8b, 0x03, 0xf4});  // mov rax, [rbx]; hlt
  // pop rdx; add qword [rsp], 3; mov rcx, cr2; iretq
  g.code({0x5a, 0x48, 0x83, 0x04, 0x24, 0x03, 0x0f, 0x20, 0xd1, 0x48, 0xcf}, kHandler);
  g.run_to_hlt();
  EXPECT_EQ(g.reg(kRdx), 0u);
  EXPECT_EQ(g.reg(kRcx), kNowhere);
  EXPECT_EQ(g.reg(kRsp), kStackTop);
  EXPECT_EQ(g.state().rip, kCode + 4);
}

TEST(Exceptions, DivideErrorIsAFaultAtTheInstruction) {
  Guest g;
  g.long_mode();
  g.gate(0, kHandler);
  g.code({0x31, 0xc9, 0xf7, 0xf1, 0xf4});  // xor ecx, ecx; div ecx
  g.code({0xf4}, kHandler);
  g.run_to_hlt();
  EXPECT_EQ(g.state().rip, kHandler + 1);
  EXPECT_EQ(g.read<u64>(g.reg(kRsp)), kCode + 2);
  EXPECT_EQ(g.read<u64>(g.reg(kRsp) + 8), 8u);
  EXPECT_EQ(g.read<u64>(g.reg(kRsp) + 24), kStackTop);
}

TEST(Exceptions, StackIsAlignedBeforeTheFrame) {
  Guest g;
  g.long_mode();
  g.gate(3, kHandler);
  g.reg(kRsp) = kStackTop - 3;
  g.code({0xcc});
  g.code({0xf4}, kHandler);
  g.run_to_hlt();
  EXPECT_EQ(g.reg(kRsp) & 7, 0u);
  EXPECT_EQ(g.read<u64>(g.reg(kRsp)), kCode + 1);
  EXPECT_EQ(g.read<u64>(g.reg(kRsp) + 24), kStackTop - 3);
}

TEST(Exceptions, MissingHandlerOfAFaultIsADoubleFaultOnItsIst) {
  Guest g;
  g.long_mode();
  g.gate(8, kHandler, 1);
  g.code({0x0f, 0x0b});  // ud2 without a gate
  g.code({0xf4}, kHandler);
  g.run_to_hlt();
  // #UD is benign: its missing gate is #NP or #GP first, whose missing gate is the double fault.
  EXPECT_EQ(g.state().rip, kHandler + 1);
  EXPECT_EQ(g.reg(kRsp), kStackTop - 0x800 - 48);
  EXPECT_EQ(g.read<u64>(g.reg(kRsp)), 0u);
}

TEST(Exceptions, TripleFaultIsAShutdown) {
  Guest g;
  g.long_mode();
  SystemState sys = g.state().sys;
  sys.idt.limit = 0;
  ASSERT_TRUE(g.cpu().set_system_state(sys).has_value());
  g.code({0x0f, 0x0b});
  const Exit& exit = g.run();
  EXPECT_EQ(exit.kind, ExitKind::kShutdown);
  EXPECT_EQ(exit.error, 0);
}

TEST(Exceptions, NonCanonicalAddressIsGpAndStackOneIsSs) {
  Guest g;
  g.long_mode();
  g.gate(13, kHandler);
  g.gate(12, kHandler + 16);
  g.code({0x48, 0x8b, 0x03, 0xf4});
  g.code({0xf4}, kHandler);
  g.code({0xf4}, kHandler + 16);
  g.reg(kRbx) = 0x8000000000000000;
  g.run_to_hlt();
  EXPECT_EQ(g.state().rip, kHandler + 1);
  g.state().rip = kCode;
  g.code({0x48, 0x8b, 0x45, 0x00, 0xf4});  // mov rax, [rbp]
  g.reg(kRbp) = 0x8000000000000000;
  g.reg(kRsp) = kStackTop;
  g.run_to_hlt();
  EXPECT_EQ(g.state().rip, kHandler + 17);
}

TEST(Exceptions, InterruptFromUserModeSwitchesToRsp0) {
  Guest g;
  g.long_mode(true);
  g.gate(0x80, kHandler, 0, 3);
  g.reg(kRsp) = 0x7000;
  g.code({0xcd, 0x80, 0x90});
  g.code({0xf4}, kHandler);
  g.run_to_hlt();
  EXPECT_EQ(g.state().cpl(), 0);
  EXPECT_EQ(g.state().sys.seg[kSegSs].selector, 0);
  EXPECT_EQ(g.reg(kRsp), kStackTop - 40);
  EXPECT_EQ(g.read<u64>(kStackTop - 40), kCode + 2);
  EXPECT_EQ(g.read<u64>(kStackTop - 32), 0x1bu);
  EXPECT_EQ(g.read<u64>(kStackTop - 16), 0x7000u);
  EXPECT_EQ(g.read<u64>(kStackTop - 8), 0x23u);
}

TEST(Exceptions, UserMayNotCallAGateOfTheKernel) {
  Guest g;
  g.long_mode(true);
  g.gate(0x80, kHandler, 0, 0);
  g.gate(13, kHandler + 16);
  g.code({0xcd, 0x80});
  g.code({0xf4}, kHandler + 16);
  g.run_to_hlt();
  EXPECT_EQ(g.state().rip, kHandler + 17);
  EXPECT_EQ(g.read<u64>(g.reg(kRsp)), 0x80u * 8 + 2);
  EXPECT_EQ(g.read<u64>(g.reg(kRsp) + 8), kCode);
}

// Which of the two a misaligned image is, is the processor's choice; we do as AMD's.
TEST(Exceptions, AnFxImageThatIsNotEvenAlignedToFourIsAnAlignmentCheck) {
  for (const u64 off : {0u, 1u, 4u}) {
    Guest g;
    g.long_mode(true);
    g.gate(0x80, kHandler, 0, 3);
    g.gate(13, kHandler + 16);
    g.gate(17, kHandler + 32);
    g.state().sys.cr0 |= cr0::kAm;
    g.state().rflags |= rflags::kAc;
    g.code({0x0f, 0xae, 0x03, 0xcd, 0x80});  // fxsave [rbx]; int 0x80
    for (const u64 handler : {0u, 16u, 32u}) g.code({0xf4}, kHandler + handler);
    g.reg(kRbx) = kData + off;
    g.run_to_hlt();
    EXPECT_EQ(g.state().rip, kHandler + (off == 0 ? 0u : off == 4 ? 16u : 32u) + 1) << off;
  }
}

TEST(Exceptions, IretReturnsToUserMode) {
  Guest g;
  g.long_mode(true);
  g.gate(0x80, kHandler, 0, 3);
  g.gate(13, kHandler + 16);
  g.reg(kRsp) = 0x7000;
  g.code({0xcd, 0x80, 0xf4});  // int 0x80; hlt (which user mode may not)
  g.code({0x48, 0xcf}, kHandler);
  g.code({0xf4}, kHandler + 16);
  g.run_to_hlt();
  EXPECT_EQ(g.state().rip, kHandler + 17);
  EXPECT_EQ(g.read<u64>(g.reg(kRsp) + 8), kCode + 2);
  EXPECT_EQ(g.read<u64>(g.reg(kRsp) + 32), 0x7000u);
}

TEST(Exceptions, SyscallAndSysretKeepTheirRegisters) {
  Guest g;
  g.long_mode(true);
  g.gate(0x80, kHandler, 0, 3);
  g.state().msr.star = u64{0x08} << 32 | u64{0x10 | 3} << 48;
  g.state().msr.lstar = kHandler + 64;
  g.state().msr.sfmask = rflags::kCf;
  // mov eax, 7; syscall; mov edx, 9; int 0x80
  g.code({0xb8, 7, 0, 0, 0, 0x0f, 0x05, 0xba, 9, 0, 0, 0, 0xcd, 0x80});
  // add eax, 1; mov r8, rcx; sysretq
  g.code({0x83, 0xc0, 0x01, 0x49, 0x89, 0xc8, 0x48, 0x0f, 0x07}, kHandler + 64);
  g.write<u64>(kGdt + 8 * 4, 0x00affb000000ffff);  // SYSRET's code is STAR + 16
  g.code({0xf4}, kHandler);
  g.run_to_hlt();
  EXPECT_EQ(g.reg(kRax), 8u);
  EXPECT_EQ(g.reg(kR8), kCode + 7);
  EXPECT_EQ(g.reg(kRdx), 9u);
}

TEST(Exceptions, TrapFlagTrapsBehindTheInstruction) {
  Guest g;
  g.long_mode();
  g.gate(1, kHandler);
  g.state().rflags |= rflags::kTf;
  g.code({0x90, 0x90, 0xf4});
  g.code({0xf4}, kHandler);
  g.run_to_hlt();
  EXPECT_EQ(g.read<u64>(g.reg(kRsp)), kCode + 1);
  EXPECT_EQ(g.state().dr6 & 0x4000, 0x4000u);
}

TEST(Exceptions, SingleStepOfTheClientExitsAfterEachInstruction) {
  Guest g;
  g.long_mode();
  GuestDebug debug;
  debug.enabled = debug.single_step = true;
  g.cpu().set_guest_debug(debug);
  g.code({0x90, 0xff, 0xc0, 0xf4});
  const Exit* exit = &g.run();
  ASSERT_EQ(exit->kind, ExitKind::kDebug);
  EXPECT_EQ(exit->debug.pc, kCode + 1);
  EXPECT_EQ(exit->debug.exception, 1u);
  exit = &g.run();
  ASSERT_EQ(exit->kind, ExitKind::kDebug);
  EXPECT_EQ(exit->debug.pc, kCode + 3);
  EXPECT_EQ(g.reg(kRax), 1u);
}

TEST(Exceptions, InterruptIsDeliveredAndStiHoldsItForOneInstruction) {
  Guest g;
  g.long_mode();
  g.gate(0x40, kHandler);
  g.code({0xfb, 0x90, 0x90, 0xf4});  // sti; nop; nop; hlt
  g.code({0xf4}, kHandler);
  RunRequest request;
  request.request_interrupt_window = true;
  ASSERT_EQ(g.run(request).kind, ExitKind::kIrqWindow);
  EXPECT_EQ(g.state().rip, kCode + 2);
  EXPECT_TRUE(g.cpu().ready_for_interrupt_injection());
  g.cpu().interrupt(0x40);
  g.run_to_hlt();
  EXPECT_EQ(g.state().rip, kHandler + 1);
  EXPECT_EQ(g.read<u64>(g.reg(kRsp)), kCode + 2);
  EXPECT_EQ(g.state().rflags & rflags::kIf, 0u);
}

TEST(Exceptions, NmiIsHeldUntilIret) {
  Guest g;
  g.long_mode();
  g.gate(2, kHandler);
  g.code({0x90, 0xf4});
  g.code({0xff, 0xc0, 0x48, 0xcf}, kHandler);  // inc eax; iretq
  g.cpu().nmi();
  g.cpu().nmi();
  g.run_to_hlt();
  EXPECT_EQ(g.reg(kRax), 2u);
  EXPECT_EQ(g.state().rip, kCode + 2);
}

// A page that the delivery needs and the host does not give: KVM_RUN fails, and the event is not
// lost.
class DeliveryNeeds : public ::testing::TestWithParam<u64> {};

constexpr u8 kNmi = 2, kUd = 6;

TEST_P(DeliveryNeeds, APageThatIsNotThereNowFailsTheRunAndKeepsTheEvent) {
  for (const u8 vector : {kNmi, u8{0x40}, kUd}) {
    Guest g;
    g.long_mode();
    g.gate(vector, kHandler);
    g.code({0x0f, 0x0b});  // ud2: the third one's own; the others come before it
    g.code({0xf4}, kHandler);
    if (vector == kNmi) g.cpu().nmi();
    if (vector == 0x40) g.cpu().interrupt(vector);
    u8* const page = g.ram(GetParam());
    ASSERT_EQ(mprotect(page, kPageSize, PROT_NONE), 0);
    for (int again = 0; again < 2; ++again) {
      const Exit& exit = g.run();
      ASSERT_EQ(exit.kind, ExitKind::kUnknown) << u32{vector};
      ASSERT_EQ(exit.error, EFAULT) << u32{vector};
      EXPECT_EQ(g.state().rip, kCode);
    }
    ASSERT_EQ(mprotect(page, kPageSize, PROT_READ | PROT_WRITE), 0);
    g.run_to_hlt();
    EXPECT_EQ(g.state().rip, kHandler + 1) << u32{vector};
    EXPECT_EQ(g.read<u64>(g.reg(kRsp)), kCode) << "once, and where it came";
  }
}
INSTANTIATE_TEST_SUITE_P(Pages, DeliveryNeeds,
                         ::testing::Values(kIdt, kGdt, kStackTop - kPageSize));

}  // namespace
}  // namespace stagetwo::vcpu::testing

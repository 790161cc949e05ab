// SPDX-License-Identifier: Apache-2.0
#include "tests/unit/vcpu/guest.h"

namespace stagetwo::vcpu::testing {
namespace {

TEST(StringOps, RepMovsCopiesAcrossPages) {
  Guest g;
  g.long_mode();
  for (u64 i = 0; i < 10000; ++i) g.ram(0x100000)[i] = static_cast<u8>(i * 7);
  g.code({0xf3, 0xa4, 0xf4});
  g.reg(kRsi) = 0x100000;
  g.reg(kRdi) = 0x200123;
  g.reg(kRcx) = 10000;
  g.run_to_hlt();
  EXPECT_EQ(std::memcmp(g.ram(0x100000), g.ram(0x200123), 10000), 0);
  EXPECT_EQ(g.reg(kRcx), 0u);
  EXPECT_EQ(g.reg(kRdi), 0x200123u + 10000);
}

TEST(StringOps, OverlappingRepMovsSpreadsThePattern) {
  Guest g;
  g.long_mode();
  g.ram(0x100000)[0] = 1;
  g.ram(0x100000)[1] = 2;
  g.code({0xf3, 0xa4, 0xf4});
  g.reg(kRsi) = 0x100000;
  g.reg(kRdi) = 0x100002;
  g.reg(kRcx) = 500;
  g.run_to_hlt();
  for (u64 i = 0; i < 502; ++i) ASSERT_EQ(g.ram(0x100000)[i], i % 2 + 1) << i;
}

TEST(StringOps, RepneScasStopsAtTheMatch) {
  Guest g;
  g.long_mode();
  std::memcpy(g.ram(kData), "hello", 6);
  g.code({0xf2, 0xae, 0xf4});  // repne scasb; hlt
  g.reg(kRdi) = kData;
  g.reg(kRcx) = 100;
  g.reg(kRax) = 0;
  g.run_to_hlt();
  EXPECT_EQ(g.reg(kRcx), 94u);
  EXPECT_NE(g.state().rflags & rflags::kZf, 0u);
}

TEST(StringOps, FaultInTheMiddleLeavesTheRestToDo) {
  Guest g;
  g.long_mode();
  g.gate(14, 0x3000);
  g.code({0xf4}, 0x3000);
  g.write<u64>(kTables + 0x3000 + 8 * 0x201, 0);
  g.code({0xf3, 0x48, 0xab, 0xf4});  // rep stosq
  g.reg(kRdi) = 0x200f00;
  g.reg(kRcx) = 100;
  g.run_to_hlt();
  EXPECT_EQ(g.reg(kRcx), 68u);
  EXPECT_EQ(g.reg(kRdi), 0x201000u);
  EXPECT_EQ(g.read<u64>(g.reg(kRsp) + 8), kCode);
}

TEST(PortOps, InsAsksForABatchAndFillsMemory) {
  Guest g;
  g.long_mode();
  g.code({0xf3, 0x6c, 0xf4});  // rep insb
  g.reg(kRdi) = 0x100000;
  g.reg(kRcx) = 8192;
  g.reg(kRdx) = 0x80;
  const Exit* exit = &g.run();
  while (exit->kind == ExitKind::kIo) {
    EXPECT_LE(exit->io.count, 1024u);
    std::memset(g.pio, 0xaa, sizeof(g.pio));
    exit = &g.run();
  }
  EXPECT_EQ(exit->kind, ExitKind::kHlt);
  EXPECT_EQ(g.reg(kRcx), 0u);
  EXPECT_EQ(g.reg(kRdi), 0x102000u);
}

TEST(PortOps, InsFollowsACountTheClientChanged) {
  Guest g;
  g.long_mode();
  g.code({0xf3, 0x6c, 0xf4});
  g.reg(kRdi) = 0x100000;
  g.reg(kRcx) = 2;
  g.reg(kRdx) = 0x80;
  const Exit* exit = &g.run();
  ASSERT_EQ(exit->kind, ExitKind::kIo);
  EXPECT_EQ(exit->io.count, 2u);
  g.reg(kRcx) = 1;
  g.cpu().registers_changed();
  g.run_to_hlt();
  EXPECT_EQ(g.reg(kRdi), 0x100001u);
}

TEST(PortOps, OutsReportsElementByElement) {
  Guest g;
  g.long_mode();
  std::memcpy(g.ram(kData), "abc", 3);
  g.code({0xf3, 0x6e, 0xf4});
  g.reg(kRsi) = kData;
  g.reg(kRcx) = 3;
  g.reg(kRdx) = 0x3f8;
  for (char expected : {'a', 'b', 'c'}) {
    const Exit& exit = g.run();
    ASSERT_EQ(exit.kind, ExitKind::kIo);
    EXPECT_EQ(exit.io.count, 1u);
    EXPECT_EQ(g.pio[0], expected);
  }
  g.run_to_hlt();
}

TEST(Atomics, Cmpxchg16bSwapsBothHalves) {
  Guest g;
  g.long_mode();
  g.write<u64>(kData, 1);
  g.write<u64>(kData + 8, 2);
  g.code({0xf0, 0x48, 0x0f, 0xc7, 0x0e, 0xf4});  // lock cmpxchg16b [rsi]
  g.reg(kRsi) = kData;
  g.reg(kRax) = 1;
  g.reg(kRdx) = 2;
  g.reg(kRbx) = 3;
  g.reg(kRcx) = 4;
  g.run_to_hlt();
  EXPECT_EQ(g.read<u64>(kData), 3u);
  EXPECT_EQ(g.read<u64>(kData + 8), 4u);
  EXPECT_NE(g.state().rflags & rflags::kZf, 0u);
}

TEST(Atomics, LockedOperandMayCrossAPage) {
  Guest g;
  g.long_mode();
  g.write<u64>(0x100ffc, 41);
  g.code({0xf0, 0x48, 0x0f, 0xc1, 0x03, 0xf4});  // lock xadd [rbx], rax
  g.reg(kRbx) = 0x100ffc;
  g.reg(kRax) = 1;
  g.run_to_hlt();
  EXPECT_EQ(g.read<u64>(0x100ffc), 42u);
  EXPECT_EQ(g.reg(kRax), 41u);
}

TEST(BitOps, RegisterOffsetAddressesAStringInBothDirections) {
  Guest g;
  g.long_mode();
  g.code({0xf0, 0x48, 0x0f, 0xab, 0x03, 0xf4});  // lock bts [rbx], rax
  g.reg(kRbx) = kData + 64;
  g.reg(kRax) = 511;
  g.run_to_hlt();
  EXPECT_EQ(g.read<u64>(kData + 64 + 56), u64{1} << 63);
  g.state().rip = kCode;
  g.reg(kRax) = ~u64{0};
  g.run_to_hlt();
  EXPECT_EQ(g.read<u64>(kData + 56), u64{1} << 63);
}

TEST(SystemOps, UnknownMsrIsGp) {
  Guest g;
  g.long_mode();
  g.gate(13, 0x3000);
  g.code({0xf4}, 0x3000);
  g.code({0xb9, 0x45, 0x23, 0x01, 0, 0x0f, 0x32, 0xf4});
  g.run_to_hlt();
  EXPECT_EQ(g.state().rip, 0x3001u);
  EXPECT_EQ(g.read<u64>(g.reg(kRsp)), 0u);
}

TEST(SystemOps, UnknownMsrExitsIfTheVmAskedForIt) {
  Guest g;
  g.long_mode();
  g.policy.msr_exit_reasons = 2;
  g.code({0xb9, 0x45, 0x23, 0x01, 0, 0x0f, 0x32, 0xf4});
  const Exit& exit = g.run();
  ASSERT_EQ(exit.kind, ExitKind::kRdMsr);
  EXPECT_EQ(exit.msr.index, 0x12345u);
  EXPECT_EQ(exit.msr.reason, 2u);
  RunRequest request;
  request.completion.msr_data = 0x1122334455667788;
  ASSERT_EQ(g.run(request).kind, ExitKind::kHlt);
  EXPECT_EQ(g.reg(kRax), 0x55667788u);
  EXPECT_EQ(g.reg(kRdx), 0x11223344u);
}

TEST(SystemOps, CallsOfSecureGuestsAreEnosys) {
  Guest g;
  g.long_mode();
  g.code({0x0f, 0x01, 0xc1, 0xf4});
  // H_SVM_* and UV_* (uv/calls.h).
  for (u64 number = 0xef00; number <= 0xf150; number += 4) {
    g.state().rip = kCode;
    g.reg(kRax) = number;
    g.run_to_hlt();
    ASSERT_EQ(g.reg(kRax), static_cast<u64>(-1000)) << number;
  }
}

TEST(SystemOps, HypercallIsEnosysUnlessEnabled) {
  Guest g;
  g.long_mode();
  g.code({0x0f, 0x01, 0xc1, 0xf4});
  g.reg(kRax) = 12;
  g.run_to_hlt();
  EXPECT_EQ(g.reg(kRax), static_cast<u64>(-1000));
  g.state().rip = kCode;
  g.policy.hypercall_exits = 1 << 12;
  g.reg(kRax) = 12;
  g.reg(kRbx) = 0x3000;
  g.reg(kRcx) = 4;
  g.reg(kRdx) = 8;
  const Exit& exit = g.run();
  ASSERT_EQ(exit.kind, ExitKind::kHypercall);
  EXPECT_EQ(exit.hypercall.args[0], 0x3000u);
  EXPECT_EQ(exit.hypercall.args[1], 4u);
  EXPECT_EQ(exit.hypercall.args[2], 8u);
  EXPECT_EQ(g.state().rip, kCode);
  RunRequest request;
  request.completion.hypercall_ret = 5;
  ASSERT_EQ(g.run(request).kind, ExitKind::kHlt);
  EXPECT_EQ(g.reg(kRax), 5u);
}

// The kernel looks at alignment, at nothing at all and at frame numbers that wrap; whether there is
// such memory is the client's question.
TEST(SystemOps, MapGpaRangeIsRefusedForItsNumbersOnly) {
  struct {
    u64 gpa, npages;
    bool exits;
  } const rows[] = {{0x3001, 1, false},       {0x3000, 0, false},
                    {0x3000, ~u64{0}, false}, {u64{1} << 46, 1, true},
                    {0, u64{1} << 36, true},  {static_cast<u64>(-4096), 1, true}};
  for (const auto& row : rows) {
    Guest g;
    g.long_mode();
    g.code({0x0f, 0x01, 0xc1, 0xf4});
    g.policy.hypercall_exits = 1 << 12;
    g.reg(kRax) = 12;
    g.reg(kRbx) = row.gpa;
    g.reg(kRcx) = row.npages;
    EXPECT_EQ(g.run().kind, row.exits ? ExitKind::kHypercall : ExitKind::kHlt) << row.gpa;
  }
}

TEST(SystemOps, HypercallFromUserModeIsEperm) {
  Guest g;
  g.long_mode(true);
  g.gate(0x80, 0x3000, 0, 3);
  g.code({0xf4}, 0x3000);
  g.code({0x0f, 0x01, 0xd9, 0xcd, 0x80});  // vmmcall; int 0x80
  g.run_to_hlt();
  EXPECT_EQ(g.reg(kRax), ~u64{0});
}

TEST(SystemOps, CpuidAnswersFromTheTable) {
  Guest g;
  g.long_mode();
  g.code({0x0f, 0xa2, 0xf4});
  g.reg(kRax) = 0x80000008;
  g.run_to_hlt();
  EXPECT_EQ(g.reg(kRax), 0x3030u);
}

TEST(StateChecks, ImpossibleControlRegistersAreRefused) {
  Guest g;
  g.long_mode();
  SystemState sys = g.state().sys;
  sys.cr4 &= ~cr4::kPae;
  EXPECT_FALSE(g.cpu().set_system_state(sys).has_value());
  sys = g.state().sys;
  sys.cr0 |= cr0::kNw;
  EXPECT_FALSE(g.cpu().set_system_state(sys).has_value());
  sys = g.state().sys;
  sys.cr4 |= u64{1} << 40;
  EXPECT_FALSE(g.cpu().set_system_state(sys).has_value());
}

TEST(Sse, MovesAndLogicWork) {
  Guest g;
  g.long_mode();
  g.write<u64>(kData, 0x1111);
  g.write<u64>(kData + 8, 0x2222);
  // movups xmm0, [rbx]; pxor xmm1, xmm1; por xmm1, xmm0; movaps [rbx+16], xmm1; hlt
  g.code({0x0f, 0x10, 0x03, 0x66, 0x0f, 0xef, 0xc9, 0x66, 0x0f, 0xeb, 0xc8, 0x0f, 0x29, 0x4b, 0x10,
          0xf4});
  g.reg(kRbx) = kData;
  g.run_to_hlt();
  EXPECT_EQ(g.read<u64>(kData + 16), 0x1111u);
  EXPECT_EQ(g.read<u64>(kData + 24), 0x2222u);
}

TEST(RealMode, FarJumpToProtectedAndLongMode) {
  Guest g;
  g.long_mode();
  SystemState paged = g.state().sys;
  // 16 bit: lgdt [0x900]; mov eax, cr0; or al, 1; mov cr0, eax; jmp 0x18:0x1100
  g.code({0x0f, 0x01, 0x16, 0x00, 0x09, 0x0f, 0x20, 0xc0, 0x0c, 0x01, 0x0f, 0x22, 0xc0, 0xea, 0x00,
          0x11, 0x18, 0x00});
  g.write<u16>(0x900, 0x3f);
  g.write<u32>(0x902, kGdt);
  g.write<u64>(kGdt + 24, 0x00cf9b000000ffff);  // 0x18: 32-bit code
  // 32 bit: mov eax, 0x12345678; hlt
  g.code({0xb8, 0x78, 0x56, 0x34, 0x12, 0xf4}, 0x1100);
  SystemState sys = paged;
  for (Segment& s : sys.seg) s = Segment{};
  sys.seg[kSegCs].type = 11;
  sys.cr0 = cr0::kEt;
  sys.cr4 = 0;
  sys.efer = 0;
  ASSERT_TRUE(g.cpu().set_system_state(sys).has_value());
  g.run_to_hlt();
  EXPECT_EQ(g.reg(kRax), 0x12345678u);
  EXPECT_EQ(g.state().sys.seg[kSegCs].selector, 0x18);
  EXPECT_EQ(g.state().sys.seg[kSegCs].db, 1);
}

}  // namespace
}  // namespace stagetwo::vcpu::testing

// SPDX-License-Identifier: Apache-2.0
#include "tests/unit/vcpu/guest.h"

namespace stagetwo::vcpu::testing {
namespace {

TEST(BlockCache, StoreIntoTheRunningBlockIsSeenByTheNextInstruction) {
  Guest g;
  g.long_mode();
  // mov byte [rip+1], 7 (the immediate of the next); mov eax, 5; hlt
  g.code({0xc6, 0x05, 1, 0, 0, 0, 7, 0xb8, 5, 0, 0, 0, 0xf4});
  g.run_to_hlt();
  EXPECT_EQ(g.reg(kRax), 7u);
}

TEST(BlockCache, StoreIntoAnotherBlockIsSeenWhenItIsEntered) {
  Guest g;
  g.long_mode();
  // call f; mov byte [f+1], 9; call f; hlt; f: mov eax, 5; ret
  g.code({0xe8, 0x0d, 0, 0, 0, 0xc6, 0x05, 7, 0, 0, 0, 9,
          0xe8, 1,    0, 0, 0, 0xf4, 0xb8, 5, 0, 0, 0, 0xc3});
  g.run_to_hlt();
  EXPECT_EQ(g.reg(kRax), 9u);
}

TEST(BlockCache, HostWriteBetweenRunsIsSeen) {
  Guest g;
  g.long_mode();
  g.code({0xb8, 5, 0, 0, 0, 0xf4});
  g.run_to_hlt();
  EXPECT_EQ(g.reg(kRax), 5u);
  g.ram(kCode)[1] = 6;
  g.state().rip = kCode;
  g.run_to_hlt();
  EXPECT_EQ(g.reg(kRax), 6u);
}

TEST(BlockCache, ShortBlockAtTheEndOfAPageIsCompared) {
  Guest g;
  g.long_mode();
  g.ram(0x1fff)[0] = 0xf4;
  g.state().rip = 0x1fff;
  g.run_to_hlt();
  g.ram(0x1fff)[0] = 0x90;
  g.ram(0x2000)[0] = 0xf4;
  g.state().rip = 0x1fff;
  g.run_to_hlt();
  EXPECT_EQ(g.state().rip, 0x2001u);
}

TEST(BlockCache, InstructionAcrossAPageRuns) {
  Guest g;
  g.long_mode();
  g.code({0xb8, 0x11, 0x22, 0x33, 0x44, 0xf4}, 0x1ffe);
  g.state().rip = 0x1ffe;
  g.run_to_hlt();
  EXPECT_EQ(g.reg(kRax), 0x44332211u);
}

TEST(BlockCache, SecondPageOfAnInstructionFaultsAtItsFirstByte) {
  Guest g;
  g.long_mode();
  g.gate(14, 0x3000);
  g.code({0x58, 0x0f, 0x20, 0xd1, 0xf4}, 0x3000);
  g.code({0xb8, 0x11}, 0x1ffe);
  g.write<u64>(kTables + 0x3000 + 8 * 2, 0);
  g.state().rip = 0x1ffe;
  g.run_to_hlt();
  EXPECT_EQ(g.reg(kRcx), 0x2000u);
  EXPECT_EQ(g.reg(kRax), 0x10u);
}

TEST(BlockCache, SameOffsetInAnotherRealModeSegmentIsOtherCode) {
  Guest g;
  SystemState sys;
  sys.seg[kSegCs].type = 11;
  ASSERT_TRUE(g.cpu().set_system_state(sys).has_value());
  // 0:1000 jumps to 100:1000 (linear 2000), which jumps back until AX is 6.
  g.code({0x40, 0xea, 0x00, 0x10, 0x00, 0x01}, 0x1000);  // inc ax; jmp 0x100:0x1000
  g.code({0x40, 0x3d, 0x06, 0x00, 0x74, 0x05, 0xea, 0x00, 0x10, 0x00, 0x00, 0xf4}, 0x2000);
  g.state().rip = 0x1000;
  g.state().rflags = 2;
  g.run_to_hlt();
  EXPECT_EQ(g.reg(kRax), 6u);
}

TEST(BlockCache, SameBytesUnderAnotherMappingAreAnotherBlock) {
  Guest g;
  g.long_mode();
  // lea rax, [rip]; hlt at two linear addresses of one physical page
  g.code({0x48, 0x8d, 0x05, 0, 0, 0, 0, 0xf4});
  g.write<u64>(kTables + 0x3000 + 8 * 0x100, kCode | 3);
  g.run_to_hlt();
  EXPECT_EQ(g.reg(kRax), kCode + 7);
  g.state().rip = 0x100000;
  g.run_to_hlt();
  EXPECT_EQ(g.reg(kRax), 0x100007u);
}

}  // namespace
}  // namespace stagetwo::vcpu::testing

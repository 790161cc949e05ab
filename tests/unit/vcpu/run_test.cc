// SPDX-License-Identifier: Apache-2.0
#include "tests/unit/vcpu/guest.h"

namespace stagetwo::vcpu::testing {
namespace {

TEST(Run, HltLeavesWithRipBehindIt) {
  Guest g;
  g.long_mode();
  g.code({0xf4});
  g.run_to_hlt();
  EXPECT_EQ(g.state().rip, kCode + 1);
}

TEST(Run, LoopCountsDown) {
  Guest g;
  g.long_mode();
  // mov ecx, 1000; xor eax, eax; l: add rax, rcx; dec ecx; jne l; hlt
  g.code({0xb9, 0xe8, 0x03, 0, 0, 0x31, 0xc0, 0x48, 0x01, 0xc8, 0xff, 0xc9, 0x75, 0xf9, 0xf4});
  g.run_to_hlt();
  EXPECT_EQ(g.reg(kRax), 500500u);
  EXPECT_EQ(g.reg(kRcx), 0u);
}

TEST(Run, RealModeGuestAddsAndWritesToAPort) {
  Guest g;
  // mov dx, 0x3f8; add al, bl; add al, '0'; out dx, al; mov al, '\n'; out dx, al; hlt
  g.code({0xba, 0xf8, 0x03, 0x00, 0xd8, 0x04, '0', 0xee, 0xb0, '\n', 0xee, 0xf4});
  SystemState sys = g.state().sys;
  sys.seg[kSegCs].base = 0;
  sys.seg[kSegCs].selector = 0;
  ASSERT_TRUE(g.cpu().set_system_state(sys).has_value());
  g.state().rip = kCode;
  g.reg(kRax) = 2;
  g.reg(kRbx) = 2;
  const Exit* exit = &g.run();
  ASSERT_EQ(exit->kind, ExitKind::kIo);
  EXPECT_TRUE(exit->io.out);
  EXPECT_EQ(exit->io.port, 0x3f8);
  EXPECT_EQ(exit->io.size, 1);
  EXPECT_EQ(exit->io.count, 1u);
  EXPECT_EQ(g.pio[0], '4');
  exit = &g.run();
  ASSERT_EQ(exit->kind, ExitKind::kIo);
  EXPECT_EQ(g.pio[0], '\n');
  g.run_to_hlt();
}

TEST(Run, ResetStateWithoutMemoryIsAnEmulationFailure) {
  Guest g;
  const Exit& exit = g.run();
  EXPECT_EQ(exit.kind, ExitKind::kInternalError);
  EXPECT_EQ(exit.internal.suberror, 1u);
  EXPECT_EQ(g.state().rip, 0xfff0u);
}

TEST(Run, RequestExitEndsAnEndlessLoop) {
  Guest g;
  g.long_mode();
  g.code({0xeb, 0xfe});
  g.cpu().request_exit();
  const Exit& exit = g.run();
  EXPECT_EQ(exit.kind, ExitKind::kInterrupted);
  EXPECT_EQ(exit.error, EINTR);
  EXPECT_FALSE(exit.immediate);
}

TEST(Run, ImmediateExitCompletesTheInAndRunsNothing) {
  Guest g;
  g.long_mode();
  g.code({0xec, 0x90, 0xf4});  // in al, dx; nop; hlt
  g.reg(kRdx) = 0x1000;
  g.reg(kRax) = 0x1122334455667788;
  ASSERT_EQ(g.run().kind, ExitKind::kIo);
  EXPECT_EQ(g.state().rip, kCode);
  g.pio[0] = 0x5a;
  const Exit& exit = g.run_immediate();
  EXPECT_EQ(exit.kind, ExitKind::kInterrupted);
  EXPECT_TRUE(exit.immediate);
  EXPECT_EQ(g.state().rip, kCode + 1);
  EXPECT_EQ(g.reg(kRax), 0x112233445566775au);
  g.run_to_hlt();
}

TEST(Run, MovedRipCancelsTheIn) {
  Guest g;
  g.long_mode();
  g.code({0xec, 0x90, 0xf4});
  g.reg(kRax) = 1;
  ASSERT_EQ(g.run().kind, ExitKind::kIo);
  g.pio[0] = 0x5a;
  g.state().rip = kCode + 1;
  g.cpu().registers_changed();
  g.run_to_hlt();
  EXPECT_EQ(g.reg(kRax), 1u);
}

}  // namespace
}  // namespace stagetwo::vcpu::testing

// SPDX-License-Identifier: Apache-2.0
// Lines that let go: after a barrier nobody reaches what was borrowed before it, though nobody need
// have answered.

#include "tests/sched/restartable_scenarios.h"

namespace stagetwo::test {
namespace {

TEST(LetGo, ARestartableAccessIsDoneOrAbortedWhenTheBarrierReturns) {
  expect_holds<RestartableAgainstBarrier>(600);
}
TEST(LetGo, WhatHoldsIsWaitedFor) {
  expect_holds<HoldAgainstBarrier>(600);
}
TEST(LetGo, BothKindsOfAccessTurnAboutHold) {
  expect_holds<MixedAgainstBarrier>(600);
}
TEST(LetGo, ATableIsNotReusedWhileALineHolds) {
  expect_holds<RetireAgainstHold>(600);
}

// The broken twins: one step missing.

// Looks at the request first and says afterwards that it holds.
struct LookThenHold : LetGo {
  void thread(unsigned me) {
    if (me != 0) return invalidate();
    enter();
    for (int i = 0; i < kMany; ++i) {
      const bool asked = line.pending();
      const bool flush = line.hold();
      if (asked) cached = false;
      if (cached) sync::sched::expect(page.read() == kAlive, "held after looking");
      if (flush) cached = false;
      line.let_go();
    }
    leave();
  }
};
TEST(LetGoTwin, LookingBeforeHoldingIsFound) {
  expect_found<LookThenHold>();
}

// An access that does not look at the request.
struct Blind : LetGo {
  void thread(unsigned me) {
    if (me != 0) return invalidate();
    enter();
    for (int i = 0; i < kMany; ++i) {
      u64 value = kAlive;
      sync::sched::begin_restartable();
      if (!page.read_restartable(&value)) continue;
      sync::sched::expect(value == kAlive, "nobody looked at the request");
    }
    leave();
  }
};
TEST(LetGoTwin, AnAccessThatDoesNotLookIsFound) {
  expect_found<Blind>();
}

// One that is not restartable while the line says that it has let go.
struct NotRestartable : LetGo {
  void thread(unsigned me) {
    if (me != 0) return invalidate();
    enter();
    for (int i = 0; i < kMany; ++i) {
      if (!line.pending()) sync::sched::expect(page.read() == kAlive, "nobody aborted it");
    }
    leave();
  }
};
TEST(LetGoTwin, AnAccessThatIsNotAbortedIsFound) {
  expect_found<NotRestartable>();
}

}  // namespace
}  // namespace stagetwo::test

// SPDX-License-Identifier: Apache-2.0
// Guards of lines that let go: without one, a schedule reaches what was borrowed. With threads that
// really run: sync_guards_test.cc.
#include <gtest/gtest.h>

#include "tests/mutation/broken_without.h"
#include "tests/sched/restartable_scenarios.h"

namespace stagetwo::test {
namespace {

TEST(RestartBarrier, WithoutItAnAccessIsNotTakenBack) {
  EXPECT_TRUE(broken_without({"restart_barrier"},
                             [] { return search<RestartableAgainstBarrier>(5000).found; }));
}
TEST(RestartBarrier, WithoutItNobodySeesThatALineHolds) {
  EXPECT_TRUE(
      broken_without({"restart_barrier"}, [] { return search<HoldAgainstBarrier>(5000).found; }));
}
TEST(HoldIsWaitedFor, WithoutTheLookALineThatHoldsIsPassed) {
  EXPECT_TRUE(broken_without({"hold_is_waited_for"},
                             [] { return search<HoldAgainstBarrier>(5000).found; }));
}

}  // namespace
}  // namespace stagetwo::test

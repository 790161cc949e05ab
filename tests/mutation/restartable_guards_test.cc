// SPDX-License-Identifier: Apache-2.0
// Guards of lines that let go, of passages, of the big lock, and of numbers that are kept: without
// one, a schedule reaches what was borrowed, or nobody is let in. With threads that really run:
// sync_guards_test.cc.
#include <gtest/gtest.h>

#include "tests/mutation/broken_without.h"
#include "tests/sched/big_reader_yields.h"
#include "tests/sched/kept_number_scenarios.h"
#include "tests/sched/passage_scenarios.h"
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

// The bit of a cell, set by who is the first there.
TEST(PassageCellUsed, WithoutTheBitNobodyLooksThere) {
  EXPECT_TRUE(
      broken_without({"passage_cell_used"}, [] { return search<OrderedSections<3>>(5000).found; }));
}
// The order of the first: the waiter's look is a write.
TEST(PassageUsedMarked, WithoutTheMarkTheFirstInACellReadsWhatWasTakenAway) {
  EXPECT_TRUE(broken_without({"passage_used_marked"},
                             [] { return search<AcquiringSections<1>>(5000).found; }));
}
// The order of the second, which has it from the first.
TEST(PassageUsedAcquire, WithoutItTheSecondInACellReadsWhatWasTakenAway) {
  EXPECT_TRUE(broken_without({"passage_used_acquire"},
                             [] { return search<AcquiringSections<3>>(20000).found; }));
}

TEST(BigWriterGivesWay, WithoutTheWaitAYieldLetsNobodyIn) {
  EXPECT_TRUE(broken_without({"big_writer_gives_way"}, [] { return readers_let_in(500) < 250; }));
}

// Of numbers that are kept among the client's.
TEST(NumberIsHeld, WithoutTheWaitACallIsMadeOnTheClientsFile) {
  EXPECT_TRUE(broken_without({"number_is_held"}, [] { return search<NumbersTaken>(5000).found; }));
}

TEST(Guards, AreAllQuietWhenNoneIsRemoved) {
  EXPECT_FALSE(broken_without({}, [] { return search<AcquiringSections<3>>(500).found; }));
}

}  // namespace
}  // namespace stagetwo::test

// SPDX-License-Identifier: Apache-2.0
// Who hears the bell for a range, against everything that may come between: the registry of
// intervals, and a device's mirror on top of it.
#include "tests/sched/interval_scenarios.h"
#include "tests/sched/mirror_scenarios.h"

namespace stagetwo::test {
namespace {

TEST(SchedInterval, NothingOldIsUsed) {
  expect_holds<ReaderAgainstChange>(2000);
}
TEST(SchedInterval, ANewcomerUsesNothingOfAChangeThatMissedIt) {
  expect_holds<NewcomerAgainstChange>(2000);
}
TEST(SchedInterval, ChangesThatOverlapKeepReadersOutUntilTheLastEnds) {
  expect_holds<ReaderAgainstTwoChanges>(1000);
}
TEST(SchedInterval, OneThatComesAndGoesUsesNothingOld) {
  expect_holds<LeaverAgainstChange>(1000);
}
TEST(SchedMirror, NoEntryIsFollowedWhileTheRangeChanges) {
  expect_holds<MirrorFaultAgainstChange>(500);
}
TEST(SchedMirror, NorBesideTwoChanges) {
  expect_holds<MirrorAgainstTwoChanges>(300);
}

}  // namespace
}  // namespace stagetwo::test

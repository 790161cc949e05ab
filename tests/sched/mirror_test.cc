// SPDX-License-Identifier: Apache-2.0
// Who hears the bell against everything that may come between: a subscriber of all addresses, one
// of an interval, a device's mirror on top of that.
#include "tests/sched/bell_scenarios.h"
#include "tests/sched/interval_scenarios.h"
#include "tests/sched/mirror_scenarios.h"

namespace stagetwo::test {
namespace {

TEST(SchedBell, OneThatIsReadyBeforeItRegistersUsesNothingOld) {
  expect_holds<ReadyAgainstChange>(500);
}
TEST(SchedBell, OneThatRegistersInAChangeUsesNothingOld) {
  expect_holds<RegisterAgainstChange>(500);
}
TEST(SchedBell, AFaultDoesNotSpin) {
  expect_holds<SpinAgainstRange>(500);
}
TEST(SchedBell, APageIsReplacedInAPairAndNoOldOneIsUsed) {
  expect_holds<FaultAgainstReplacement>(500);
}
TEST(SchedBell, WhoIsToldBeforeTheChangeUsesNothingOld) {
  expect_holds<UseAgainstLateCall>(500);
}
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

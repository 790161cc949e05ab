// SPDX-License-Identifier: Apache-2.0
// The TDP MMU under every schedule: the five corrections of its fault path, removal against
// installs, walks against the release of tables, roots against their invalidation.
#include "tests/sched/tdp_scenarios.h"

namespace stagetwo::test {
namespace {

TEST(TdpMap, AFrozenGoalIsNotAPlaceToMap) {
  expect_holds_with_after<FrozenGoal>(800);
}
TEST(TdpMap, ALeafStandsOnlyAtTheLevelItsFaultAimedAt) {
  expect_holds_with_after<ParentGoes>(300);
}
TEST(TdpMap, ATableThatWentIsNotListed) {
  expect_holds_with_after<ListedAfterItWent>(300);
}
TEST(TdpMap, ATableIsNotLinkedBelowOneThatWent) {
  expect_holds_with_after<LinkedBelowWhatGoes>(500);
}
TEST(TdpZap, AnEntryAndTheTableItIsInAreTakenOutTogether) {
  expect_holds_with_after<FrozenBelowWhatGoes>(500);
}
TEST(TdpMap, OfTwoInstallersOneIsFirst) {
  expect_holds_with_after<SameFrame>(500);
}
TEST(TdpMap, WhatAChangeOvertookIsNotUsed) {
  expect_holds_with_after<InstallAgainstChange>(1500);
}
TEST(TdpMap, ALargeEntryIsNotPutOverAChangeOfAPartOfIt) {
  expect_holds_with_after<LargeInstallAgainstChange>(1500);
}
TEST(TdpZap, ATableIsGivenBackAfterEveryWalkHasLeft) {
  expect_holds_with_after<WalkAgainstRelease>(500);
}
TEST(TdpZap, LockFreeWritersBringNothingBack) {
  expect_holds_with_after<LockFreeAgainstZap>(800);
}
TEST(TdpZap, AnEntryThatIsGoneAndNotFlushedIsOwedByWhoeverLooks) {
  expect_holds_with_after<TwoZaps>(2000);
}
TEST(TdpRoots, WhatAnInvalidationOvertookIsNotInstalled) {
  expect_holds_with_after<InstallAgainstInvalidation>(500);
}
TEST(TdpRoots, OneThatAVcpuWalksTellsWhatTheVcpuMayUse) {
  expect_holds_with_after<OldRootAgainstSlots>(800);
}
TEST(TdpRoots, TablesOfAnOldOneAreGivenBackAfterEveryReadSection) {
  expect_holds_with_after<OldRootAgainstRelease>(500);
}
TEST(TdpRoots, ComeAndGoWhileFaultsLoadThem) {
  expect_holds_with_after<RootsAgainstInvalidation>(300);
}
TEST(TdpRoots, TheLastUserMayGiveOneUpBesideTheAudit) {
  expect_holds_with_after<LastUserBesideTheAudit>(200);
}

}  // namespace
}  // namespace stagetwo::test

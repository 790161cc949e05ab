// SPDX-License-Identifier: Apache-2.0
// An absent page comes back exactly once, whoever wants it and whatever else happens to it.
#include "tests/sched/owners_scenarios.h"

namespace stagetwo::test {
namespace {

TEST(Owners, APageComesBackOnceHoweverManyTouchIt) {
  expect_holds<ManyTouchers>();
}
TEST(Owners, TakingAndBringingBackNeverOverlap) {
  expect_holds<TouchersAgainstTaker>();
}
TEST(Owners, WhatTheClientGaveUpDoesNotComeBack) {
  expect_holds<ChangeAgainstTouchAndTake>();
}
TEST(Owners, WhatTwoChangesGiveUpIsDiscardedOnce) {
  expect_holds<ChangeAgainstChange>();
}
TEST(Owners, AChangeThatFailsLeavesThePageToTheOneThatSucceeds) {
  expect_holds<ChangeAgainstFailure>();
}
TEST(Owners, TwoChangesThatFailLeaveThePage) {
  expect_holds<FailureAgainstFailure>();
}
TEST(Owners, AHeldPageIsNotTaken) {
  expect_holds<HoldAgainstTaker>();
}
TEST(Owners, WhatAThreadInTheEngineStandsOnIsNotTaken) {
  expect_holds<FootingAgainstTaker>();
}
TEST(Owners, WhatAThreadStandsOnThatWasInTheEngineBeforeIsNotTaken) {
  expect_holds<FootingAgainstFirstTaker>();
}
TEST(Owners, ARunComesBackOncePageByPage) {
  expect_holds<RunAgainstTouchers>();
}
TEST(Owners, AHoleThatFailsLeavesNoPageToAnUnmapThatWaitsForIt) {
  expect_holds<FailedPunchAgainstUnmap>();
}
TEST(Owners, ViewsFoundBeforeAMappingDoNotReplaceThoseThatNameIt) {
  expect_holds<ViewsAgainstMapping>(300);
}
TEST(Owners, AForkFindsEveryPageInItsPlace) {
  expect_holds<ForkAgainstTaker>();
}

}  // namespace
}  // namespace stagetwo::test

// SPDX-License-Identifier: Apache-2.0
// The dirty log over the tables: the mark comes after the right to store, and a harvest waits for
// whoever may store by what it takes away.
#include "tests/sched/dirty_scenarios.h"

namespace stagetwo::test {
namespace {

TEST(HarvestAgainstRestore, NoStoreIsInNoHarvest) {
  expect_holds_with_after<HarvestAgainstRestore>(2000);
}
TEST(HarvestAgainstTwo, AStoreByAnothersRightIsInAHarvestToo) {
  expect_holds_with_after<HarvestAgainstTwo>(1000);
}
TEST(HarvestOfAnOldMark, TheRightThatCameAfterTheMarkIsTakenWithIt) {
  expect_holds_with_after<HarvestOfAnOldMark>(2000);
}
TEST(LogBeginsAgainstInstall, WhatIsStoredAfterTheCallIsInAHarvest) {
  expect_holds_with_after<LogBeginsAgainstInstall>(1000);
}
TEST(SplitAgainstStores, NobodyFaultsAndNoDirtyBitIsLost) {
  expect_holds_with_after<SplitAgainstStores>(300);
}

}  // namespace
}  // namespace stagetwo::test

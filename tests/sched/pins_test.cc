// SPDX-License-Identifier: Apache-2.0
// A pinned page is one page for its device, whatever the client does to the address at the time.
#include "host/pin_table.h"

#include "tests/sched/pins_scenarios.h"

namespace stagetwo::test {
namespace {

TEST(Pins, APinHasThePageOfBeforeOrAfterAChange) {
  expect_holds<PinAgainstChange>(500);
}
TEST(Pins, ADeviceLosesNoStoreWhileItsPageMoves) {
  expect_holds<DeviceAgainstChange>(500);
}
TEST(Pins, AChangeWaitsForADeviceThatHasAskedWhereThePageIs) {
  expect_holds<SlowDeviceAgainstChange>(500);
}
TEST(Pins, ARefusedChangeIsNone) {
  expect_holds<DeviceAgainstRefusedChange>(500);
}
TEST(Pins, OfTwoChangesNoneUndoesTheOther) {
  expect_holds<TwoChanges>(500);
}
TEST(Pins, CountsAreExactWhileThePageMoves) {
  expect_holds<TwoPinsAgainstChange>(500);
}
TEST(Pins, TheLastUnpinDuringAChangeLeavesNothing) {
  expect_holds<UnpinAgainstChange>(500);
}
TEST(Pins, AForkFindsNoPageOnItsWay) {
  expect_holds<ForkAgainstChange>(500);
}

}  // namespace
}  // namespace stagetwo::test

// SPDX-License-Identifier: Apache-2.0
// A pinned page is one page for its device, whatever the client does to the address at the time.
#include "host/pin_table.h"

#include <sys/wait.h>
#include <unistd.h>

#include "host/process.h"
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
  expect_holds<RememberingDeviceAgainstChange>(500);
}
// In a child: the process's own tables would meet the changes of the other scenarios.
TEST(Pins, APageIsPinnedOrWithAnOwnerAndNeverBoth) {
  const pid_t child = fork();
  if (child == 0) {
    host::after_fork_child();
    expect_holds<PinAgainstTaker>(500);
    _exit(testing::Test::HasFailure() ? 1 : 0);
  }
  int status = -1;
  EXPECT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
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

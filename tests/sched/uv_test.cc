// SPDX-License-Identifier: Apache-2.0
// The races that the kernel's version of secure guests lost once, under the scheduler.
#include "tests/sched/uv_scenarios.h"

namespace stagetwo::test {
namespace {

constexpr unsigned kRuns = 400;

TEST(SecurePages, APageMovesOneWayAtATime) {
  expect_holds<TouchAgainstGuest>(kRuns);
}
TEST(SecurePages, ATouchAndASharingLeaveOnePageForBoth) {
  expect_holds<TouchAgainstShare>(kRuns);
}
TEST(SecurePages, AFrameThatIsGivenUpWhileItIsNamedIsNotUsed) {
  expect_holds<UnmapAgainstShare>(kRuns);
}
TEST(SecurePages, AReflectedFaultFindsTheFrameThatIsThere) {
  expect_holds<UnmapAgainstReflectedFault>(kRuns);
}
TEST(SecurePages, ASlotGoesWhenNobodyIsAtItsPages) {
  expect_holds<SlotGoesUnderTouch>(kRuns);
}
TEST(SecurePages, AResetDuringTheChangeOfStateLeavesAGuestThatIsOneThing) {
  expect_holds<ResetAgainstEsm>(kRuns);
}
TEST(SecurePages, LeftoversAreSecureWhenTheProcessTouchesThem) {
  expect_holds<TouchAgainstDone>(kRuns);
}
TEST(SecurePages, PluggedMemoryIsTheGuestsFromTheFirstTouch) {
  expect_holds<TouchAgainstPlug>(kRuns);
}

}  // namespace
}  // namespace stagetwo::test

// SPDX-License-Identifier: Apache-2.0
// Without its guards an absent page comes back twice, or with bytes the client has given up. The
// search runs in a child, since a failing schedule leaves locks held.
#include <sys/wait.h>
#include <unistd.h>

#include "base/guard.h"
#include "tests/sched/owners_scenarios.h"

namespace stagetwo::test {
namespace {

template <typename Scenario>
bool found_without(const char* guard) {
  const pid_t child = fork();
  if (child == 0) {
    mutation::remove(guard);
    _exit(search<Scenario>(5000).found ? 1 : 2);
  }
  int status = 0;
  waitpid(child, &status, 0);
  // A broken world may also end by one of its own checks.
  return WIFSIGNALED(status) || WEXITSTATUS(status) == 1;
}

TEST(OwnersFilling, WithoutTheStageTwoTouchersBringThePageBack) {
  EXPECT_TRUE(found_without<ManyTouchers>("owners_filling"));
}
TEST(OwnersChange, WithoutTheRefusalOldBytesComeBack) {
  EXPECT_TRUE(found_without<ChangeAgainstTouchAndTake>("owners_change"));
}
TEST(OwnersHold, WithoutTheRefusalAPageLeavesUnderASystemCall) {
  EXPECT_TRUE(found_without<HoldAgainstTaker>("owners_hold"));
}

}  // namespace
}  // namespace stagetwo::test

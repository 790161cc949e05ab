// SPDX-License-Identifier: Apache-2.0
// Without its guards a secure guest uses a page that the process gave up, and sharing publishes
// what a page was. Searches run in a child, since a failing schedule leaves locks held.
#include "tests/mutation/broken_without.h"
#include "tests/sched/uv_scenarios.h"

namespace stagetwo::test {
namespace {

TEST(UvRecheckFrame, WithoutItTheGuestUsesAFrameTheProcessGaveUp) {
  EXPECT_TRUE(
      broken_without({"uv_recheck_frame"}, [] { return search<UnmapAgainstShare>(3000).found; }));
}

TEST(UvTableGoing, WithoutItAVcpuUsesAPageOfThePoolThatIsNotItsOwn) {
  EXPECT_TRUE(broken_without({"uv_table_going"},
                             [] { return search<TranslationAgainstPageOut>(400).found; }));
}

// Does the VMM find anything but zeros where a page was paged out and then shared?
bool sharing_publishes() {
  SecureMachine m(4096, 8);
  m.plug(0, 0, 1);
  m.vmm_fill(0, 1);
  if (m.esm() != uv::Status::kSuccess || m.h_page_out(0) != uv::Status::kSuccess) return false;
  if (m.guest_call(uv::Call::kUvSharePage, 0, 1) != uv::Status::kSuccess) return false;
  return m.vmm_read(0) != Bytes(4096);
}

TEST(UvShareClears, WithoutItSharingPublishesWhatWasSealed) {
  EXPECT_FALSE(broken_without({}, [] { return sharing_publishes(); }));
  EXPECT_TRUE(broken_without({"uv_share_clears"}, [] { return sharing_publishes(); }));
}

}  // namespace
}  // namespace stagetwo::test

// SPDX-License-Identifier: Apache-2.0
// Without its guards a secure guest uses a page that the process gave up, and sharing publishes
// what a page was. Searches run in a child, since a failing schedule leaves locks held.
#include "tests/mutation/broken_without.h"
#include "tests/sched/uv_mended_scenarios.h"
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

// What upstream mended later, by the numbers of docs/checks-secure-guests.md.
TEST(UvPageIsTaken, A7_2_WithoutItAPageMovesBothWaysAtOnce) {
  EXPECT_TRUE(
      broken_without({"uv_page_is_taken"}, [] { return search<TouchAgainstGuest>(400).found; }));
}
TEST(UvAbortOfSecure, A7_8_WithoutItASecureGuestsPagesAreGivenInClear) {
  EXPECT_TRUE(
      broken_without({"uv_abort_of_secure"}, [] { return search<CallsAgainstReset>(400).found; }));
}
TEST(UvOptIn, A7_11_WithoutItNobodyAsksTheVmm) {
  EXPECT_TRUE(broken_without({"uv_opt_in"}, [] { return search<StartAgainstOptIn>(400).found; }));
}
TEST(UvCallOfGuest, A7_12_WithoutItAGuestMakesTheUltravisorsCalls) {
  EXPECT_TRUE(broken_without({"uv_call_of_guest"},
                             [] { return search<GuestsCallsAgainstEsm>(400).found; }));
}
TEST(UvAbortOfGuest, A7_13_WithoutItAVcpuThatShouldNotRunUndoesTheChange) {
  EXPECT_TRUE(broken_without({"uv_abort_of_guest"},
                             [] { return search<GuestsAbortAgainstEsm>(400).found; }));
}
TEST(UvPageInAnswer, A7_20_WithoutItAPageThatIsRefusedIsLost) {
  EXPECT_TRUE(
      broken_without({"uv_page_in_answer"}, [] { return search<PageInThatIsRefused>(400).found; }));
}
// With all of them each holds: it is the guard that is missed, nothing else.
TEST(UvGuards, WithThemNothingIsBroken) {
  EXPECT_FALSE(broken_without({}, [] {
    return search<TouchAgainstGuest>(20).found || search<CallsAgainstReset>(20).found ||
           search<StartAgainstOptIn>(20).found || search<GuestsCallsAgainstEsm>(20).found ||
           search<GuestsAbortAgainstEsm>(20).found || search<PageInThatIsRefused>(20).found;
  }));
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

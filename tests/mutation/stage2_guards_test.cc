// SPDX-License-Identifier: Apache-2.0
// Each guard of the fault path is there for a reason: without it the schedule test that names the
// reason fails. Method: the search runs in a child, since a failing schedule leaves locks held.
#include "tests/mutation/broken_without.h"
#include "tests/sched/stage2_scenarios.h"

namespace stagetwo::test {
namespace {

// True when a schedule breaks a scenario without the guard.
template <typename F>
bool found_without(const char* guard, F&& search_for_it) {
  return broken_without({guard}, [&] {
    host::notifiers_after_fork_child();
    return search_for_it();
  });
}

TEST(StaleFault, WithoutTheSequenceAPageLookedUpBeforeAChangeIsInstalledAfterIt) {
  EXPECT_TRUE(found_without("stale_fault", [] { return search<LookupAgainstChange>(5000).found; }));
}
TEST(SwapWaits, WithoutTheWaitAChangeEndsWithOtherSlotsThanItBeganWith) {
  EXPECT_TRUE(found_without("swap_waits", [] { return search<SlotsAgainstChange>(20000).found; }));
}
TEST(StaleAccess, WithoutTheTestAnOwnAccessUsesWhatChanges) {
  EXPECT_TRUE(
      found_without("stale_access", [] { return search<OwnWriteAgainstChange>(20000).found; }));
}
TEST(AckWait, WithoutTheWaitTheRangeChangesUnderAVcpu) {
  EXPECT_TRUE(found_without("ack_wait", [] { return search<LongBlockAgainstChange>(5000).found; }));
}
TEST(ReaderWait, WithoutTheWaitTheRangeChangesUnderAnOwnAccess) {
  EXPECT_TRUE(
      found_without("reader_wait", [] { return search<OwnWriteAgainstChange>(5000).found; }));
}
TEST(WalkersWait, WithoutTheMarksAFaultWritesToATableThatWasGivenBack) {
  EXPECT_TRUE(
      found_without("walkers_wait", [] { return search<RestoreAgainstTableRelease>(5000).found; }));
}
TEST(AuditWaits, WithoutTheWaitTheAuditMissesAMark) {
  EXPECT_TRUE(
      found_without("audit_waits", [] { return search<RestoreBesideTheAudit>(5000).found; }));
}
TEST(AuditAsksEpochs, WithoutItARootInACollectorsHandsIsHeldAgainstTheSlots) {
  EXPECT_TRUE(found_without("audit_asks_epochs",
                            [] { return search<SlotGoesBesideACollector>(20'000).found; }));
}
TEST(PassedIsKept, WithoutItARootStandsWithASlotThatWent) {
  EXPECT_TRUE(
      found_without("passed_is_kept", [] { return search<SlotAgainBesideTheAudit>(5000).found; }));
}
TEST(RingPush, WithoutTheReleaseAnEntryIsShownBeforeItsPage) {
  EXPECT_TRUE(found_without("ring_release", [] { return search<RingRound>(500).found; }));
}
TEST(RingPush, CountedAfterItIsShownAnEntryIsNotTaken) {
  EXPECT_TRUE(found_without("ring_count_first", [] { return search<RingRound>(500).found; }));
}

}  // namespace
}  // namespace stagetwo::test

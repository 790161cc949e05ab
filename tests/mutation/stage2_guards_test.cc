// SPDX-License-Identifier: Apache-2.0
// Each guard of the fault path is there for a reason: without it the schedule test that names the
// reason fails. Method: the search runs in a child, since a failing schedule leaves locks held.
#include <sys/wait.h>
#include <unistd.h>

#include "base/guard.h"
#include "tests/sched/stage2_scenarios.h"

namespace stagetwo::test {
namespace {

constexpr int kFound = 1;
constexpr int kSurvived = 2;

// True when a schedule breaks `Scenario` without the guard.
template <typename F>
bool found_without(const char* guard, F&& search_for_it) {
  const pid_t child = fork();
  if (child == 0) {
    host::notifiers_after_fork_child();
    mutation::remove(guard);
    _exit(search_for_it() ? kFound : kSurvived);
  }
  int status = 0;
  waitpid(child, &status, 0);
  // A broken world may also end by one of its own checks.
  return WIFSIGNALED(status) || WEXITSTATUS(status) == kFound;
}

TEST(StaleFault, WithoutTheRetryAnOldTranslationIsUsed) {
  EXPECT_TRUE(found_without("stale_fault", [] { return search<FaultAgainstChange>(5000).found; }));
}
TEST(StaleAccess, WithoutTheTestAnOwnAccessUsesWhatChanges) {
  EXPECT_TRUE(
      found_without("stale_access", [] { return search<OwnWriteAgainstChange>(5000).found; }));
}
TEST(SlotUsersWait, WithoutTheWaitAStoreIsUnknownToTheLogThatHasBegun) {
  EXPECT_TRUE(found_without("slot_users_wait", [] {
    for (unsigned i = 0; i < 20000; ++i) {
      FaultAgainstLoggingOn scenario;
      const auto outcome = sync::sched::run({.seed = i + 1}, FaultAgainstLoggingOn::kThreads,
                                            [&](unsigned index) { scenario.thread(index); });
      if (!outcome.finished() || scenario.lost_a_store()) return true;
    }
    return false;
  }));
}
TEST(AckWait, WithoutTheWaitTheRangeChangesUnderAVcpu) {
  EXPECT_TRUE(found_without("ack_wait", [] { return search<FaultAgainstChange>(5000).found; }));
}
TEST(ReaderWait, WithoutTheWaitTheRangeChangesUnderAnOwnAccess) {
  EXPECT_TRUE(
      found_without("reader_wait", [] { return search<OwnWriteAgainstChange>(5000).found; }));
}
TEST(AckWait, WithoutTheWaitADeletedSlotServes) {
  EXPECT_TRUE(found_without("ack_wait", [] { return search<FaultAgainstDelete>(5000).found; }));
}
TEST(ChangesWait, WithoutTheWaitANewSlotServesWhatAChangeTakes) {
  EXPECT_TRUE(
      found_without("create_waits", [] { return search<CreateAgainstChange>(20000).found; }));
}
TEST(HarvestFlush, WithoutTheFlushAStoreIsLost) {
  EXPECT_TRUE(found_without("harvest_flush", [] {
    for (unsigned i = 0; i < 5000; ++i) {
      HarvestAgainstStores scenario;
      const auto outcome = sync::sched::run({.seed = i + 1}, HarvestAgainstStores::kThreads,
                                            [&](unsigned index) { scenario.thread(index); });
      if (!outcome.finished()) return true;
      scenario.harvest();
      if (scenario.stores != scenario.harvested) return true;
    }
    return false;
  }));
}
TEST(RingReset, WithoutTheFlushAStoreIsLost) {
  EXPECT_TRUE(found_without("ring_reset_flush", [] {
    for (unsigned i = 0; i < 5000; ++i) {
      ResetAgainstStores scenario;
      const auto outcome = sync::sched::run({.seed = i + 1}, ResetAgainstStores::kThreads,
                                            [&](unsigned index) { scenario.thread(index); });
      if (!outcome.finished() || scenario.lost_a_store()) return true;
    }
    return false;
  }));
}
TEST(RingPush, WithoutTheReleaseAnEntryIsShownBeforeItsPage) {
  EXPECT_TRUE(found_without("ring_release", [] { return search<RingRound>(500).found; }));
}
TEST(RingPush, CountedAfterItIsShownAnEntryIsNotTaken) {
  EXPECT_TRUE(found_without("ring_count_first", [] { return search<RingRound>(500).found; }));
}

}  // namespace
}  // namespace stagetwo::test

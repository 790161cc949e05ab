// SPDX-License-Identifier: Apache-2.0
// The fault journey against everything that may come between, with the real code of stage2 and
// host.
#include "tests/sched/stage2_scenarios.h"

namespace stagetwo::test {
namespace {

TEST(FaultAgainstChange, NobodyHoldsATranslationWhileTheRangeChanges) {
  expect_holds<FaultAgainstChange>(2000);
}
TEST(FaultAgainstChange, WhatWasLookedUpBeforeTheChangeIsNotInstalledAfterIt) {
  expect_holds<LookupAgainstChange>(2000);
}
TEST(SlotsAgainstChange, AChangeSeesTheSlotsItBeganWithFromStartToEnd) {
  expect_holds<SlotsAgainstChange>(600);
}
TEST(FaultAgainstChange, TwoVcpusHold) {
  expect_holds<TwoFaultsAgainstChange>(1000);
}
TEST(FaultAgainstDelete, NoSlotIsSeenOnlyWhenNoTranslationIsLeft) {
  expect_holds<FaultAgainstDelete>(1000);
}
TEST(OwnWriteAgainstChange, NoAccessIsInFlightWhileTheRangeChanges) {
  expect_holds<OwnWriteAgainstChange>(2000);
}
TEST(CreateAgainstChange, ANewSlotDoesNotServeWhatAChangeTakes) {
  expect_holds<CreateAgainstChange>(1000);
}
TEST(RestoreAgainstTableRelease, NothingIsWrittenToATableThatWasGivenBack) {
  expect_holds<RestoreAgainstTableRelease>(1000);
}

TEST(RestoreBesideTheAudit, ARightIsNotMissedThatIsMarkedAfterIt) {
  expect_holds<RestoreBesideTheAudit>(1000);
}
TEST(SlotGoesBesideACollector, WhatWasLeftIsNotHeldAgainstTheSlots) {
  expect_holds<SlotGoesBesideACollector>(3000);
}
TEST(SlotAgainBesideTheAudit, NothingIsLeftOfASlotThatWent) {
  expect_holds<SlotAgainBesideTheAudit>(500);
}

TEST(HarvestAgainstStores, NoStoreIsInNoHarvest) {
  const unsigned seeds = seed_is_fixed() ? 1 : 2000;
  for (unsigned i = 0; i < seeds; ++i) {
    const std::uint64_t chosen = seed_is_fixed() ? seed() : i + 1;
    HarvestAgainstStores scenario;
    const auto outcome = sync::sched::run({.seed = chosen}, HarvestAgainstStores::kThreads,
                                          [&](unsigned index) { scenario.thread(index); });
    ASSERT_TRUE(outcome.finished()) << "STAGETWO_SEED=" << chosen << ": " << outcome.why;
    scenario.last_harvest();
    ASSERT_FALSE(HasFailure()) << "STAGETWO_SEED=" << chosen;
  }
}

TEST(ResetAgainstStores, NoStoreIsInNoEntry) {
  const unsigned seeds = seed_is_fixed() ? 1 : 1000;
  for (unsigned i = 0; i < seeds; ++i) {
    const std::uint64_t chosen = seed_is_fixed() ? seed() : i + 1;
    ResetAgainstStores scenario;
    const auto outcome = sync::sched::run({.seed = chosen}, ResetAgainstStores::kThreads,
                                          [&](unsigned index) { scenario.thread(index); });
    ASSERT_TRUE(outcome.finished()) << "STAGETWO_SEED=" << chosen << ": " << outcome.why;
    ASSERT_FALSE(scenario.lost_a_store()) << "STAGETWO_SEED=" << chosen;
  }
}
TEST(RingRound, EachPageOnceInOrderAndAlwaysRoom) {
  expect_holds<RingRound>(200);
}

}  // namespace
}  // namespace stagetwo::test

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

TEST(SecurePages, AWalkThroughAllPagesEndsWhenSlotsGo) {
  expect_holds<UnshareAllAgainstUnplug>(kRuns);
}
TEST(SecurePages, EverybodyComesToAnEndInAPoolThatIsTooSmall) {
  constexpr u64 kSeeds = 200;
  for (u64 i = 0; i < kSeeds; ++i) {
    const u64 seed = seed_is_fixed() ? test::seed() : i + 1;
    auto* const world = new Everybody(seed);  // kept where it does not end
    sched::Options options;
    options.seed = seed;
    options.max_steps = 400'000;
    const auto end =
        sched::run(options, Everybody::kThreads, [&](unsigned index) { world->thread(index); });
    ASSERT_TRUE(end.finished()) << "STAGETWO_SEED=" << seed << ": " << end.why << " after "
                                << end.steps << " steps";
    delete world;
    if (seed_is_fixed()) break;
  }
}
TEST(SecurePages, AVcpusTranslationIsGoneBeforeItsPageIs) {
  expect_holds<TranslationAgainstPageOut>(kRuns);
}
TEST(SecurePages, AVcpuSeesNothingBetweenItsOwnBytesAndTheProcesss) {
  expect_holds<TranslationAgainstShare>(kRuns);
}
TEST(SecurePages, PagesThatLeaveAtOnceNeedOnePlaceOfTheCipherEach) {
  expect_holds<ZerosLeaveAtOnce>(kRuns);
}
TEST(SecurePages, AnAbortNeedsOnePlaceOfTheCipherBesideATouch) {
  expect_holds<TouchAgainstAbort>(kRuns);
}

}  // namespace
}  // namespace stagetwo::test

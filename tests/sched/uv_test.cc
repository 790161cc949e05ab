// SPDX-License-Identifier: Apache-2.0
// The races that the kernel's version of secure guests lost once, under the scheduler.
#include <algorithm>

#include "tests/sched/uv_mended_scenarios.h"
#include "tests/sched/uv_process_scenarios.h"
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
TEST(SecurePages, ASlotThatGoesUnderAVcpusWishIsNoFault) {
  expect_holds<SlotGoesUnderAWish>(kRuns);
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

// ---- what was no race, and meets others here all the same ---------------------------------------

constexpr unsigned kSome = 160;

TEST(SecurePages, WhoWaitsForALockSleepsSoItsHolderMayToo) {
  u64 most = 0, most_spinning = 0;
  for (u64 seed = 1; seed <= 20; ++seed) {
    most = std::max(most, SleepsUnderALock<RoomsLock>().steps_of_waiter(seed));
    most_spinning = std::max(most_spinning, SleepsUnderALock<SpinningLock>().steps_of_waiter(seed));
  }
  EXPECT_LE(most, 70u) << "it looks 64 times";
  EXPECT_GT(most_spinning, 200u) << "it would be seen";
}
TEST(SecurePages, APlugWithoutMemoryIsUndoneWhilePagesMove) {
  expect_holds<PlugWithoutMemory>(kSome / 4);
}
TEST(SecurePages, AnEmptyPageHasItsStandIn) {
  expect_holds<TouchAgainstAnEmptyPage>(kSome);
}
TEST(SecurePages, CallsTheStateDoesNotAllowAreRefusedAtAnyTime) {
  expect_holds<CallsAgainstReset>(kSome);
}
TEST(SecurePages, APageOutThatFailsLeavesThePageToOthers) {
  expect_holds<PageOutThatFails>(kSome);
}
TEST(SecurePages, AStartThatFailsComesBack) {
  expect_holds<StartThatFails>(kSome);
}
TEST(SecurePages, AStartWantsTheVmmsWord) {
  expect_holds<StartAgainstOptIn>(kSome);
}
TEST(SecurePages, AGuestMakesNoneOfTheUltravisorsCalls) {
  expect_holds<GuestsCallsAgainstEsm>(kSome);
}
TEST(SecurePages, AnAbortByAGuestThatShouldNotRunUndoesNothing) {
  expect_holds<GuestsAbortAgainstEsm>(kSome);
}
TEST(SecurePages, DoneMovesNoPageTwiceAndLetsOthersIn) {
  DoneAgainstAPageThatHasBeenIn::let_in = 0;
  expect_holds<DoneAgainstAPageThatHasBeenIn>(kSome);
  EXPECT_TRUE(seed_is_fixed() || DoneAgainstAPageThatHasBeenIn::let_in != 0);
}
TEST(SecurePages, ASlotThatComesBackHasNothingOfTheOldOne) {
  expect_holds<SlotComesBack>(kSome);
}
TEST(SecurePages, EveryPageOfASlotGoesThoughOneIsAHole) {
  expect_holds<EveryPageOfASlotGoes>(kSome);
}
TEST(SecurePages, AReferenceThatPassesIsWaitedFor) {
  expect_holds<AReferenceThatPasses>(kSome);
}
TEST(SecurePages, APageThatIsRefusedIsStillThere) {
  expect_holds<PageInThatIsRefused>(kSome);
}

// ---- pages that leave several at once -----------------------------------------------------------

class PagesAhead : public testing::Test {
 protected:
  static constexpr unsigned kFew = 200;  // real pages and system calls
  void SetUp() override {
    ASSERT_TRUE(host::backstop::install().has_value());
    if (!host::userfault::open()) GTEST_SKIP() << "userfaultfd is denied here";
  }
};

TEST_F(PagesAhead, ATouchOfOneAndTheGuestsWishForItGiveItOnce) {
  expect_holds<TouchAgainstPagesAhead>(kFew);
}
TEST_F(PagesAhead, WhoHasOneInHandIsWaitedFor) {
  expect_holds<TouchOfThePageAhead>(kFew);
}
TEST_F(PagesAhead, ThreeThatWantThemInOrderAllGetThem) {
  expect_holds<ThreeWantPagesInOrder>(kFew);
}
TEST_F(PagesAhead, OneThatARunOfAnotherTakesIsWhoseItIs) {
  expect_holds<RunTakesForAnother>(kFew);
}
TEST_F(PagesAhead, OneThatIsWantedOutAgainIsOut) {
  expect_holds<PageOutAgainstPagesAhead>(kFew);
}
TEST_F(PagesAhead, PiecesOfOnePageLeaveAndComeTogether) {
  expect_holds<TouchesOfPieces>(kFew);
}
TEST_F(PagesAhead, AResetHasThemBackAndWipesThem) {
  expect_holds<ResetAgainstPagesAhead>(kFew);
}
TEST_F(PagesAhead, AStoreToAPageThatBecomesTheGuestsIsNotLost) {
  expect_holds<StoresAgainstEsm>(kFew);
}

}  // namespace
}  // namespace stagetwo::test

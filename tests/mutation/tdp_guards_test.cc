// SPDX-License-Identifier: Apache-2.0
// Each guard of the TDP MMU is there for a reason: without it the schedule test that names the
// reason fails. Method: the search runs in a child, since a failing schedule leaves locks held and
// a broken table ends the process.
#include "tests/mutation/broken_without.h"
#include "tests/sched/dirty_scenarios.h"

namespace stagetwo::test {
namespace {

// True when some schedule breaks `Scenario` without the guards.
template <typename Scenario>
bool found_without(std::initializer_list<const char*> guards, unsigned limit) {
  return broken_without(guards, [&] { return search_with_after<Scenario>(limit).found; });
}

TEST(FrozenBeforeLeaf, WithoutTheTestALeafIsPutOverAFrozenEntry) {
  EXPECT_TRUE(found_without<FrozenGoal>({"frozen_before_leaf"}, 3000));
}
TEST(LeafOnlyAtGoal, WithoutTheTestAWalkThatEndedHighGoesOnToMap) {
  EXPECT_TRUE(found_without<ParentGoes>({"leaf_only_at_goal"}, 3000));
}
// The level of the table is the second line behind the level of the walk: only without both does a
// leaf stand where a table belongs.
TEST(UnexpectedLevel, WithoutBothTestsTheAuditFindsALeafAtTheWrongLevel) {
  EXPECT_TRUE((found_without<ParentGoesAudited>({"leaf_only_at_goal", "unexpected_level"}, 3000)));
  EXPECT_FALSE((found_without<ParentGoesAudited>({"leaf_only_at_goal"}, 1000)));
  EXPECT_FALSE((found_without<ParentGoesAudited>({"unexpected_level"}, 1000)));
}
TEST(NxRecheckUnderLock, WithoutTheTestATableThatWentIsListed) {
  EXPECT_TRUE(found_without<ListedAfterItWent>({"nx_recheck_under_lock"}, 3000));
}
// No schedule needed: the table is there or it is not.
TEST(NxSkipsLogged, WithoutTheTestTheTableOfALoggedSlotIsZapped) {
  const auto is_zapped = [] {
    TdpWorld world(stage2::TdpPolicy{.nx_huge_pages = true});
    MmuContext context(world.mmu);
    world.add_slot(0, 4096, kWorldHva);
    static_cast<void>(world.fault(context, 512, Access::kExec, 2));
    EXPECT_EQ(1U, world.mmu.count_pages().nx_lpage_splits);
    world.slots[0].flags |= stage2::kLogDirtyPages;
    world.mmu.recover_nx(1);
    return world.walk(context, 512).kind == Walk::Kind::kMiss;
  };
  EXPECT_FALSE(is_zapped());
  mutation::remove("nx_skips_logged");
  EXPECT_TRUE(is_zapped());
  mutation::restore_all();
}
// A removal that comes from an entry where nothing is.
TEST(NotesUsed, WithoutTheNoteARemovalPassesByWhatIsMapped) {
  const auto is_left = [] {
    TdpWorld world;
    MmuContext context(world.mmu);
    world.add_slot(0, 4096, kWorldHva);
    static_cast<void>(world.fault(context, 5, Access::kWrite));
    pt::Gather removed;
    static_cast<void>(world.mmu.zap_leafs(0, GfnRange(Gfn(0), 7), &removed, false));
    world.mmu.flush_and_release(&removed);
    return world.walk(context, 5).kind == Walk::Kind::kHit;
  };
  EXPECT_FALSE(is_left());
  mutation::remove("notes_used");
  EXPECT_TRUE(is_left());
  mutation::restore_all();
}
TEST(StaleFault, WithoutTheTestAnOldTranslationIsUsed) {
  EXPECT_TRUE(found_without<InstallAgainstChange>({"stale_fault"}, 3000));
}
TEST(SequenceFirst, WithTheCountDroppedFirstAnOldPageIsInstalled) {
  EXPECT_TRUE(found_without<InstallAgainstChange>({"sequence_first"}, 20000));
}
TEST(StaleRange, WithoutTheTestALargeEntryCoversAChangingPage) {
  EXPECT_TRUE(found_without<LargeInstallAgainstChange>({"stale_range"}, 3000));
}
TEST(StaleFault, WithoutTheTestAFaultInstallsIntoAnInvalidRoot) {
  EXPECT_TRUE(found_without<InstallAgainstInvalidation>({"stale_fault"}, 3000));
}
TEST(TdpGrace, WithoutTheWaitAWalkReadsATableThatWasGivenBack) {
  EXPECT_TRUE(found_without<WalkAgainstRelease>({"tdp_grace"}, 3000));
}
TEST(RetiredWaits, WithoutTheTestAnOldRootIsTakenApartUnderAVcpu) {
  EXPECT_TRUE(found_without<OldRootAgainstSlots>({"retired_waits"}, 3000));
}
TEST(SweepFreezes, WithoutItATableIsLinkedBelowOneThatWent) {
  EXPECT_TRUE(found_without<LinkedBelowWhatGoes>({"sweep_freezes"}, 3000));
}
TEST(PendingFlush, WithoutTheNumberASecondRemovalTrustsAnUnflushedOne) {
  EXPECT_TRUE(found_without<TwoZaps>({"pending_flush"}, 20000));
}
TEST(FastOnlyMmuWritable, WithoutTheTestAReadOnlyPageIsMadeWritable) {
  EXPECT_TRUE(found_without<FastOnReadOnly>({"fast_only_mmu_writable"}, 10));
}
TEST(BigWriterDrains, WithoutTheWaitAnInstallPassesARemoval) {
  EXPECT_TRUE(found_without<InstallAgainstChange>({"big_writer_drains"}, 3000));
}
TEST(MarkAfterWrite, MarkedFirstAStoreIsInNoHarvest) {
  EXPECT_TRUE(found_without<HarvestAgainstRestore>({"mark_after_write"}, 5000));
}
TEST(MarkIsAWrite, AskedFirstTheRightThatCameAfterAnOldMarkStays) {
  EXPECT_TRUE(found_without<HarvestOfAnOldMark>({"mark_is_a_write"}, 5000));
}
TEST(Guards, AreAllQuietWhenNoneIsRemoved) {
  EXPECT_FALSE(found_without<InstallAgainstChange>({}, 300));
  EXPECT_FALSE(found_without<InstallAgainstInvalidation>({}, 300));
  EXPECT_FALSE(found_without<TwoZaps>({}, 300));
  EXPECT_FALSE(found_without<HarvestAgainstRestore>({}, 300));
}

}  // namespace
}  // namespace stagetwo::test

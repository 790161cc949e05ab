// SPDX-License-Identifier: Apache-2.0
// Goal: while pages are logged every store to them faults once per harvest, whatever size they had
// before, and afterwards they are large again.
#include <gtest/gtest.h>

#include "base/failpoint.h"
#include "tests/support/tdp_world.h"

namespace stagetwo::test {
namespace {

using stage2::kLogDirtyPages;
using stage2::PageCounts;

constexpr u64 kGiB = 262144;  // in frames

struct TdpLog : ::testing::Test {
  TdpWorld world;
  MmuContext context{world.mmu};
  TdpLog() { world.add_slot(0, 2 * kGiB, kWorldHva); }
  ~TdpLog() override { world.mmu.check_world(); }

  Slot& slot() { return world.slots[0]; }
  Word entry(u64 gfn, unsigned level = 1) {
    return TdpTestAccess::find(world.mmu, context, Gfn(gfn), level).word;
  }
  bool writable(u64 gfn) {
    const auto found = TdpTestAccess::find(world.mmu, context, Gfn(gfn));
    return Format::is_leaf(found.word, found.level) && Format::is_writable(found.word);
  }
  void map(u64 gfn, unsigned level = 1, Access access = Access::kWrite) {
    ASSERT_EQ(world.fault(context, gfn, access, level), FaultOutcome::kFixed);
  }
  void protect(u64 first, u64 mask) { world.mmu.write_protect_masked(slot(), first, &mask, 1); }
  PageCounts pages() { return world.mmu.count_pages(); }
};

// --- protection ---

TEST_F(TdpLog, ProtectingASlotLeavesNoEntryWritableAndEveryRightRestorable) {
  for (u64 gfn : {u64{0}, u64{5}, u64{511}, u64{1024}}) map(gfn);
  map(2048, 2);
  map(kGiB, 3);
  world.mmu.write_protect_slot(slot(), 1);
  for (u64 gfn : {u64{0}, u64{5}, u64{511}, u64{1024}, u64{2048}, u64{2049}, 2 * kGiB - 1}) {
    EXPECT_FALSE(writable(gfn)) << gfn;
    EXPECT_EQ(world.walk(context, gfn).kind, Walk::Kind::kHit) << "still readable: " << gfn;
    const auto found = TdpTestAccess::find(world.mmu, context, Gfn(gfn));
    EXPECT_TRUE(Format::is_restorable(found.word)) << gfn;
  }
}

TEST_F(TdpLog, ProtectingFromALevelLeavesSmallerEntriesAlone) {
  map(5);
  map(512, 2);
  world.mmu.write_protect_slot(slot(), 2);
  EXPECT_TRUE(writable(5));
  EXPECT_FALSE(writable(512));
}

TEST_F(TdpLog, ProtectingASlotStaysInItsFramesAndItsAddressSpace) {
  world.add_slot(4 * kGiB, 512, kWorldHva + (8 * kGiB << kPageShift));
  map(5);
  map(4 * kGiB);
  Slot other = slot();
  other.id = 1 << 16;
  world.mmu.write_protect_slot(other, 1);
  EXPECT_TRUE(writable(5)) << "another address space";
  world.mmu.write_protect_slot(slot(), 1);
  EXPECT_FALSE(writable(5));
  EXPECT_TRUE(writable(4 * kGiB));
}

TEST_F(TdpLog, AMaskProtectsExactlyItsPages) {
  for (u64 gfn = 100; gfn < 180; ++gfn) map(gfn);
  protect(104, 0x8000000000000005);  // pages 104, 106, 167
  for (u64 gfn = 100; gfn < 180; ++gfn) {
    EXPECT_EQ(writable(gfn), gfn != 104 && gfn != 106 && gfn != 167) << gfn;
  }
}

TEST_F(TdpLog, AMaskMayLieAcrossTables) {
  for (u64 gfn = 480; gfn < 544; ++gfn) map(gfn);
  protect(480, ~u64{0});
  for (u64 gfn = 480; gfn < 544; ++gfn) EXPECT_FALSE(writable(gfn)) << gfn;
}

TEST_F(TdpLog, AMaskGoesOverWhatIsNotMapped) {
  map(600);
  protect(512 - 32, ~u64{0});
  protect(10 * 512, ~u64{0});
  EXPECT_TRUE(writable(600));
  const u64 masks[3] = {0, u64{1} << 24, 0};
  world.mmu.write_protect_masked(slot(), 512, masks, 3);  // 512 + 64 + 24
  EXPECT_FALSE(writable(600));
}

TEST_F(TdpLog, AMaskTakesTheRightOfALargeEntryAsAWhole) {
  map(512, 2);
  protect(600, 1);
  EXPECT_FALSE(writable(512));
  EXPECT_FALSE(writable(600));
  EXPECT_EQ(pages().pages_2m, 1U);
}

TEST_F(TdpLog, AccessedAndDirtySurviveProtection) {
  map(5);
  ASSERT_EQ(world.walk(context, 5, Access::kWrite).kind, Walk::Kind::kHit);
  protect(5, 1);
  EXPECT_TRUE(Format::is_accessed(entry(5)));
  EXPECT_TRUE(Format::is_dirty(entry(5)));
}

TEST_F(TdpLog, TheNextStoreTakesTheRightBackAndMarksThePageOnce) {
  slot().flags = kLogDirtyPages;
  slot().dirty = *stage2::DirtyBitmap::create(slot().page_count);
  map(5);
  EXPECT_EQ(slot().dirty->words[0].exchange(0), u64{1} << 5);
  protect(5, 1);
  Fault fault = world.found(5, Access::kWrite);
  FaultOutcome outcome = FaultOutcome::kRetry;
  ASSERT_TRUE(world.mmu.fast_page_fault(context, fault, &outcome));
  EXPECT_EQ(outcome, FaultOutcome::kFixed);
  ASSERT_TRUE(world.mmu.fast_page_fault(context, fault, &outcome));
  EXPECT_EQ(outcome, FaultOutcome::kSpurious);
  EXPECT_EQ(slot().dirty->words[0].load(), u64{1} << 5);
  EXPECT_EQ(world.dirty_marks.load(), 2U);
  stage2::DirtyBitmap::destroy(slot().dirty);
  slot().dirty = nullptr;
}

// --- splitting ---

TEST_F(TdpLog, SplittingAGigabyteOfLargePagesKeepsEveryTranslationAndFlushesNothing) {
  for (u64 gfn = 0; gfn < kGiB; gfn += 512)
    map(gfn, 2, gfn % 1024 == 0 ? Access::kWrite : Access::kRead);
  ASSERT_EQ(pages().pages_2m, 512U);
  world.mmu.write_protect_slot(slot(), 1);
  const u64 flushes = world.flushes.load();
  const u64 graces = world.grace_periods.load();
  world.mmu.try_split_huge(slot(), slot().gfns(), 1);
  EXPECT_EQ(world.flushes.load(), flushes);
  EXPECT_EQ(world.grace_periods.load(), graces);
  EXPECT_EQ(pages().pages_2m, 0U);
  EXPECT_EQ(pages().pages_4k, 262144U);
  for (u64 gfn = 0; gfn < kGiB; gfn += 97) {
    const Walk walk = world.walk(context, gfn);
    ASSERT_EQ(walk.kind, Walk::Kind::kHit) << gfn;
    ASSERT_EQ(walk.page.raw(), kWorldHva + gfn * kPageSize);
    ASSERT_FALSE(walk.writable);
    ASSERT_TRUE(Format::is_restorable(entry(gfn)));
  }
}

TEST_F(TdpLog, ChildrenInheritRightsAndBits) {
  map(512, 2, Access::kWrite);
  ASSERT_EQ(world.walk(context, 512, Access::kWrite).kind, Walk::Kind::kHit);
  map(1024, 2, Access::kRead);
  const Word dirty = entry(512, 2);
  const Word read = entry(1024, 2);
  world.mmu.try_split_huge(slot(), slot().gfns(), 1);
  for (u64 gfn : {u64{512}, u64{600}, u64{1023}}) {
    EXPECT_EQ(Format::attributes(entry(gfn)), Format::attributes(dirty)) << gfn;
  }
  EXPECT_EQ(Format::attributes(entry(1535)), Format::attributes(read));
}

TEST_F(TdpLog, AGigabytePageIsSplitInTwoSteps) {
  map(kGiB, 3);
  world.mmu.try_split_huge(slot(), slot().gfns(), 2);
  EXPECT_EQ(pages().pages_2m, 512U);
  world.mmu.try_split_huge(slot(), slot().gfns(), 1);
  EXPECT_EQ(pages().pages_4k, 262144U);
  EXPECT_EQ(pages().pages_2m, 0U);
}

TEST_F(TdpLog, AGigabytePageIsSplitInOneCallFromTheTopDown) {
  map(kGiB, 3);
  world.mmu.try_split_huge(slot(), slot().gfns(), 1);
  EXPECT_EQ(pages().pages_4k, 262144U);
  EXPECT_EQ(pages().pages_1g + pages().pages_2m, 0U);
}

TEST_F(TdpLog, OnlyTheRangeIsSplit) {
  map(0, 2);
  map(512, 2);
  map(1024, 2);
  world.mmu.try_split_huge(slot(), GfnRange(Gfn(600), 10), 1);
  EXPECT_EQ(pages().pages_2m, 2U);
  EXPECT_EQ(pages().pages_4k, 512U);
}

TEST_F(TdpLog, WithoutMemoryASplitStopsAndTheRestStaysLarge) {
  for (u64 gfn = 0; gfn < 512 * 100; gfn += 512) map(gfn, 2);
  failpoint::arm("stage2.table_page", 60, 1000);
  world.mmu.try_split_huge(slot(), slot().gfns(), 1);
  failpoint::disarm();
  EXPECT_GT(pages().pages_2m, 0U);
  EXPECT_GT(pages().pages_4k, 0U);
  world.mmu.try_split_huge(slot(), slot().gfns(), 1);
  EXPECT_EQ(pages().pages_2m, 0U);
}

TEST_F(TdpLog, ASplitLeavesNoTableBehind) {
  map(512, 2);
  const u64 live = world.mmu.tables().live();
  world.mmu.try_split_huge(slot(), slot().gfns(), 1);
  EXPECT_EQ(world.mmu.tables().live(), live + 1);
}

// --- recovery ---

TEST_F(TdpLog, WhenLoggingEndsLargePagesAreBackAfterTheNextAccess) {
  for (u64 gfn = 0; gfn < kGiB; gfn += 512) map(gfn, 2);
  world.mmu.try_split_huge(slot(), slot().gfns(), 1);
  ASSERT_EQ(pages().pages_4k, 262144U);
  const u64 tables = pages().tables;
  world.mmu.recover_huge(slot(), GfnRange(Gfn(0), kGiB), 2);
  EXPECT_EQ(pages().pages_4k, 0U);
  EXPECT_EQ(pages().tables, tables - 512);
  for (u64 gfn = 7; gfn < kGiB; gfn += 512) map(gfn, 2, Access::kRead);
  EXPECT_EQ(pages().pages_2m, 512U);
}

TEST_F(TdpLog, OnlyWhatTheHostHasInOnePieceIsRecovered) {
  map(512, 2);
  map(1024, 2);
  world.mmu.try_split_huge(slot(), slot().gfns(), 1);
  world.mmu.recover_huge(slot(), GfnRange(Gfn(512), 512), 1);
  EXPECT_EQ(pages().pages_4k, 1024U);
  world.mmu.recover_huge(slot(), GfnRange(Gfn(512), 512), 2);
  EXPECT_EQ(pages().pages_4k, 512U);
  EXPECT_EQ(world.walk(context, 1030).kind, Walk::Kind::kHit);
}

TEST_F(TdpLog, ASlotsEdgesAreNotRecovered) {
  world.add_slot(4 * kGiB, 700, kWorldHva + (8 * kGiB << kPageShift));
  map(4 * kGiB + 600);
  map(4 * kGiB + 5);
  Slot& small = world.slots[1];
  world.mmu.recover_huge(small, small.gfns(), 2);
  EXPECT_EQ(world.walk(context, 4 * kGiB + 600).kind, Walk::Kind::kHit);
  EXPECT_EQ(world.walk(context, 4 * kGiB + 5).kind, Walk::Kind::kMiss);
}

TEST_F(TdpLog, MixedAttributesAreNotRecovered) {
  map(512, 2);
  world.mmu.try_split_huge(slot(), slot().gfns(), 1);
  world.mixed = true;
  world.mmu.recover_huge(slot(), slot().gfns(), 2);
  EXPECT_EQ(pages().pages_4k, 512U);
}

TEST_F(TdpLog, FindsWhatIsSmallFromAFrameOn) {
  map(100);
  map(512, 2);
  map(1300);
  Gfn at(0);
  ASSERT_TRUE(world.mmu.find_small(slot(), &at, slot().gfns().end()));
  EXPECT_EQ(at.raw(), 0U);
  at = Gfn(300);
  ASSERT_TRUE(world.mmu.find_small(slot(), &at, slot().gfns().end()));
  EXPECT_EQ(at.raw(), 300U) << "not backwards";
  at = Gfn(512);
  ASSERT_TRUE(world.mmu.find_small(slot(), &at, slot().gfns().end()));
  EXPECT_EQ(at.raw(), 1024U);
  at = Gfn(1536);
  EXPECT_FALSE(world.mmu.find_small(slot(), &at, slot().gfns().end()));
}

TEST_F(TdpLog, RecoveryFlushesBeforeAnotherMayInstall) {
  map(512);
  const u64 flushes = world.flushes.load();
  world.mmu.recover_huge(slot(), GfnRange(Gfn(512), 512), 2);
  EXPECT_GT(world.flushes.load(), flushes);
}

}  // namespace
}  // namespace stagetwo::test

// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include "base/trace.h"
#include "tests/support/tdp_world.h"

namespace stagetwo::test {
namespace {

using stage2::kLogDirtyPages;
using stage2::kReadonly;

constexpr u64 kGiB = 262144;  // in frames

// 4 GiB of guest memory at frame 0, host addresses aligned to 1 GiB.
struct TdpMap : ::testing::Test {
  TdpWorld world;
  MmuContext context{world.mmu};
  TdpMap() { world.add_slot(0, 4 * kGiB, kWorldHva); }
  ~TdpMap() override { world.mmu.check_world(); }
  Word entry(u64 gfn, unsigned level = 1) {
    return TdpTestAccess::find(world.mmu, context, Gfn(gfn), level).word;
  }
};

TEST_F(TdpMap, AFaultMapsItsPageAndTheWalkFindsIt) {
  EXPECT_EQ(world.fault(context, 5, Access::kWrite), FaultOutcome::kFixed);
  const Walk walk = world.walk(context, 5, Access::kWrite);
  EXPECT_EQ(walk.kind, Walk::Kind::kHit);
  EXPECT_EQ(walk.page.raw(), kWorldHva + 5 * kPageSize);
  EXPECT_EQ(walk.level, 1);
  EXPECT_TRUE(walk.writable);
  EXPECT_EQ(world.walk(context, 6).kind, Walk::Kind::kMiss);
  EXPECT_EQ(world.mmu.count_pages().pages_4k, 1U);
}

TEST_F(TdpMap, TheSameFaultAgainIsSpurious) {
  EXPECT_EQ(world.fault(context, 5, Access::kWrite), FaultOutcome::kFixed);
  EXPECT_EQ(world.fault(context, 5, Access::kWrite), FaultOutcome::kSpurious);
  EXPECT_EQ(world.fault(context, 5, Access::kRead), FaultOutcome::kSpurious);
}

TEST_F(TdpMap, AReadFaultTakesNoRightFromTheEntry) {
  EXPECT_EQ(world.fault(context, 5, Access::kWrite), FaultOutcome::kFixed);
  Fault weak = world.found(5, Access::kRead);
  weak.map_writable = false;
  ASSERT_TRUE(context.top_up());
  EXPECT_EQ(world.mmu.page_fault(context, weak), FaultOutcome::kSpurious);
  EXPECT_TRUE(Format::is_writable(entry(5)));
}

TEST_F(TdpMap, AWriteFaultWidensAReadOnlyEntry) {
  Fault weak = world.found(5, Access::kRead);
  weak.map_writable = false;
  ASSERT_TRUE(world.mmu.load_root(context, 0) && context.top_up());
  EXPECT_EQ(world.mmu.page_fault(context, weak), FaultOutcome::kFixed);
  EXPECT_EQ(world.walk(context, 5, Access::kWrite).kind, Walk::Kind::kMiss);
  EXPECT_EQ(world.fault(context, 5, Access::kWrite), FaultOutcome::kFixed);
  EXPECT_EQ(world.walk(context, 5, Access::kWrite).kind, Walk::Kind::kHit);
}

TEST_F(TdpMap, TheWalkSetsAccessedAndForAWriteDirty) {
  Fault prefetch = world.found(5, Access::kRead);
  prefetch.prefetch = true;
  ASSERT_TRUE(world.mmu.load_root(context, 0) && context.top_up());
  EXPECT_EQ(world.mmu.page_fault(context, prefetch), FaultOutcome::kFixed);
  EXPECT_FALSE(Format::is_accessed(entry(5)));
  EXPECT_EQ(world.walk(context, 5).kind, Walk::Kind::kHit);
  EXPECT_TRUE(Format::is_accessed(entry(5)));
  EXPECT_FALSE(Format::is_dirty(entry(5)));
  EXPECT_EQ(world.walk(context, 5, Access::kWrite).kind, Walk::Kind::kHit);
  EXPECT_TRUE(Format::is_dirty(entry(5)));
}

// --- levels ---

TEST_F(TdpMap, AHostHugePageIsOneEntry) {
  EXPECT_EQ(world.fault(context, 512 * 3 + 7, Access::kWrite, 2), FaultOutcome::kFixed);
  EXPECT_EQ(world.mmu.count_pages().pages_2m, 1U);
  EXPECT_EQ(world.walk(context, 512 * 3 + 9).page.raw(), kWorldHva + (512 * 3 + 9) * kPageSize);
  EXPECT_EQ(world.fault(context, kGiB + 5, Access::kWrite, 3), FaultOutcome::kFixed);
  EXPECT_EQ(world.mmu.count_pages().pages_1g, 1U);
  EXPECT_EQ(world.walk(context, 2 * kGiB - 1).page.raw(), kWorldHva + (2 * kGiB - 1) * kPageSize);
}

TEST_F(TdpMap, WhatIsNotAlignedAlikeOrNotInTheSlotIsMappedSmall) {
  world.add_slot(8 * kGiB + 1, 2048, kWorldHva + (16 * kGiB << kPageShift));
  EXPECT_EQ(world.fault(context, 8 * kGiB + 600, Access::kWrite, 2), FaultOutcome::kFixed);
  world.add_slot(9 * kGiB, 1000, kWorldHva + (17 * kGiB << kPageShift));
  EXPECT_EQ(world.fault(context, 9 * kGiB + 600, Access::kWrite, 2), FaultOutcome::kFixed);
  EXPECT_EQ(world.mmu.count_pages().pages_4k, 2U);
  EXPECT_EQ(world.fault(context, 9 * kGiB + 10, Access::kWrite, 2), FaultOutcome::kFixed);
  EXPECT_EQ(world.mmu.count_pages().pages_2m, 1U);
}

TEST_F(TdpMap, MixedAttributesForbidHugePages) {
  world.mixed = true;
  EXPECT_EQ(world.fault(context, 512, Access::kWrite, 2), FaultOutcome::kFixed);
  EXPECT_EQ(world.mmu.count_pages().pages_4k, 1U);
}

TEST_F(TdpMap, ASmallFaultSplitsAHugeLeafWithAllItsChildrenInPlace) {
  EXPECT_EQ(world.fault(context, 512, Access::kWrite, 2), FaultOutcome::kFixed);
  world.slots[0].flags = kLogDirtyPages;  // and the write protection that goes with it
  auto found = TdpTestAccess::find(world.mmu, context, Gfn(512), 2);
  found.entry->store(Format::write_protected(found.word));
  EXPECT_EQ(world.fault(context, 600, Access::kWrite, 2), FaultOutcome::kFixed);
  const auto counts = world.mmu.count_pages();
  EXPECT_EQ(counts.pages_2m, 0U);
  EXPECT_EQ(counts.pages_4k, 512U);
  EXPECT_EQ(world.dirty_marks.load(), 1U);
  EXPECT_EQ(world.walk(context, 700).page.raw(), kWorldHva + 700 * kPageSize);
  EXPECT_EQ(world.walk(context, 700, Access::kWrite).kind, Walk::Kind::kMiss);
}

TEST_F(TdpMap, AHugeLeafReplacesATableAfterAFlush) {
  for (u64 gfn = 512; gfn < 520; ++gfn) {
    EXPECT_EQ(world.fault(context, gfn, Access::kWrite), FaultOutcome::kFixed);
  }
  const u64 tables = world.mmu.count_pages().tables;
  const u64 grace = world.grace_periods.load();
  EXPECT_EQ(world.fault(context, 600, Access::kWrite, 2), FaultOutcome::kFixed);
  EXPECT_EQ(world.mmu.count_pages().tables, tables - 1);
  EXPECT_EQ(world.mmu.count_pages().pages_2m, 1U);
  EXPECT_EQ(world.grace_periods.load(), grace + 1);
}

// --- logging and rights ---

TEST_F(TdpMap, WhileLoggingOnlyAStoreGivesTheRightToStoreAndMarksThePage) {
  world.slots[0].flags = kLogDirtyPages;
  EXPECT_EQ(world.fault(context, 512, Access::kRead, 2), FaultOutcome::kFixed);
  EXPECT_FALSE(Format::is_writable(entry(512)));
  EXPECT_TRUE(Format::is_restorable(entry(512)));
  EXPECT_EQ(world.dirty_marks.load(), 0U);
  EXPECT_EQ(world.fault(context, 512, Access::kWrite, 2), FaultOutcome::kFixed);
  EXPECT_TRUE(Format::is_writable(entry(512)));
  EXPECT_EQ(world.dirty_marks.load(), 1U);
}

TEST_F(TdpMap, TheFastPathRestoresTheRightWithoutTheLock) {
  world.slots[0].flags = kLogDirtyPages;
  EXPECT_EQ(world.fault(context, 5, Access::kRead), FaultOutcome::kFixed);
  FaultOutcome outcome = FaultOutcome::kRetry;
  {
    // Held alone: whoever asked for it would not come back.
    const sync::BigWriterGuard alone(TdpTestAccess::mmu_lock(world.mmu));
    Fault fault = world.found(5, Access::kWrite);
    EXPECT_TRUE(world.mmu.fast_page_fault(context, fault, &outcome));
    EXPECT_EQ(outcome, FaultOutcome::kFixed);
    EXPECT_TRUE(world.mmu.fast_page_fault(context, fault, &outcome));
    EXPECT_EQ(outcome, FaultOutcome::kSpurious);
  }
  EXPECT_TRUE(Format::is_writable(entry(5)));
  EXPECT_EQ(world.dirty_marks.load(), 1U);
  EXPECT_EQ(context.counts.fast.get(), 2U);
}

TEST_F(TdpMap, TheFastPathLeavesAHugeEntryToTheSplitWhileLogging) {
  EXPECT_EQ(world.fault(context, 512, Access::kWrite, 2), FaultOutcome::kFixed);
  auto found = TdpTestAccess::find(world.mmu, context, Gfn(512), 2);
  found.entry->store(Format::write_protected(found.word));
  FaultOutcome outcome = FaultOutcome::kRetry;
  world.slots[0].flags = kLogDirtyPages;
  Fault fault = world.found(512, Access::kWrite);
  EXPECT_FALSE(world.mmu.fast_page_fault(context, fault, &outcome));
  world.slots[0].flags = 0;
  fault = world.found(512, Access::kWrite);
  EXPECT_TRUE(world.mmu.fast_page_fault(context, fault, &outcome));
}

TEST_F(TdpMap, AHostReadOnlyPageIsNotMadeWritableByTheFastPath) {
  world.add_slot(8 * kGiB, 512, kWorldHva + (16 * kGiB << kPageShift), kReadonly);
  EXPECT_EQ(world.fault(context, 8 * kGiB, Access::kRead), FaultOutcome::kFixed);
  FaultOutcome outcome = FaultOutcome::kRetry;
  Fault fault = world.found(8 * kGiB, Access::kWrite);
  EXPECT_FALSE(world.mmu.fast_page_fault(context, fault, &outcome));
  EXPECT_EQ(entry(8 * kGiB) & (Format::kHostWritable | Format::kMmuWritable | Format::kWrite), 0U);
}

TEST_F(TdpMap, TheFastPathLeavesAlonePagesOfOtherFramesThanItsOwn) {
  world.slots[0].flags = kLogDirtyPages;
  EXPECT_EQ(world.fault(context, 5, Access::kRead), FaultOutcome::kFixed);
  constexpr u64 kBeyond = u64{1} << 36;  // what four levels do not lead to
  world.add_slot(kBeyond, 512, kWorldHva + (16 * kGiB << kPageShift), kLogDirtyPages);
  FaultOutcome outcome = FaultOutcome::kRetry;
  Fault fault = world.found(kBeyond + 5, Access::kWrite);
  EXPECT_FALSE(world.mmu.fast_page_fault(context, fault, &outcome));
  EXPECT_FALSE(Format::is_writable(entry(5)));
}

// --- what is told ---

struct Requested {
  u64 gfn;
  u64 host_frame;
  u64 level;
  friend bool operator==(const Requested&, const Requested&) = default;
};

// The spte_requested events of fn().
template <typename F>
std::vector<Requested> requested_by(F&& fn) {
  EXPECT_TRUE(trace::start());
  fn();
  trace::stop();
  std::vector<Requested> found;
  trace::for_each([&](const trace::Record& r) {
    if (r.event != trace::Event::kvm_mmu_spte_requested) return;
    found.push_back({r.arg[0], r.arg[1], r.arg[2]});
  });
  return found;
}
std::vector<Requested> one_request(u64 gfn, u64 level) {
  return {{gfn, (kWorldHva >> kPageShift) + gfn, level}};
}

TEST_F(TdpMap, AFaultTellsOnceWhatItAsksForAfterTheLevelIsFixed) {
  const auto asks = [&](u64 gfn, unsigned host_level) {
    return requested_by([&] { world.fault(context, gfn, Access::kWrite, host_level); });
  };
  EXPECT_EQ(asks(5, 1), one_request(5, 1));
  EXPECT_EQ(asks(5, 1), one_request(5, 1)) << "a spurious one, too";
  EXPECT_EQ(asks(512 * 3 + 7, 2), one_request(512 * 3 + 7, 2));
  EXPECT_EQ(asks(kGiB + 5, 3), one_request(kGiB + 5, 3));
  world.mixed = true;
  EXPECT_EQ(asks(512 * 5, 2), one_request(512 * 5, 1)) << "attributes forbid the huge page";
}

TEST_F(TdpMap, AFaultThatIsStaleOrNeedsNoMapTellsNothing) {
  world.slots[0].flags = kLogDirtyPages;
  EXPECT_EQ(world.fault(context, 5, Access::kRead), FaultOutcome::kFixed);
  EXPECT_TRUE(requested_by([&] {
                Fault fault = world.found(5, Access::kWrite);
                FaultOutcome outcome = FaultOutcome::kRetry;
                EXPECT_TRUE(world.mmu.fast_page_fault(context, fault, &outcome));
              }).empty());
  EXPECT_TRUE(requested_by([&] {
                Fault fault = world.found(6, Access::kWrite);
                const u64 page = fault.page.raw() >> kPageShift;
                world.gate.begin(page, page);
                EXPECT_EQ(world.mmu.page_fault(context, fault), FaultOutcome::kRetry);
                world.gate.end(page, page);
              }).empty());
}

// --- NX huge pages ---

struct TdpNx : ::testing::Test {
  TdpWorld world{stage2::TdpPolicy{.nx_huge_pages = true}};
  MmuContext context{world.mmu};
  TdpNx() { world.add_slot(0, 4 * kGiB, kWorldHva); }
  ~TdpNx() override { world.mmu.check_world(); }
};

TEST_F(TdpNx, AnExecFaultSplitsWhatMayNotBeHugeAndExecutable) {
  EXPECT_EQ(world.fault(context, 512, Access::kRead, 2), FaultOutcome::kFixed);
  EXPECT_EQ(world.walk(context, 512, Access::kExec).kind, Walk::Kind::kMiss);
  EXPECT_EQ(world.fault(context, 513, Access::kExec, 2), FaultOutcome::kSpurious);  // by the split
  EXPECT_TRUE(world.walk(context, 513, Access::kExec).executable);
  EXPECT_EQ(world.mmu.count_pages().nx_lpage_splits, 1U);
  EXPECT_EQ(world.mmu.count_pages().pages_4k, 512U);
}

TEST_F(TdpNx, AnExecFaultTellsTheLevelThePolicyLeavesIt) {
  EXPECT_EQ(requested_by([&] { world.fault(context, 512, Access::kExec, 2); }),
            one_request(512, 1));
}

TEST_F(TdpNx, ADataFaultDoesNotUndoTheSplit) {
  EXPECT_EQ(world.fault(context, 512, Access::kExec, 2), FaultOutcome::kFixed);
  EXPECT_EQ(world.fault(context, 600, Access::kWrite, 2), FaultOutcome::kFixed);
  const auto counts = world.mmu.count_pages();
  EXPECT_EQ(counts.pages_4k, 2U);
  EXPECT_EQ(counts.nx_lpage_splits, 1U);
}

TEST_F(TdpNx, ARemovedTableIsNotACandidateAnyMore) {
  EXPECT_EQ(world.fault(context, 512, Access::kExec, 2), FaultOutcome::kFixed);
  world.zap(512, 512);
  EXPECT_EQ(world.mmu.count_pages().nx_lpage_splits, 0U);
}

// --- no slot ---

TEST_F(TdpMap, NoSlotIsRememberedUntilTheSlotsChange) {
  EXPECT_EQ(world.fault(context, 8 * kGiB, Access::kRead), FaultOutcome::kMmio);
  EXPECT_EQ(context.counts.mmio_spte_created.get(), 1U);
  EXPECT_EQ(world.walk(context, 8 * kGiB, Access::kWrite).kind, Walk::Kind::kMmio);
  world.generation.store(2 | stage2::kUpdateInProgress);
  EXPECT_EQ(world.walk(context, 8 * kGiB).kind, Walk::Kind::kMiss);
  world.add_slot(8 * kGiB, 512, kWorldHva + (16 * kGiB << kPageShift));
  world.generation.store(2);
  EXPECT_EQ(world.walk(context, 8 * kGiB).kind, Walk::Kind::kMiss);
  EXPECT_EQ(world.fault(context, 8 * kGiB, Access::kRead), FaultOutcome::kFixed);
  EXPECT_EQ(world.walk(context, 8 * kGiB).kind, Walk::Kind::kHit);
}

TEST_F(TdpMap, NothingIsRememberedWhileTheSlotsChange) {
  world.generation.store(1 | stage2::kUpdateInProgress);
  EXPECT_EQ(world.fault(context, 8 * kGiB, Access::kRead), FaultOutcome::kMmio);
  EXPECT_EQ(context.counts.mmio_spte_created.get(), 0U);
}

// --- stale, lost, odd ---

TEST_F(TdpMap, AFaultThatAChangeOvertookRetries) {
  ASSERT_TRUE(world.mmu.load_root(context, 0) && context.top_up());
  Fault fault = world.found(5, Access::kWrite);
  const u64 page = fault.page.raw() >> kPageShift;
  world.gate.begin(page, page);
  EXPECT_EQ(world.mmu.page_fault(context, fault), FaultOutcome::kRetry);
  world.gate.end(page, page);
  EXPECT_EQ(world.mmu.page_fault(context, fault), FaultOutcome::kRetry);
  EXPECT_EQ(world.fault(context, 5, Access::kWrite), FaultOutcome::kFixed);
}

TEST_F(TdpMap, AFaultOnAnObsoleteRootRetries) {
  ASSERT_TRUE(world.mmu.load_root(context, 0) && context.top_up());
  world.mmu.invalidate_all_roots();
  Fault fault = world.found(5, Access::kWrite);
  EXPECT_EQ(world.mmu.page_fault(context, fault), FaultOutcome::kRetry);
  world.mmu.drop_obsolete_roots(context);
  EXPECT_EQ(world.mmu.page_fault(context, fault), FaultOutcome::kRetry);
  world.mmu.zap_invalidated_roots();
  EXPECT_EQ(world.fault(context, 5, Access::kWrite), FaultOutcome::kFixed);
}

TEST_F(TdpMap, AFrozenEntryIsRetriedAndCostsNothing) {
  EXPECT_EQ(world.fault(context, 5, Access::kWrite), FaultOutcome::kFixed);
  auto found = TdpTestAccess::find(world.mmu, context, Gfn(6));
  found.entry->store(Format::kFrozen);
  const unsigned cached = TdpTestAccess::cached(context);
  EXPECT_EQ(world.fault(context, 6, Access::kWrite), FaultOutcome::kRetry);
  EXPECT_EQ(TdpTestAccess::cached(context), cached);
  EXPECT_EQ(found.entry->load(), Format::kFrozen);
  found.entry->store(Format::kNonpresent);
}

TEST_F(TdpMap, ATableOfAnUnexpectedLevelIsToldOnceAndRetried) {
  EXPECT_EQ(world.fault(context, 5, Access::kWrite), FaultOutcome::kFixed);
  TablePage* table = TablePage::of(TdpTestAccess::find(world.mmu, context, Gfn(5)).entry);
  table->level = 3;
  ::testing::internal::CaptureStderr();
  EXPECT_EQ(world.fault(context, 6, Access::kWrite), FaultOutcome::kRetry);
  EXPECT_EQ(world.fault(context, 6, Access::kWrite), FaultOutcome::kRetry);
  const std::string said = ::testing::internal::GetCapturedStderr();
  EXPECT_NE(said.find("level 3"), std::string::npos);
  EXPECT_EQ(said.find("level 3"), said.rfind("level 3"));
  EXPECT_EQ(world.fault(context, 1024, Access::kWrite), FaultOutcome::kFixed);  // others go on
  table->level = 1;
}

TEST_F(TdpMap, AFaultThatLosesAgainAndAgainTakesTheLockAlone) {
  ASSERT_TRUE(world.mmu.load_root(context, 0));
  TdpTestAccess::tire(context);
  EXPECT_EQ(world.fault(context, 5, Access::kWrite), FaultOutcome::kFixed);
}

}  // namespace
}  // namespace stagetwo::test

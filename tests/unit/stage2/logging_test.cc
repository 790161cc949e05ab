// SPDX-License-Identifier: Apache-2.0
// Goal: with a log, each first store to a page faults, marks the page and is over without a lock;
// large pages are small while there is a log, and large again after it.
#include <cstring>
#include <memory>

#include "host/mapping_level.h"
#include "tests/unit/stage2/vm_fixture.h"

namespace stagetwo::stage2 {
namespace {

constexpr u64 kLarge = u64{2} << 20;

class Logging : public Memory {
 protected:
  static constexpr u64 kPages = 16;
  void log(u32 flags = kLogDirtyPages) {
    ASSERT_EQ(0, slot(0, kGpa, kPages * kPageSize, pages_.address(), flags));
  }
  u64 harvest() {
    test::GuardedPages bitmap(1);
    EXPECT_TRUE(memory_->slots().get_dirty_log(0, Hva(bitmap.address())));
    return *reinterpret_cast<u64*>(bitmap.bytes_at(0));
  }
  bool clear(u64 mask) {
    test::GuardedPages bitmap(1);
    *reinterpret_cast<u64*>(bitmap.bytes_at(0)) = mask;
    return memory_->slots().clear_dirty_log(0, 0, kPages, Hva(bitmap.address())).has_value();
  }
  bool may_store(u64 page) {
    return look(kGpa + page * kPageSize, Access::kWrite) == Walk::Kind::kHit;
  }
  void store(u64 page) {
    ASSERT_EQ(FaultOutcome::kFixed, fault(kGpa + page * kPageSize, Access::kWrite));
  }
};

TEST_F(Logging, EachFirstStoreAfterAHarvestFaultsAndIsInTheNext) {
  log();
  store(3);
  store(7);
  EXPECT_EQ(0x88U, harvest());
  EXPECT_FALSE(may_store(3));
  EXPECT_FALSE(may_store(7));
  EXPECT_EQ(0U, harvest());
  store(7);
  EXPECT_TRUE(may_store(7));
  EXPECT_EQ(0x80U, harvest());
}

TEST_F(Logging, AReadGivesNoRightToStore) {
  log();
  ASSERT_EQ(FaultOutcome::kFixed, fault(kGpa, Access::kRead));
  EXPECT_FALSE(may_store(0));
  EXPECT_EQ(0U, harvest());
}

// F3 13.
TEST_F(Logging, AStoreToAProtectedPageIsFixedOnTheFastWayAndMarked) {
  log();
  store(3);
  ASSERT_EQ(8U, harvest());
  const u64 fast = context_->counts.fast.get();
  EXPECT_EQ(FaultOutcome::kFixed, fault_once(kGpa + 3 * kPageSize, Access::kWrite));
  EXPECT_EQ(fast + 1, context_->counts.fast.get());
  EXPECT_EQ(8U, harvest());
}

TEST_F(Logging, WhatWasWritableBeforeTheLogIsProtectedWhenItBegins) {
  ASSERT_EQ(0, slot(0, kGpa, kPages * kPageSize, pages_.address()));
  store(3);
  ASSERT_TRUE(may_store(3));
  log();
  EXPECT_FALSE(may_store(3));
  EXPECT_EQ(Walk::Kind::kHit, look(kGpa + 3 * kPageSize)) << "still readable";
  EXPECT_EQ(0U, harvest());
  store(3);
  EXPECT_EQ(8U, harvest());
}

TEST_F(Logging, WithoutALogAStoreIsRestoredAndNotMarked) {
  log();
  store(3);
  ASSERT_EQ(8U, harvest());
  log(0);
  EXPECT_FALSE(may_store(3));
  EXPECT_EQ(FaultOutcome::kFixed, fault_once(kGpa + 3 * kPageSize, Access::kWrite));
  EXPECT_TRUE(may_store(3));
}

TEST_F(Logging, ManualProtectionTakesTheRightWhenItIsCleared) {
  memory_->slots().set_dirty_protect({.manual = true, .initially_set = false});
  log();
  store(3);
  store(4);
  EXPECT_EQ(0x18U, harvest());
  EXPECT_TRUE(may_store(3)) << "a harvest takes nothing";
  ASSERT_TRUE(clear(0xffff0008));
  EXPECT_FALSE(may_store(3));
  EXPECT_TRUE(may_store(4)) << "marked still";
  EXPECT_EQ(0x10U, harvest());
}

TEST_F(Logging, AnInitiallySetLogProtectsNothingUntilItIsCleared) {
  ASSERT_EQ(0, slot(0, kGpa, kPages * kPageSize, pages_.address()));
  store(3);
  store(4);
  memory_->slots().set_dirty_protect({.manual = true, .initially_set = true});
  log();
  EXPECT_TRUE(may_store(3));
  EXPECT_EQ(0xffffU, harvest());
  ASSERT_TRUE(clear(8));
  EXPECT_FALSE(may_store(3));
  EXPECT_TRUE(may_store(4));
  EXPECT_EQ(0xfff7U, harvest());
}

TEST_F(Logging, ARingIsPushedWhenTheRightComesAndResetTakesIt) {
  memory_->slots().use_dirty_rings();
  const std::unique_ptr<DirtyGfn[]> entries(new DirtyGfn[256]());
  DirtyRing ring(0, entries.get(), 4096);
  memory_->slots().add_ring(ring);
  context_->ring = &ring;
  log();
  store(3);
  store(3);
  store(4);
  EXPECT_EQ(2U, ring.used());
  EXPECT_EQ(3U, entries[0].offset.load());
  for (unsigned i = 0; i < 2; ++i) entries[i].flags.store(kGfnReset);
  EXPECT_EQ(2U, memory_->slots().reset_dirty_rings());
  EXPECT_FALSE(may_store(3));
  EXPECT_FALSE(may_store(4));
  store(4);
  EXPECT_EQ(1U, ring.used());
  EXPECT_EQ(4U, entries[2].offset.load());
  memory_->slots().remove_ring(ring);
  context_->ring = nullptr;
}

// --- large pages: over memory that stands in for huge pages ---

class LargeLogging : public Memory {
 protected:
  static constexpr u64 kBytes = 4 * kLarge;
  static constexpr u64 kBase = u64{1} << 32;

  void SetUp() override {
    Memory::SetUp();
    void* at = mmap(nullptr, kBytes + kLarge, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    ASSERT_NE(at, MAP_FAILED);
    reserve_ = at;
    hva_ = (reinterpret_cast<u64>(at) + kLarge - 1) & ~(kLarge - 1);
    madvise(reinterpret_cast<void*>(hva_), kBytes, MADV_HUGEPAGE);
    std::memset(reinterpret_cast<void*>(hva_), 1, kBytes);
    if (host::mapping_level(Hva(hva_)) < 2) GTEST_SKIP() << "the host has no huge page for us";
    log(0);
    for (u64 at_page = 0; at_page < kBytes; at_page += kLarge) store(at_page);
    ASSERT_EQ(memory_->count_pages().pages_2m, 4U);
  }
  void TearDown() override {
    Memory::TearDown();
    if (reserve_ != nullptr) munmap(reserve_, kBytes + kLarge);
  }
  void log(u32 flags) { ASSERT_EQ(0, slot(0, kBase, kBytes, hva_, flags)); }
  void store(u64 offset) { ASSERT_EQ(FaultOutcome::kFixed, fault(kBase + offset, Access::kWrite)); }
  void* reserve_ = nullptr;
  u64 hva_ = 0;
};

TEST_F(LargeLogging, LargePagesAreSplitWhenALogBeginsAndReadsDoNotFault) {
  log(kLogDirtyPages);
  const PageCounts pages = memory_->count_pages();
  EXPECT_EQ(pages.pages_2m, 0U);
  EXPECT_EQ(pages.pages_4k, 2048U);
  for (u64 at = 0; at < kBytes; at += kPageSize) {
    ASSERT_EQ(look(kBase + at), Walk::Kind::kHit);
    ASSERT_EQ(look(kBase + at, Access::kWrite), Walk::Kind::kMiss);
  }
}

// F3 11.
TEST_F(LargeLogging, AfterTheLogTheNextAccessesMakeThemLargeAgain) {
  log(kLogDirtyPages);
  store(5 * kPageSize);
  log(0);
  EXPECT_EQ(memory_->count_pages().pages_4k, 0U);
  for (u64 at = 0; at < kBytes; at += kLarge) {
    ASSERT_EQ(FaultOutcome::kFixed, fault(kBase + at, Access::kRead));
  }
  EXPECT_EQ(memory_->count_pages().pages_2m, 4U);
  EXPECT_EQ(memory_->count_pages().pages_4k, 0U);
}

TEST_F(LargeLogging, AnInitiallySetLogSplitsWhatIsCleared) {
  memory_->slots().set_dirty_protect({.manual = true, .initially_set = true});
  log(kLogDirtyPages);
  EXPECT_EQ(memory_->count_pages().pages_2m, 4U);
  test::GuardedPages bitmap(1);
  *reinterpret_cast<u64*>(bitmap.bytes_at(0)) = 1U << 5;
  ASSERT_TRUE(memory_->slots().clear_dirty_log(0, 512, 64, Hva(bitmap.address())));
  EXPECT_EQ(memory_->count_pages().pages_2m, 3U);
  EXPECT_EQ(memory_->count_pages().pages_4k, 512U);
  EXPECT_EQ(look(kBase + kLarge + 5 * kPageSize, Access::kWrite), Walk::Kind::kMiss);
  EXPECT_EQ(look(kBase + kLarge + 6 * kPageSize, Access::kWrite), Walk::Kind::kHit);
}

// Without eager splitting a first store splits the page it is in.
class LazyLogging : public LargeLogging {
 protected:
  void SetUp() override {
    LargeLogging::SetUp();
    memory_->set_eager_split(false);
  }
};
TEST_F(LazyLogging, LargePagesStayAndTheFirstStoreSplitsItsOwn) {
  log(kLogDirtyPages);
  EXPECT_EQ(memory_->count_pages().pages_2m, 4U);
  EXPECT_EQ(look(kBase), Walk::Kind::kHit);
  EXPECT_EQ(look(kBase, Access::kWrite), Walk::Kind::kMiss);
  store(kLarge + 7 * kPageSize);
  EXPECT_EQ(memory_->count_pages().pages_2m, 3U);
  EXPECT_EQ(look(kBase + kLarge + 8 * kPageSize, Access::kWrite), Walk::Kind::kMiss);
}

}  // namespace
}  // namespace stagetwo::stage2

// SPDX-License-Identifier: Apache-2.0
// Goal: a ring hands each dirtied page over once, in order, and takes back exactly what the client
// collected.
#include "stage2/dirty_ring.h"

#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "host/backstop.h"
#include "stage2/memslots.h"
#include "tests/support/pages.h"

namespace stagetwo::stage2 {
namespace {

constexpr u32 kBytes = 4096;
constexpr u32 kEntries = kBytes / sizeof(DirtyGfn);

struct Protected {
  u32 slot;
  u64 offset;
  u64 mask;
  friend bool operator==(const Protected&, const Protected&) = default;
};
std::ostream& operator<<(std::ostream& out, const Protected& p) {
  return out << p.slot << '+' << p.offset << '/' << std::hex << p.mask << std::dec;
}

class Ring : public testing::Test {
 protected:
  // The client's side: all it has not yet collected.
  u32 collect(u32 limit = ~0U) {
    u32 count = 0;
    for (; count < limit; ++count, ++next_) {
      DirtyGfn& entry = entries_[next_ % kEntries];
      if (entry.flags.load(sync::kAcquire) != kGfnDirtied) break;
      entry.flags.store(kGfnReset, sync::kRelease);
    }
    return count;
  }
  u32 reset() {
    calls_.clear();
    return ring_.reset(
        [this](u32 slot, u64 offset, u64 mask) { calls_.push_back({slot, offset, mask}); });
  }
  // What a reset of pushes of these pages of slot 1 asks to be protected.
  std::vector<Protected> windows(const std::vector<u64>& pages) {
    for (const u64 page : pages) ring_.push(1, page);
    EXPECT_EQ(collect(), pages.size());
    EXPECT_EQ(reset(), pages.size());
    return calls_;
  }

  std::unique_ptr<DirtyGfn[]> entries_{new DirtyGfn[kEntries]()};
  DirtyRing ring_{0, entries_.get(), kBytes};
  std::vector<Protected> calls_;
  u32 next_ = 0;
};

TEST(RingSize, IsAPowerOfTwoFromAPageToAMebibyte) {
  const auto code = [](u32 bytes) {
    const auto checked = DirtyRing::check_size(bytes);
    return checked ? 0 : to_int(checked.error());
  };
  EXPECT_EQ(EINVAL, code(0));
  EXPECT_EQ(EINVAL, code(1024));
  EXPECT_EQ(EINVAL, code(2048));
  EXPECT_EQ(0, code(4096));
  EXPECT_EQ(EINVAL, code(4096 + 16));
  EXPECT_EQ(EINVAL, code(12288));
  EXPECT_EQ(0, code(1 << 20));
  EXPECT_EQ(E2BIG, code(1 << 21));
  EXPECT_EQ(E2BIG, code(1U << 31));
}

TEST_F(Ring, PushShowsSlotAndOffsetUnderTheDirtyFlag) {
  ring_.push(0x10003, 77);
  EXPECT_EQ(1U, entries_[0].flags.load());
  EXPECT_EQ(0x10003U, entries_[0].slot.load());
  EXPECT_EQ(77U, entries_[0].offset.load());
  EXPECT_EQ(0U, entries_[1].flags.load());
}

TEST_F(Ring, IsSoftFullSixtyFourEntriesBeforeItsEnd) {
  for (u64 page = 0; page < kEntries - 64; ++page) {
    ASSERT_FALSE(ring_.soft_full()) << page;
    ring_.push(1, page);
  }
  EXPECT_TRUE(ring_.soft_full());
  ASSERT_EQ(1U, collect(1));
  EXPECT_TRUE(ring_.soft_full()) << "collected is not reset";
  ASSERT_EQ(1U, reset());
  EXPECT_FALSE(ring_.soft_full());
}

TEST_F(Ring, ResetTakesInOrderAndStopsAtTheFirstUncollected) {
  for (u64 page = 0; page < 6; ++page) ring_.push(1, page);
  ASSERT_EQ(3U, collect(3));
  entries_[4].flags.store(kGfnReset);  // skipped one: against the rules
  EXPECT_EQ(3U, reset());
  EXPECT_EQ((std::vector<Protected>{{1, 0, 7}}), calls_);
  EXPECT_EQ(0U, reset());
  entries_[3].flags.store(kGfnReset | kGfnDirtied);
  EXPECT_EQ(2U, reset());
  EXPECT_EQ(0U, entries_[4].flags.load());
}

TEST_F(Ring, ResetTakesNoMoreThanWasPushed) {
  ring_.push(1, 5);
  for (u32 i = 0; i < kEntries; ++i) entries_[i].flags.store(kGfnReset);
  EXPECT_EQ(1U, reset());
  EXPECT_EQ(0U, reset());
  EXPECT_FALSE(ring_.soft_full());
}

TEST_F(Ring, NeighboursAreProtectedTogetherInEitherDirection) {
  EXPECT_EQ((std::vector<Protected>{{1, 10, 0xf}}), windows({10, 11, 12, 13}));
  EXPECT_EQ((std::vector<Protected>{{1, 10, 0xf}}), windows({13, 12, 11, 10}));
  EXPECT_EQ((std::vector<Protected>{{1, 0, u64{1} << 63 | 1}}), windows({0, 63}));
  EXPECT_EQ((std::vector<Protected>{{1, 0, 1}, {1, 64, 1}}), windows({0, 64}));
  EXPECT_EQ((std::vector<Protected>{{1, 64, 1}, {1, 0, 1}}), windows({64, 0}));
  // Going back is possible as long as no bit falls out at the top.
  EXPECT_EQ((std::vector<Protected>{{1, 5, u64{1} << 58 | 1}}), windows({63, 5}));
  EXPECT_EQ((std::vector<Protected>{{1, 10, u64{1} << 63 | 1}, {1, 9, 1}}), windows({10, 73, 9}));
  EXPECT_EQ((std::vector<Protected>{{1, 7, 1}}), windows({7, 7}));
}

TEST_F(Ring, AnotherSlotIsAnotherWindow) {
  ring_.push(1, 3);
  ring_.push(2, 4);
  ring_.push(1, 5);
  collect();
  EXPECT_EQ(3U, reset());
  EXPECT_EQ((std::vector<Protected>{{1, 3, 1}, {2, 4, 1}, {1, 5, 1}}), calls_);
}

TEST_F(Ring, GoesRoundManyTimes) {
  u64 page = 0;
  for (u32 round = 0; round < 40; ++round) {
    const u64 first = page;
    while (!ring_.soft_full()) ring_.push(1, page++);
    const u32 count = collect();
    ASSERT_EQ(page - first, count);
    ASSERT_EQ(count, reset());
  }
  EXPECT_EQ(40U * (kEntries - 64), page);
}

using RingDeathTest = Ring;
TEST_F(RingDeathTest, APushBeyondTheLastEntryEndsTheProcess) {
  for (u64 page = 0; page < kEntries; ++page) ring_.push(1, page);
  EXPECT_DEATH(ring_.push(1, 0), "used");
}

// --- with slots ---------------------------------------------------------------------------------

class CountingHost final : public SlotUpdateHost {
 public:
  void close_range(HvaRange) override {}
  void flush_and_wait() override { ++flushes; }
  void open_range(HvaRange) override {}
  void zap_slot(const Slot&, bool) override {}
  void zap_frames(u32, GfnRange) override {}
  void protect_pages(const Slot& slot, u64 first_page, const u64* masks, u64 count, bool) override {
    for (u64 i = 0; i < count; ++i) {
      if (masks[i] != 0) protected_pages.push_back({slot.id, first_page + i * 64, masks[i]});
    }
  }
  void slots_changed() override {}
  void logging_changed(const Slot&, const Slot&, bool) override {}
  void generation_wraps() override {}
  int flushes = 0;
  struct ProtectedPages {
    u32 slot;
    u64 first_page;
    u64 mask;
  };
  std::vector<ProtectedPages> protected_pages;
};

class RingVm : public Ring {
 protected:
  void SetUp() override {
    ASSERT_TRUE(host::backstop::install());
    slots_ = std::make_unique<Memslots>(&host_, SlotPolicy{});
    ASSERT_TRUE(slots_->init());
    slots_->use_dirty_rings();
    slots_->add_ring(ring_);
    Region region;
    region.slot = 1;
    region.flags = kLogDirtyPages;
    region.size = 200 * kPageSize;
    region.hva = 0x10000000;
    ASSERT_TRUE(slots_->set_region(region));
  }
  void TearDown() override { slots_->remove_ring(ring_); }
  void mark(u64 gfn) {
    const Memslots::Reader reader(*slots_);
    Memslots::mark_dirty(*reader.find(0, Gfn(gfn)), Gfn(gfn), &ring_);
  }
  CountingHost host_;
  std::unique_ptr<Memslots> slots_;
};

TEST_F(RingVm, APageIsPushedOnceUntilItIsReset) {
  mark(100);
  mark(100);
  EXPECT_EQ(1U, ring_.used());
  EXPECT_EQ(0U, slots_->reset_dirty_rings()) << "nobody has collected";
  mark(100);
  EXPECT_EQ(1U, ring_.used());
  ASSERT_EQ(1U, collect());
  mark(100);
  EXPECT_EQ(1U, ring_.used()) << "collected, and still writable";
  EXPECT_EQ(1U, slots_->reset_dirty_rings());
  mark(100);
  EXPECT_EQ(1U, ring_.used());
  EXPECT_EQ(1U, collect());
}

// It is in no ring: marked, the page's next store would not be pushed.
TEST_F(RingVm, AChangeThatNoVcpuStoredIsNobodysToTell) {
  slots_->mark_changed(0, GfnRange(Gfn(100), 4));
  EXPECT_EQ(0U, ring_.used());
  mark(101);
  EXPECT_EQ(1U, ring_.used());
}

TEST_F(RingVm, ResetFlushesWhenItTookSomething) {
  const int before = host_.flushes;
  EXPECT_EQ(0U, slots_->reset_dirty_rings());
  EXPECT_EQ(before, host_.flushes);
  mark(1);
  collect();
  EXPECT_EQ(1U, slots_->reset_dirty_rings());
  EXPECT_EQ(before + 1, host_.flushes);
}

TEST_F(RingVm, WindowsAcrossTwoWordsAreProtected) {
  for (u64 page = 50; page < 90; ++page) mark(page);
  ASSERT_EQ(40U, collect());
  ASSERT_EQ(40U, slots_->reset_dirty_rings());
  for (u64 page = 50; page < 90; ++page) mark(page);
  EXPECT_EQ(40U, ring_.used());
}

TEST_F(RingVm, EntriesTheClientRewroteDoNoHarm) {
  for (u64 page = 0; page < 5; ++page) mark(page);
  ASSERT_EQ(5U, collect());
  entries_[0].slot.store(0xffffffff);
  entries_[1].slot.store(2);
  entries_[2].offset.store(200);
  entries_[3].offset.store(u64{1} << 60);
  EXPECT_EQ(5U, slots_->reset_dirty_rings());
  mark(4);
  mark(3);
  EXPECT_EQ(1U, ring_.used()) << "page 4 was reset, page 3 was misnamed";
}

TEST_F(RingVm, BitmapsAreEnxio) {
  test::GuardedPages bitmap(1);
  const auto code = [](const Result<void>& r) { return r ? 0 : to_int(r.error()); };
  EXPECT_EQ(ENXIO, code(slots_->get_dirty_log(1, Hva(bitmap.address()))));
  EXPECT_EQ(ENXIO, code(slots_->get_dirty_log(~0U, Hva(0))));
  EXPECT_EQ(ENXIO, code(slots_->clear_dirty_log(1, 1, 1, Hva(0))));
}

}  // namespace
}  // namespace stagetwo::stage2

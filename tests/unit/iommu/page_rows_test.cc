// SPDX-License-Identifier: Apache-2.0
// Rows (src/iommu/page_rows.cc): a client sees areas of a page each, whatever they are kept as.
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "host/process.h"
#include "iommu/dma_engine.h"
#include "tests/unit/iommu/one_page_world.h"

namespace stagetwo::iommu {
namespace {

class PageRows : public OnePage {
 protected:
  static constexpr s64 kAlone = 2, kRow = 1;  // blocks

  void map_all() {
    for (u64 page = 0; page < kPages; ++page) ASSERT_TRUE(maps(page)) << page;
  }
  u64 pages_in_rows() { return rows().pages; }
  struct Rows {
    u64 count = 0;
    u64 pages = 0;
  };
  Rows rows() {
    Locked locked(*context_);
    Rows all;
    const Ioas& ioas = **locked.find<Ioas>(ioas_);
    for (const PageRow* row = ioas.rows.tree.first(); row != nullptr;
         row = ioas.rows.tree.next(row)) {
      ++all.count;
      all.pages += row->pages;
    }
    return all;
  }
  // Runs `fn` in a child, which dies at the end of its nth section; 0: it lives.
  template <typename F>
  void run_in_child(unsigned nth, F&& fn) {
    const pid_t child = ::fork();
    if (child == 0) {
      host::after_fork_child();
      left_ = nth;
      Arena::debug_hooks = {[](const Arena&) {},
                            [](const Arena&) {
                              if (left_ != 0 && --left_ == 0) ::raise(SIGKILL);
                            }};
      ::_exit(fn() ? 0 : 1);
    }
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    if (nth == 0) {
      EXPECT_EQ(status, 0);
    } else {
      ASSERT_TRUE(WIFSIGNALED(status)) << "it came to its end";
    }
  }
  static inline unsigned left_ = 0;
};

TEST_F(PageRows, CostABitAPageAndGoOneByOne) {
  const s64 before = blocks();
  map_all();
  EXPECT_EQ(blocks(), before + kAlone + kRow);
  EXPECT_EQ(pages_in_rows(), kPages - 1);
  EXPECT_EQ(areas(), kPages + 1);
  EXPECT_EQ(host::pin_use().pins, kPages + 1);
  for (u64 page = 0; page < kPages; ++page) expect_there(page);
  for (u64 i = 0; i < kPages; ++i) {
    const u64 page = i * 7 % kPages;
    ASSERT_TRUE(unmaps(page)) << page;
    EXPECT_FALSE(unmaps(page)) << page;
    expect_gone(page);
    EXPECT_EQ(areas(), kPages - i);
  }
  EXPECT_EQ(blocks(), before);
}

TEST_F(PageRows, TakeWhatFits) {
  ASSERT_TRUE(maps(3));
  ASSERT_TRUE(maps(4));
  const s64 before = blocks();
  for (const u64 page : {9u, 5u, 30u, 2u}) ASSERT_TRUE(maps(page)) << page;
  EXPECT_EQ(blocks(), before);
  EXPECT_EQ(pages_in_rows(), 5u);
  EXPECT_FALSE(maps(9)) << "there already";
  ASSERT_TRUE(maps(10, {true, iova(11), kPageSize, kReadWrite})) << "other memory";
  ASSERT_TRUE(maps(12, {true, iova(12), kPageSize, kMayWrite})) << "other rights";
  EXPECT_EQ(blocks(), before + 2 * kAlone);
  EXPECT_EQ(walk(hwpt_, iova(11)), frame_address(address(10)));
  EXPECT_FALSE(maps(11)) << "there already, alone";
  for (const u64 page : {3u, 4u, 9u, 5u, 30u, 2u, 11u, 12u}) ASSERT_TRUE(unmaps(page)) << page;
}

TEST_F(PageRows, AreAreasToWhoeverLooks) {
  const s64 before = blocks();
  map_all();
  {
    Locked locked(*context_);
    const AreaSet& areas = locked.areas(**locked.find<Ioas>(ioas_));
    const Area* area = areas.first();
    for (u64 page = 0; page < kPages; ++page, area = areas.next(area)) {
      ASSERT_NE(area, nullptr);
      EXPECT_EQ(area->iova(), iova(page));
      EXPECT_EQ(area->length(), kPageSize);
      EXPECT_EQ(area->rights, kReadWrite);
      EXPECT_TRUE(area->filled);
      EXPECT_EQ(area->pages->start + area->start_byte, address(page));
      EXPECT_TRUE(area->pages->writable);
    }
  }
  EXPECT_EQ(pages_in_rows(), 0u);
  EXPECT_EQ(areas(), kPages + 1);
  EXPECT_EQ(blocks(), before + kAlone * static_cast<s64>(kPages));
  for (u64 page = 0; page < kPages; ++page) {
    expect_there(page);
    ASSERT_TRUE(unmaps(page));
    expect_gone(page);
  }
  EXPECT_EQ(blocks(), before);
}

// A row ends where the table of its pages does.
class SeveralRows : public PageRows {
 protected:
  static constexpr u64 kAcross =
      2 * kLarge / kPageSize + 16;  // eight pages before the first border
  void SetUp() override {
    PageRows::SetUp();
    memset(more_.bytes_at(0), 0, kAcross * kPageSize);
    for (u64 page = 0; page < kAcross; ++page) {
      ASSERT_EQ(map_at(ioas_, more_.address() + page * kPageSize, kPageSize, at(page)), 0) << page;
    }
    ASSERT_GE(rows().count, 3u);
  }
  static u64 at(u64 page) { return kIova + 4 * kLarge - 8 * kPageSize + page * kPageSize; }
  void expect_all_but(u64 first, u64 count) {
    for (u64 page = 0; page < kAcross; ++page) {
      const u64 address = more_.address() + page * kPageSize;
      const bool there = page < first || page >= first + count;
      ASSERT_EQ(walk(hwpt_, at(page)), there ? frame_address(address) : kNowhere) << page;
      ASSERT_EQ(pins_at(address), there ? 1u : 0u) << page;
    }
  }
  test::GuardedPages more_{kAcross};
};

TEST_F(SeveralRows, AreAreasToWhoeverLooks) {
  {
    Locked locked(*context_);
    const AreaSet& areas = locked.areas(**locked.find<Ioas>(ioas_));
    const Area* area = areas.first(at(0), at(kAcross) - 1);
    for (u64 page = 0; page < kAcross; ++page, area = areas.next(area)) {
      ASSERT_NE(area, nullptr) << page;
      ASSERT_EQ(area->iova(), at(page));
      ASSERT_EQ(area->length(), kPageSize);
      ASSERT_EQ(area->pages->start + area->start_byte, more_.address() + page * kPageSize);
    }
  }
  EXPECT_EQ(rows().count, 0u);
  expect_all_but(0, 0);
  ASSERT_EQ(unmap(ioas_, at(0), kAcross * kPageSize), 0);
  expect_all_but(0, kAcross);
}

TEST_F(SeveralRows, LosePagesAcrossABorder) {
  ASSERT_EQ(unmap(ioas_, at(4), 8 * kPageSize), 0);
  expect_all_but(4, 8);
  ASSERT_EQ(unmap(ioas_, at(500), 40 * kPageSize), 0);
  for (u64 page = 4; page < 12; ++page) {
    ASSERT_EQ(map_at(ioas_, more_.address() + page * kPageSize, kPageSize, at(page)), 0) << page;
  }
  expect_all_but(500, 40);
  ASSERT_EQ(unmap_all(ioas_), 0);
  expect_all_but(0, kAcross);
}

// An unmap of several makes no areas: it needs no memory.
TEST_F(SeveralRows, LoseManyAtOnceAndStayRows) {
  const s64 before = blocks();
  const u64 there = pages_in_rows();
  u64 bytes = 0;
  ASSERT_EQ(unmap(ioas_, at(4), 8 * kPageSize, &bytes), 0);
  EXPECT_EQ(bytes, 8 * kPageSize);
  ASSERT_EQ(unmap(ioas_, at(20), 900 * kPageSize, &bytes), 0);
  EXPECT_EQ(bytes, 900 * kPageSize);
  EXPECT_GE(pages_in_rows(), there - 908);  // some that went were areas
  EXPECT_LE(blocks(), before);
  for (u64 page = 0; page < kAcross; ++page) {
    const bool gone = (page >= 4 && page < 12) || (page >= 20 && page < 920);
    const u64 address = more_.address() + page * kPageSize;
    ASSERT_EQ(walk(hwpt_, at(page)), gone ? kNowhere : frame_address(address)) << page;
    ASSERT_EQ(pins_at(address), gone ? 0u : 1u) << page;
  }
  ASSERT_EQ(unmap(ioas_, 0, ~u64{0}, &bytes), 0);
  EXPECT_EQ(rows().count, 0u);
  expect_all_but(0, kAcross);
}

// In the order of IOVAs: what stands behind an area that cannot go stays.
TEST_F(SeveralRows, AreUnmappedUpToWhatCannotGo) {
  Access* access = nullptr;
  u64 frame = 0;
  {
    Locked locked(*context_);
    access = *locked.make_access(*locked.find<Ioas>(ioas_), true, nullptr);
    ASSERT_TRUE(locked.pin(*access, at(100), kPageSize, true, &frame));
  }
  // Its row has areas now; those around it have none.
  const u64 kept = pages_in_rows();
  ASSERT_GT(kept, 0u);
  u64 bytes = 0;
  EXPECT_EQ(unmap(ioas_, at(2), (kAcross - 4) * kPageSize, &bytes), EDEADLK);
  EXPECT_EQ(bytes, 98 * kPageSize);
  expect_all_but(2, 98);
  {
    Locked locked(*context_);
    locked.destroy_access(access);
  }
  EXPECT_EQ(unmap(ioas_, at(2), (kAcross - 4) * kPageSize, &bytes), 0);
  expect_all_but(2, kAcross - 4);
}

// What may be asked of areas is answered as if each had always been one.
TEST_F(PageRows, AnswerAsAreas) {
  map_all();
  EXPECT_EQ(map_at(ioas_, address(0), kPageSize, iova(31)), EEXIST);
  for (u64 page = 1; page < kPages; ++page) ASSERT_EQ(unmap(ioas_, iova(page), kPageSize), 0);
  for (u64 page = 1; page < kPages; ++page) ASSERT_TRUE(maps(page));
  EXPECT_EQ(unmap(ioas_, iova(3), kPageSize / 2), ENOENT);
  u64 bytes = 0;
  EXPECT_EQ(unmap(ioas_, iova(3), kPageSize + kPageSize / 2, &bytes), ENOENT);
  EXPECT_EQ(bytes, kPageSize) << "the first goes";
  expect_gone(3);
  expect_there(4);
  EXPECT_EQ(unmap(ioas_, iova(5), 3 * kPageSize, &bytes), 0);
  EXPECT_EQ(bytes, 3 * kPageSize);
  u64 chosen = 0;
  ASSERT_EQ(map(ioas_, address(1), kPageSize, &chosen, false), 0);
  EXPECT_NE(walk(hwpt_, chosen), kNowhere);
  Locked locked(*context_);
  Ioas& ioas = **locked.find<Ioas>(ioas_);
  EXPECT_EQ(error_of(locked.reserve(ioas, iova(9), iova(9) + 1, 0)), EADDRINUSE);
  EXPECT_EQ(error_of(locked.cut(ioas, iova(9) + 100)), EINVAL);
}

TEST_F(PageRows, AreCopiedAreaByArea) {
  map_all();
  const u32 other = make_ioas();
  {
    Locked locked(*context_);
    MapRequest request{true, kIova, 3 * kPageSize, kReadWrite};
    ASSERT_EQ(error_of(locked.copy(**locked.find<Ioas>(ioas_), iova(4), other, &request)), 0);
  }
  ASSERT_EQ(unmap(other, kIova + kPageSize, kPageSize), 0);
  ASSERT_EQ(unmap(ioas_, iova(4), kPageSize), 0);
  ASSERT_EQ(unmap_all(other), 0);
  ASSERT_EQ(destroy(other), 0);
}

// With a second table, with none, and with one again: pinned once, or not.
TEST_F(PageRows, FollowTheTables) {
  map_all();
  const u32 second = make_hwpt(ioas_, device_);
  ASSERT_NE(second, 0u);
  for (u64 page = 0; page < kPages; ++page) {
    EXPECT_EQ(walk(second, iova(page)), frame_address(address(page)));
    expect_there(page);
  }
  ASSERT_EQ(destroy(second), 0);
  for (u64 page = 4; page < kPages; ++page) {
    ASSERT_TRUE(unmaps(page));
    ASSERT_TRUE(maps(page));
  }
  EXPECT_NE(pages_in_rows(), 0u);
  detach(device_, 1);
  ASSERT_EQ(destroy(hwpt_), 0);
  EXPECT_EQ(host::pin_use().pins, 0u);
  hwpt_ = make_hwpt(ioas_, device_);
  ASSERT_EQ(attach(device_, hwpt_, 1), 0);
  for (u64 page = 0; page < kPages; ++page) expect_there(page);
}

// A client that holds pages through an access is asked to let go of them.
TEST_F(PageRows, ArePinnedByAccesses) {
  map_all();
  u64 frames[2] = {};
  Locked locked(*context_);
  Ioas& ioas = **locked.find<Ioas>(ioas_);
  Access* const access = *locked.make_access(&ioas, true, nullptr);
  ASSERT_EQ(error_of(locked.pin(*access, iova(5), 2 * kPageSize, true, frames)), 0);
  EXPECT_FALSE(locked.unmap_one_page(ioas, iova(5), iova(6) - 1));
  u64 start = iova(5), unmapped = 0;
  const auto step = locked.unmap_some(ioas, &start, iova(6) - 1, &unmapped);
  ASSERT_TRUE(step);
  EXPECT_FALSE(step->done);
  EXPECT_EQ(step->notify_start, iova(5));
  locked.unpin(*access, iova(5), 2 * kPageSize);
  locked.destroy_access(access);
}

// Somebody asks for what stands elsewhere, or for a place of the row where nothing is.
TEST_F(PageRows, StayWhereNobodyLooks) {
  for (u64 page = 0; page < kPages; ++page) {
    ASSERT_TRUE(page == 20 || maps(page));
  }
  const u64 rows = pages_in_rows();
  ASSERT_EQ(map_at(ioas_, address(0), kPageSize, iova(700)), 0);
  ASSERT_EQ(map_at(ioas_, address(0), kPageSize, iova(20)), 0);
  EXPECT_EQ(pages_in_rows(), rows);
  ASSERT_EQ(map_at(ioas_, address(0), kPageSize, iova(21)), EEXIST);
  EXPECT_EQ(pages_in_rows(), 0u);
}

// Its memory stays pinned, so that who remembered where it was would reach it still.
TEST_F(PageRows, AreForgottenByEngines) {
  map_all();
  const auto engine = *DmaEngine::make(*context_, device_);
  for (u64 page = 1; page < kPages; ++page) {
    u8 byte = 0;
    ASSERT_TRUE(maps(page, {true, iova(kPages + 2 + page), kPageSize, kReadWrite}));
    ASSERT_EQ(engine->access(1, iova(page), 1, &byte, nullptr).reason, FaultReason::kNone);
    ASSERT_TRUE(unmaps(page));
    EXPECT_NE(engine->access(1, iova(page), 1, &byte, nullptr).reason, FaultReason::kNone);
  }
}

// Nothing can be refused to who spreads one: its memory is kept back from the beginning.
TEST_F(PageRows, AreSpreadWhereThereIsNoMemory) {
  map_all();
  u64 rest = 0;
  {
    Locked locked(*context_);
    for (u64 step = u64{1} << 33; step >= kPageSize; step /= 2) {
      while (locked.arena().keep_back(step)) rest += step;
    }
    EXPECT_EQ(locked.arena().alloc(2 * kLarge, "test"), nullptr);
  }
  EXPECT_EQ(unmap(ioas_, iova(0), kPages * kPageSize), 0);
  EXPECT_EQ(host::pin_use().pins, 1u);
  for (u64 page = 0; page < 8; ++page) {
    ASSERT_EQ(map_at(ioas_, address(page), kPageSize, iova(page)), 0);
    expect_there(page);
  }
  EXPECT_EQ(pages_in_rows(), 0u) << "no row without what is kept for it";
  Locked locked(*context_);
  locked.arena().give_back(rest);
}

// Many rows of two pages would keep back the whole heap.
TEST_F(PageRows, LeaveHalfOfTheHeapToOthers) {
  constexpr u64 kHalf = (Arena::kUndo - Arena::kHeap) / 2;
  const auto with_arena = [&](auto&& fn) {
    Locked locked(*context_);
    return fn(locked.arena());
  };
  ASSERT_TRUE(with_arena([](Arena& arena) { return arena.keep_back(kHalf); }));
  map_all();
  EXPECT_EQ(pages_in_rows(), 0u);
  for (u64 page = 0; page < kPages; ++page) ASSERT_TRUE(unmaps(page));
  with_arena([](Arena& arena) { arena.give_back(kHalf); });
  map_all();
  EXPECT_EQ(pages_in_rows(), kPages - 1);
}

// The last descriptor is closed: nothing stays pinned. Here the arena is used again.
TEST_F(PageRows, AreGivenBackWithTheRest) {
  map_all();
  context_->release_all();
  EXPECT_EQ(host::pin_use().pins, 0u);
  Locked locked(*context_);
  const AreaSet& areas = locked.areas(**locked.find<Ioas>(ioas_));
  for (const Area* area = areas.first(); area != nullptr; area = areas.next(area)) {
    ASSERT_TRUE(locked.hold_pages(*area->pages, 0, 1));
  }
}

// What another process unmaps of it this one unpins; the others stay.
TEST_F(PageRows, AreUnmappedByOtherProcesses) {
  map_all();
  run_in_child(0, [&] { return unmap(ioas_, iova(7), kPageSize) == 0; });
  EXPECT_EQ(areas(), kPages);
  expect_gone(7);
  for (const u64 page : {0u, 6u, 8u, 31u}) expect_there(page);
}

// Who dies in the middle of it is as one who never began.
TEST_F(PageRows, SurviveWhoDiesInTheMiddle) {
  map_all();
  const s64 before = blocks();
  const u64 rows = pages_in_rows();
  run_in_child(1, [&] { return unmap(ioas_, iova(7), kPageSize) == 0; });
  run_in_child(1, [&] { return unmap_all(ioas_) == 0; });
  EXPECT_EQ(pages_in_rows(), rows);
  EXPECT_EQ(blocks(), before);
  for (u64 page = 0; page < kPages; ++page) expect_there(page);
  for (u64 page = 1; page < kPages; ++page) {
    ASSERT_TRUE(unmaps(page));
    expect_gone(page);
    ASSERT_TRUE(page % 3 != 0 || maps(page));
  }
}

// Its pins went with it; what it had mapped is unmapped by whoever comes.
TEST_F(PageRows, OfProcessesThatEndedGo) {
  const s64 before = blocks();
  run_in_child(0, [&] {
    for (u64 page = 0; page < 8; ++page) *bytes_at(page) = 1;
    bool all = map_at(ioas_, address(0), 8 * kPageSize, iova(0)) == 0 &&
               map_at(ioas_, address(8), kPageSize, iova(8)) == 0 &&
               unmap(ioas_, iova(0), 8 * kPageSize) == 0;
    for (u64 page = 0; page < 8; ++page) {
      all = all && map_at(ioas_, address(page), kPageSize, iova(page)) == 0;
    }
    return all && pages_in_rows() != 0;
  });
  EXPECT_NE(pages_in_rows(), 0u);
  EXPECT_FALSE(unmaps(3)) << "not this process's";
  for (u64 page = 0; page < 9; ++page) ASSERT_EQ(unmap(ioas_, iova(page), kPageSize), 0);
  EXPECT_EQ(blocks(), before);
}

}  // namespace
}  // namespace stagetwo::iommu

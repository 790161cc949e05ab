// SPDX-License-Identifier: Apache-2.0
// Goal: KVM_GET_DIRTY_LOG and KVM_CLEAR_DIRTY_LOG answer as the kernel does, bit for bit and errno
// for errno.
#include <gtest/gtest.h>

#include <array>
#include <cstring>
#include <memory>
#include <vector>

#include "base/bits.h"
#include "host/backstop.h"
#include "stage2/memslots.h"
#include "tests/support/pages.h"
#include "tests/support/region.h"

namespace stagetwo::stage2 {
namespace {

class CountingHost final : public SlotUpdateHost {
 public:
  void close_range(HvaRange) override {}
  void zap_slot(const Slot&, bool) override {}
  void zap_frames(u32, GfnRange) override {}
  void protect_pages(const Slot& slot, u64 first_page, const u64* masks, u64 count,
                     bool split) override {
    split_asked |= split;
    for (u64 i = 0; i < count; ++i) {
      if (masks[i] != 0) protected_pages.push_back({slot.id, first_page + i * 64, masks[i]});
    }
  }
  void slots_changed() override {}
  void logging_changed(const Slot&, const Slot&, bool) override {}
  void generation_wraps() override {}
  void flush_and_wait() override { ++flushes; }
  void open_range(HvaRange) override {}
  int flushes = 0;
  bool split_asked = false;
  struct ProtectedPages {
    u32 slot;
    u64 first_page;
    u64 mask;
  };
  std::vector<ProtectedPages> protected_pages;
};

class DirtyLog : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(host::backstop::install());
    slots_ = std::make_unique<Memslots>(&host_, SlotPolicy{});
    ASSERT_TRUE(slots_->init());
    std::memset(pages_.pointer(), 0xEE, pages_.bytes());
  }
  int create(u32 id, u64 gpa, u64 count, u32 flags = kLogDirtyPages) {
    Region region = test::region_of(id, gpa, count * 4096, 0x10000000, flags);
    return code(slots_->set_region(region));
  }
  static int code(const Result<void>& result) { return result ? 0 : to_int(result.error()); }
  int get(u32 slot) { return code(slots_->get_dirty_log(slot, Hva(pages_.address()))); }
  int clear(u32 slot, u64 first, u32 count) {
    return code(slots_->clear_dirty_log(slot, first, count, Hva(pages_.address())));
  }
  void mark(u64 gfn) {
    const Memslots::Reader reader(*slots_);
    const Slot* slot = reader.find(0, Gfn(gfn));
    ASSERT_NE(nullptr, slot);
    Memslots::mark_dirty(*slot, Gfn(gfn));
  }
  u8 byte(unsigned index) { return *pages_.bytes_at(index); }

  CountingHost host_;
  std::unique_ptr<Memslots> slots_;
  test::GuardedPages pages_{1};
};

TEST_F(DirtyLog, ReportsEachMarkedPageOnceInABitmapRoundedTo64Pages) {
  ASSERT_EQ(0, create(0, 0x100000, 100));
  for (u64 page = 0; page < 100; page += 3) mark(0x100 + page);
  ASSERT_EQ(0, get(0));
  for (unsigned page = 0; page < 128; ++page) {
    const bool expected = page < 100 && page % 3 == 0;
    ASSERT_EQ(expected, (byte(page / 8) >> (page % 8) & 1) != 0) << page;
  }
  EXPECT_EQ(0xEE, byte(16));
  ASSERT_EQ(0, get(0));
  for (unsigned i = 0; i < 16; ++i) EXPECT_EQ(0, byte(i));
}

TEST_F(DirtyLog, WhatNoVcpuStoredIsMarkedInWhicheverSlotsHaveIt) {
  ASSERT_EQ(0, create(0, 0x100000, 16));
  ASSERT_EQ(0, create(1, 0x110000, 16, 0));
  ASSERT_EQ(0, create(2, 0x130000, 16));
  // The end of one slot, one without a log, none, and the beginning of another.
  slots_->mark_changed(0, GfnRange(Gfn(0x10e), 0x24));
  ASSERT_EQ(0, get(0));
  EXPECT_EQ(0x00, byte(0));
  EXPECT_EQ(0xc0, byte(1));
  ASSERT_EQ(0, get(2));
  EXPECT_EQ(0x03, byte(0));
  EXPECT_EQ(0x00, byte(1));
}

TEST_F(DirtyLog, FlushesOnlyWhenThereWasSomething) {
  ASSERT_EQ(0, create(0, 0, 100));
  const int before = host_.flushes;
  ASSERT_EQ(0, get(0));
  EXPECT_EQ(before, host_.flushes);
  mark(1);
  ASSERT_EQ(0, get(0));
  EXPECT_EQ(before + 1, host_.flushes);
}

TEST_F(DirtyLog, RefusesInTheKernelsOrder) {
  ASSERT_EQ(0, create(0, 0, 100));
  ASSERT_EQ(0, create(1, 0x1000000, 100, 0));
  EXPECT_EQ(EINVAL, get(kUserSlots));
  EXPECT_EQ(EINVAL, get(1 << 16));
  EXPECT_EQ(ENOENT, get(1));
  EXPECT_EQ(ENOENT, get(2));
  EXPECT_EQ(EINVAL, clear(kUserSlots, 1, 0));
  EXPECT_EQ(EINVAL, clear(2, 1, 0));
  EXPECT_EQ(ENOENT, clear(2, 64, 1 << 20));
  EXPECT_EQ(EINVAL, clear(0, 128, 0));
  const Hva hole(pages_.address() + pages_.bytes());
  EXPECT_EQ(EFAULT, code(slots_->get_dirty_log(0, hole)));
  EXPECT_EQ(EFAULT, code(slots_->get_dirty_log(0, hole - 8)));
  EXPECT_EQ(EFAULT, code(slots_->get_dirty_log(0, Hva(0xffff888000000000))));
  EXPECT_EQ(EFAULT, code(slots_->clear_dirty_log(0, 0, 100, hole)));
  EXPECT_EQ(0, code(slots_->clear_dirty_log(0, 0, 0, hole)));
  EXPECT_EQ(0, code(slots_->clear_dirty_log(0, 0, 0, Hva(~u64{0}))));
}

struct ClearCase {
  u64 first;
  u32 count;
  int expected;
};
class ClearRange : public DirtyLog, public testing::WithParamInterface<ClearCase> {};
TEST_P(ClearRange, OfAHundredPageSlotAnswersAsTheKernel) {
  ASSERT_EQ(0, create(0, 0, 100));
  EXPECT_EQ(GetParam().expected, clear(0, GetParam().first, GetParam().count));
}
INSTANTIATE_TEST_SUITE_P(Table, ClearRange,
                         testing::Values(ClearCase{64, 36, 0}, ClearCase{0, 100, 0},
                                         ClearCase{0, 0, 0}, ClearCase{0, 36, EINVAL},
                                         ClearCase{0, 128, EINVAL}, ClearCase{64, 64, EINVAL},
                                         ClearCase{128, 0, EINVAL}, ClearCase{63, 1, EINVAL}));

TEST_F(DirtyLog, ManualProtectionDefersTakingToClear) {
  slots_->set_dirty_protect({.manual = true, .initially_set = false});
  ASSERT_EQ(0, create(0, 0, 100));
  mark(3);
  mark(70);
  const int before = host_.flushes;
  ASSERT_EQ(0, get(0));
  ASSERT_EQ(0, get(0));
  EXPECT_EQ(1U << 3, byte(0));
  EXPECT_EQ(before, host_.flushes);
  std::memset(pages_.pointer(), 0xFF, 8);
  ASSERT_EQ(0, clear(0, 64, 36));  // only pages 64 and up
  EXPECT_EQ(before + 1, host_.flushes);
  ASSERT_EQ(0, get(0));
  EXPECT_EQ(1U << 3, byte(0));
  EXPECT_EQ(0, byte(8));
}

TEST_F(DirtyLog, ClearWithoutManualProtectionWorksToo) {
  ASSERT_EQ(0, create(0, 0, 100));
  mark(5);
  mark(6);
  std::memset(pages_.pointer(), 0, 16);
  *pages_.bytes_at(0) = 1U << 5;
  ASSERT_EQ(0, clear(0, 0, 100));
  ASSERT_EQ(0, get(0));
  EXPECT_EQ(1U << 6, byte(0));
}

TEST_F(DirtyLog, InitiallySetReportsEveryPageAndNothingBeyond) {
  slots_->set_dirty_protect({.manual = true, .initially_set = true});
  ASSERT_EQ(0, create(0, 0, 100));
  ASSERT_EQ(0, get(0));
  for (unsigned i = 0; i < 12; ++i) EXPECT_EQ(0xff, byte(i));
  EXPECT_EQ(0x0f, byte(12));
  for (unsigned i = 13; i < 16; ++i) EXPECT_EQ(0, byte(i));
}

TEST_F(DirtyLog, TurningLoggingOnFlushesBeforeItReturns) {
  ASSERT_EQ(0, create(0, 0, 100, 0));
  const int before = host_.flushes;
  ASSERT_EQ(0, create(0, 0, 100));
  EXPECT_EQ(before + 1, host_.flushes);
}

TEST_F(DirtyLog, OnlyWhatWasMarkedWithoutAStoreMayHaveToBeSplit) {
  ASSERT_EQ(0, create(0, 0, 100));
  mark(5);
  std::memset(pages_.pointer(), 0xFF, 16);
  ASSERT_EQ(0, clear(0, 0, 100));
  EXPECT_FALSE(host_.split_asked);
  slots_->set_dirty_protect({.manual = true, .initially_set = true});
  std::memset(pages_.pointer(), 0xFF, 16);
  mark(6);
  ASSERT_EQ(0, clear(0, 0, 100));
  EXPECT_TRUE(host_.split_asked);
}

TEST_F(DirtyLog, AMoveKeepsTheBits) {
  ASSERT_EQ(0, create(0, 0, 100));
  mark(9);
  ASSERT_EQ(0, create(0, 0x100000, 100));
  ASSERT_EQ(0, get(0));
  EXPECT_EQ(1U << 1, byte(1));
}

TEST_F(DirtyLog, TurningLoggingOffForgetsAndOnBeginsClean) {
  ASSERT_EQ(0, create(0, 0, 100));
  mark(9);
  ASSERT_EQ(0, create(0, 0, 100, 0));
  EXPECT_EQ(ENOENT, get(0));
  ASSERT_EQ(0, create(0, 0, 100));
  ASSERT_EQ(0, get(0));
  EXPECT_EQ(0, byte(1));
}

}  // namespace
}  // namespace stagetwo::stage2

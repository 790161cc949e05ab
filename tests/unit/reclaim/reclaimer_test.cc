// SPDX-License-Identifier: Apache-2.0
// Goal: a turn counts what is resident, ages what is not used and takes the oldest, by turns that
// the test runs itself.
#include "reclaim/reclaimer.h"

#include <unistd.h>

#include "host/held_pages.h"
#include "tests/support/reclaimed_guest.h"

namespace stagetwo::reclaim {
namespace {

constexpr size_t kPages = 1024;
using test::kMiB;

class ReclaimerTest : public test::ReclaimedGuest {
 protected:
  void SetUp() override {
    ReclaimedGuest::SetUp();
    memory_ = map(kPages);
  }
  void TearDown() override {
    if (reclaimer_) reclaimer_->bring_everything_back();
    reclaimer_.reset();
    ReclaimedGuest::TearDown();
  }
  void make(u64 limit, u64 interval_ns = 0) {
    Settings settings;
    settings.memory_limit = limit;
    settings.interval_ns = interval_ns;
    settings.swap_fd = *mem::SwapFile::create(folder_.c_str());
    settings.say = test::say;
    reclaimer_ = std::make_unique<Reclaimer>(settings);
    ASSERT_TRUE(reclaimer_->init(settings));
    ASSERT_TRUE(reclaimer_->spans().add(range_of(memory_, kPages)));
  }
  void turns(int count) {
    for (int i = 0; i < count; ++i) {
      reclaimer_->turn();
      std::this_thread::sleep_for(std::chrono::milliseconds(9));
    }
  }
  bool is_absent(size_t page) {
    return host::is_absent(Hva(reinterpret_cast<u64>(memory_ + (page << kPageShift))));
  }
  std::unique_ptr<Reclaimer> reclaimer_;
  u8* memory_ = nullptr;
};

// A call that pins its buffers may be under way when the first page of all is taken. In a program
// of its own, for the table of owners stays once there was one.
TEST_F(ReclaimerTest, BuffersAreHeldFromTheMomentThereIsALimit) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const auto hold = [&] { return host::HeldPages(range_of(memory_, 1)).holds(); };
  EXPECT_EXIT(
      {
        const bool before = hold() || host::pages_copied_away();
        make(64 * kMiB);
        std::filesystem::remove_all(folder_);  // the child's own: nobody tears it down
        _exit(!before && hold() && host::pages_copied_away() ? 0 : 1);
      },
      ::testing::ExitedWithCode(0), "");
}

TEST_F(ReclaimerTest, CountsWhatIsResidentAndNoMore) {
  make(64 * kMiB);
  for (size_t i = 0; i < 100; ++i) memory_[i * 3 * kPageSize] = 1;
  for (size_t i = 0; i < 100; ++i) {
    static_cast<void>(*static_cast<volatile u8*>(memory_ + (kPages - 1 - i) * kPageSize));
  }
  turns(1);
  EXPECT_EQ(100 * kPageSize, reclaimer_->statistics().resident) << "the page of zeros is nobody's";
  EXPECT_EQ(0U, reclaimer_->statistics().taken);
}

TEST_F(ReclaimerTest, AgesWhatNobodyUses) {
  make(kNoLimit, 1'000'000);
  test::FakeGuest guest(memory_, kPages);
  for (size_t i = 0; i < kPages; ++i) guest.use(i);
  for (int round = 0; round < 4; ++round) {
    for (size_t i = 0; i < 256; ++i) guest.use(i);
    turns(1);
  }
  const Statistics now = reclaimer_->statistics();
  EXPECT_EQ(4U, now.passes);
  EXPECT_EQ(256U, now.ages[0]);
  EXPECT_EQ(0U, now.ages[1]);
  EXPECT_EQ(kPages - 256, now.ages[2]) << "three passes old";
  EXPECT_EQ(256 * kPageSize, now.working_set);
}

TEST_F(ReclaimerTest, TakesTheOldest) {
  make(7 * kMiB / 2);
  test::FakeGuest guest(memory_, kPages);
  for (size_t i = 0; i < kPages; ++i) {
    guest.use(i);
    fill(memory_ + (i << kPageShift), i);
  }
  for (int round = 0; round < 60; ++round) {
    for (size_t i = 0; i < kPages; ++i) {
      if (i % 4 != 0) guest.use(i);  // three in four, among each other
    }
    turns(1);
    if (reclaimer_->statistics().taken > 100) break;
  }
  size_t wrong = 0;
  for (size_t i = 0; i < kPages; ++i) wrong += i % 4 != 0 && is_absent(i) ? 1U : 0U;
  EXPECT_GT(reclaimer_->statistics().taken, 100U);
  EXPECT_LE(wrong, 16U) << "pages in use that were taken";
}

// Four huge pages, of which three are used at one page each: the fourth one goes.
TEST_F(ReclaimerTest, AHugePageInUseIsNotSplitForItsColdParts) {
  constexpr size_t kHuge = 512;
  u8* const mapped = map(5 * kHuge);
  const u64 first = (reinterpret_cast<u64>(mapped) + 2 * kMiB - 1) & ~(2 * kMiB - 1);
  u8* const at = mapped + (first - reinterpret_cast<u64>(mapped));
  ASSERT_EQ(0, ::madvise(at, 4 * kHuge << kPageShift, MADV_HUGEPAGE));
  for (size_t i = 0; i < 4 * kHuge; ++i) fill(at + (i << kPageShift), i);
  const auto is_huge = [&](size_t block) {
    host::PageState state;
    EXPECT_TRUE(host::page_states(Hva(first + block * 2 * kMiB), 1, &state));
    return state.huge;
  };
  for (size_t block = 0; block < 4; ++block) {
    if (!is_huge(block)) GTEST_SKIP() << "the kernel gives no huge pages now";
  }
  make(7 * kMiB + kMiB / 2);
  ASSERT_TRUE(reclaimer_->spans().add(range_of(at, 4 * kHuge)));
  test::FakeGuest guest(at, 4 * kHuge);
  for (size_t i = 0; i < 4 * kHuge; ++i) guest.use(i);
  for (int round = 0; round < 60 && reclaimer_->statistics().taken < 200; ++round) {
    for (size_t block = 0; block < 3; ++block) guest.use(block * kHuge + 7);
    turns(1);
  }
  EXPECT_GE(reclaimer_->statistics().taken, 200U);
  EXPECT_EQ(1U, reclaimer_->statistics().huge_splits);
  for (size_t block = 0; block < 3; ++block) EXPECT_TRUE(is_huge(block)) << block;
  host::bring_back_range(range_of(at, 4 * kHuge));
  reclaimer_->spans().remove(range_of(at, 4 * kHuge));
}

// With no turn in between: what the process touches first is reported before there is any of it.
TEST_F(ReclaimerTest, TheGrowthOfWhatMayExceedTheLimitIsWatched) {
  u8* const shared = map(256, MAP_SHARED);
  const auto watched = [&](const u8* at) {
    return host::userfault::is_watched(range_of(at, 1).start());
  };
  const auto is_watched = [&] {
    EXPECT_EQ(watched(memory_), watched(shared));
    return watched(memory_);
  };
  make(3 * kMiB);
  ASSERT_TRUE(reclaimer_->spans().add(range_of(shared, 256)));
  EXPECT_FALSE(is_watched());
  turns(1);
  EXPECT_TRUE(is_watched());
  reclaimer_->set_limit((kPages + 256) << kPageShift);
  turns(1);
  EXPECT_FALSE(is_watched()) << "all of it fits";
  reclaimer_->set_limit(3 * kMiB);
  turns(1);
  EXPECT_TRUE(is_watched());
  reclaimer_->set_limit(kNoLimit);
  turns(1);
  EXPECT_FALSE(is_watched());
  reclaimer_->spans().remove(range_of(shared, 256));
}

TEST_F(ReclaimerTest, TheGrowthOfAGuestFarBelowItsLimitIsTheKernels) {
  constexpr size_t kMany = size_t{80} << (20 - kPageShift);
  u8* const more = map(kMany);
  const std::vector<u8> own(96 * kMiB, 1);  // the process's, and no guest's
  make(72 * kMiB);
  ASSERT_TRUE(reclaimer_->spans().add(range_of(more, kMany)));
  const auto is_watched = [&] { return host::userfault::is_watched(range_of(more, 1).start()); };
  turns(1);
  EXPECT_FALSE(is_watched());
  for (size_t i = 0; i < kMany / 4; ++i) more[i << kPageShift] = 1;
  turns(1);
  EXPECT_TRUE(is_watched()) << "64 MiB may come between two turns";
  reclaimer_->bring_everything_back();
  reclaimer_->spans().remove(range_of(more, kMany));
}

TEST_F(ReclaimerTest, HasNothingToDoBelowItsMark) {
  make(64 * kMiB);
  for (size_t i = 0; i < kPages; ++i) fill(memory_ + (i << kPageShift), i);
  turns(5);
  EXPECT_EQ(0U, reclaimer_->statistics().taken);
  EXPECT_EQ(0U, reclaimer_->statistics().passes);
  EXPECT_GE(reclaimer_->period_ns(), 1'000'000U);
}

}  // namespace
}  // namespace stagetwo::reclaim

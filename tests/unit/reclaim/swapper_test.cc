// SPDX-License-Identifier: Apache-2.0
// Goal: a page is in a place or in the store and comes back from either, also while it is on its
// way from one to the other; what the store does not take is put back.
#include "reclaim/swapper.h"

#include "tests/support/reclaimed_guest.h"

namespace stagetwo::reclaim {
namespace {

class SwapperTest : public test::ReclaimedGuest {
 protected:
  static constexpr size_t kPages = 96;
  void SetUp() override {
    ReclaimedGuest::SetUp();
    if (IsSkipped()) return;
    ASSERT_TRUE(swapper_.init());
    memory_ = map(kPages);
    ASSERT_TRUE(spans_.add(range_of(memory_, kPages)));
    for (size_t i = 0; i < kPages; ++i) fill(memory_ + (i << kPageShift), i);
  }
  void TearDown() override {
    host::bring_back_range(range_of(memory_, kPages));
    ReclaimedGuest::TearDown();
  }
  u64 take(size_t first, size_t count) {
    const HvaRange span = range_of(memory_, kPages);
    const auto taken = host::take_away(range_of(memory_ + (first << kPageShift), count), &swapper_,
                                       this, host::Which::kReclaim, &span);
    return taken ? *taken : ~u64{0};
  }
  void use_file() { ASSERT_TRUE(swapper_.use_file(*mem::SwapFile::create(folder_.c_str()))); }
  bool is_right(size_t page) { return is_filled(memory_ + (page << kPageShift), page); }

  SpanTable spans_;
  Swapper swapper_{spans_, test::say};
  u8* memory_ = nullptr;
};

TEST_F(SwapperTest, ATakenPageIsInAPlaceUntilItIsSettled) {
  use_file();
  EXPECT_EQ(16U, take(0, 16));
  EXPECT_EQ(16 * kPageSize, swapper_.placed_bytes());
  EXPECT_EQ(0U, swapper_.store().use().in_memory);
  EXPECT_EQ(0, swapper_.settle());
  EXPECT_EQ(0U, swapper_.placed_bytes());
  const mem::StoreUse use = swapper_.store().use();
  EXPECT_EQ(8U, use.in_memory) << "every second one gets smaller";
  EXPECT_EQ(8U, use.on_disk);
  for (size_t i = 0; i < 16; ++i) EXPECT_TRUE(is_right(i)) << i;
  EXPECT_EQ(16U, swapper_.counts().refaults + swapper_.counts().ahead);
}

TEST_F(SwapperTest, APageComesBackFromItsPlaceAsItWent) {
  EXPECT_EQ(4U, take(0, 4));
  for (size_t i = 0; i < 4; ++i) EXPECT_TRUE(is_right(i)) << i;
  EXPECT_EQ(0, swapper_.settle()) << "nothing is left to be stored";
  EXPECT_EQ(0U, swapper_.store().use().in_memory);
  EXPECT_EQ(4U, take(0, 4)) << "its places are free again";
}

TEST_F(SwapperTest, WhatTheStoreRefusesIsPutBack) {
  EXPECT_EQ(16U, take(0, 16));
  EXPECT_EQ(ENOSPC, swapper_.settle()) << "no file";
  EXPECT_EQ(8U, swapper_.counts().not_stored);
  EXPECT_EQ(0U, swapper_.counts().refaults) << "nobody has touched them";
  for (size_t i = 0; i < 16; ++i) {
    const Hva at(reinterpret_cast<u64>(memory_ + (i << kPageShift)));
    EXPECT_EQ(i % 2 != 0, host::is_absent(at)) << i;
  }
  for (size_t i = 0; i < 16; ++i) EXPECT_TRUE(is_right(i)) << i;
}

TEST_F(SwapperTest, WithoutRoomForMoreNothingIsTaken) {
  use_file();
  u64 taken = take(0, 96);
  EXPECT_EQ(96U, taken);
  EXPECT_TRUE(swapper_.has_room());
  EXPECT_EQ(0, swapper_.settle());
}

TEST_F(SwapperTest, WhatIsGivenUpLeavesTheStore) {
  use_file();
  EXPECT_EQ(16U, take(0, 16));
  host::change(reinterpret_cast<u64>(memory_), 4 * kPageSize, host::EventKind::kClear,
               [&] { return ::madvise(memory_, 4 * kPageSize, MADV_DONTNEED); });
  EXPECT_EQ(0, swapper_.settle());
  host::change(reinterpret_cast<u64>(memory_), 8 * kPageSize, host::EventKind::kClear,
               [&] { return ::madvise(memory_, 8 * kPageSize, MADV_DONTNEED); });
  EXPECT_EQ(8U, swapper_.counts().discarded);
  const mem::StoreUse use = swapper_.store().use();
  EXPECT_EQ(8U, use.in_memory + use.on_disk);
  EXPECT_EQ(0, memory_[0]);
}

// A disk that goes bad takes very many.
TEST_F(SwapperTest, LostPagesAreSaidOnceAndThenCounted) {
  test::forget_said();
  for (u64 i = 0; i < 300; ++i) swapper_.private_lost(Hva(i << kPageShift), EIO);
  EXPECT_EQ(300U, swapper_.counts().lost);
  const std::vector<std::string> lines = test::said();
  ASSERT_EQ(3U, lines.size());
  EXPECT_NE(std::string::npos, lines[0].find("a page of guest memory is lost: ")) << lines[0];
  EXPECT_NE(std::string::npos, lines[1].find("10 pages of guest memory are lost: ")) << lines[1];
  EXPECT_NE(std::string::npos, lines[2].find("100 pages of guest memory are lost: ")) << lines[2];
}

// Threads touch pages while they are compressed: each is in one place or the other, and right.
TEST_F(SwapperTest, PagesThatAreWantedWhileTheyAreCompressedComeBackWhole) {
  use_file();
  std::atomic<bool> stop{false};
  std::atomic<u64> wrong{0};
  std::vector<std::thread> threads;
  for (u64 t = 0; t < 2; ++t) {
    threads.emplace_back([&, t] {
      test::RandomSource random(test::seed() + t);
      while (!stop) wrong += is_right(random.below(kPages)) ? 0 : 1;
    });
  }
  const test::Deadline deadline(0.1);
  while (deadline.running()) {
    static_cast<void>(take(0, kPages));
    EXPECT_EQ(0, swapper_.settle());
  }
  stop = true;
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(0U, wrong);
  EXPECT_GT(swapper_.counts().taken, 100U);
}

}  // namespace
}  // namespace stagetwo::reclaim

// SPDX-License-Identifier: Apache-2.0
// Goal: the record of a page says where its bytes are, whatever fails on their way.
#include "mem/sealed_pages.h"

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <cstring>

#include "base/failpoint.h"
#include "base/sys.h"
#include "tests/support/private_swap.h"
#include "tests/support/random_source.h"

namespace stagetwo::mem {
namespace {

class SealedPagesTest : public testing::Test {
 protected:
  static constexpr u64 kPages = 8;
  void SetUp() override {
    fd_ = *sys::memfd_create("sealed", MFD_CLOEXEC);
    ASSERT_TRUE(sys::ftruncate(fd_, kPages << kPageShift));
    swap_.use_file();
    bench_.store = &store_bench_;
    pages_ = *SealedPages::create(fd_, kPages, swap_);
  }
  void TearDown() override {
    SealedPages::destroy(pages_);
    const StoreUse use = store_.use();
    EXPECT_EQ(0U, use.same_filled + use.in_memory + use.on_disk);
    static_cast<void>(sys::close(fd_));
  }
  void fill(u64 page) {
    test::RandomSource random(page + 1);
    for (u64 i = 0; i < kPageSize; ++i) pages_->at(page)[i] = random.byte();
  }
  bool is_filled(u64 page) {
    test::RandomSource random(page + 1);
    for (u64 i = 0; i < kPageSize; ++i) {
      if (pages_->at(page)[i] != random.byte()) return false;
    }
    return true;
  }

  PageStore store_;
  test::TestSwap swap_{store_};
  PageStore::Bench store_bench_{};
  PrivateSwap::Bench bench_{};
  SealedPages* pages_ = nullptr;
  int fd_ = -1;
};

TEST_F(SealedPagesTest, APageIsAwayUntilItIsGiven) {
  fill(3);
  ASSERT_TRUE(pages_->take(3, &bench_));
  EXPECT_TRUE(pages_->is_away(3));
  EXPECT_FALSE(pages_->is_away(2));
  EXPECT_EQ(1U, pages_->away());
  ASSERT_TRUE(pages_->give(3, pages_->at(3)));
  EXPECT_EQ(0U, pages_->away());
  EXPECT_TRUE(is_filled(3));
}

TEST_F(SealedPagesTest, APageThatCannotBeGivenNowIsAwayStill) {
  fill(1);
  ASSERT_TRUE(pages_->take(1, &bench_));
  failpoint::arm("mem.sealed_pages_back", 1);
  const auto given = pages_->give(1, pages_->at(1));
  failpoint::disarm();
  ASSERT_FALSE(given);
  EXPECT_EQ(ENOMEM, to_int(given.error()));
  EXPECT_TRUE(pages_->is_away(1));
  pages_->give_all();
  EXPECT_TRUE(is_filled(1));
}

TEST_F(SealedPagesTest, WhatIsForgottenIsZero) {
  fill(0);
  fill(5);
  ASSERT_TRUE(pages_->take(0, &bench_));
  ASSERT_TRUE(pages_->take(5, &bench_));
  EXPECT_EQ(1U, pages_->forget({4, kPages + 10}));
  EXPECT_FALSE(pages_->is_away(5));
  EXPECT_EQ(0, pages_->at(5)[0]);
  EXPECT_TRUE(pages_->is_away(0));
}

}  // namespace
}  // namespace stagetwo::mem

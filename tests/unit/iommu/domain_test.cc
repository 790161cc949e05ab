// SPDX-License-Identifier: Apache-2.0
#include "iommu/domain.h"

#include <gtest/gtest.h>

#include "base/failpoint.h"

namespace stagetwo::iommu {
namespace {

constexpr u64 kSmall = 2048, kHuge = 512 * kSmall, kStart = u64{1} << 24;

class DomainTest : public testing::Test {
 protected:
  void SetUp() override { ASSERT_TRUE(arena_.attach(backing_.fd())); }
  void make(bool huge) {
    const Arena::Guard guard(arena_);
    ASSERT_TRUE(make_domain(
        arena_, {FormatKind::kMock, kStart, (u64{1} << 31) - 1, huge ? kSmall | kHuge : kSmall},
        &domain_));
  }
  void TearDown() override {
    const Arena::Guard guard(arena_);
    destroy_domain(arena_, domain_);
    EXPECT_EQ(arena_.blocks_in_use(), 0);
  }
  u64 address_at(u64 iova) {
    const auto found = translate(arena_, domain_, iova);
    return found ? found->address : 0;
  }

  host::Backing backing_ = *Arena::make_file("test-domain");
  Arena arena_;
  Domain domain_;
};

TEST_F(DomainTest, TranslatesWhatIsMapped) {
  make(false);
  const Arena::Guard guard(arena_);
  ASSERT_TRUE(map_range(arena_, domain_, kStart, 0x5000, 3 * kSmall, kMayRead));
  EXPECT_EQ(address_at(kStart), 0x5000u);
  EXPECT_EQ(address_at(kStart + 2 * kSmall + 5), 0x5000 + 2 * kSmall + 5);
  EXPECT_EQ(address_at(kStart + 3 * kSmall), 0u);
  EXPECT_EQ(translate(arena_, domain_, kStart)->rights, u32{kMayRead});
  EXPECT_EQ(translate(arena_, domain_, kStart)->page_bytes, kSmall);
  EXPECT_EQ(unmap_range(arena_, domain_, kStart, 3 * kSmall), 3 * kSmall);
  EXPECT_EQ(address_at(kStart), 0u);
}

TEST_F(DomainTest, PicksTheLargestPageItMay) {
  make(true);
  const Arena::Guard guard(arena_);
  ASSERT_TRUE(map_range(arena_, domain_, kStart, 16 * kHuge, 2 * kHuge, kMayRead | kMayWrite));
  EXPECT_EQ(translate(arena_, domain_, kStart + kHuge)->page_bytes, kHuge);
  // Not aligned alike: small ones.
  ASSERT_TRUE(map_range(arena_, domain_, kStart + 4 * kHuge, kHuge + kSmall, kHuge, kMayRead));
  EXPECT_EQ(translate(arena_, domain_, kStart + 4 * kHuge)->page_bytes, kSmall);
}

// Single pages go to the table that the one before went to: as long as there is that table.
TEST_F(DomainTest, ATableThatWentIsNotUsedForTheNextPage) {
  make(true);
  const Arena::Guard guard(arena_);
  const auto map_one = [&](u64 iova, u64 to) {
    return map_range(arena_, domain_, iova, to, kSmall, kMayRead);
  };
  for (u64 i = 0; i < 3; ++i) ASSERT_TRUE(map_one(kStart + i * kSmall, 0x5000 + i * kSmall));
  EXPECT_EQ(to_int(map_one(kStart + kSmall, 0x9000).error()), EADDRINUSE);
  EXPECT_EQ(unmap_range(arena_, domain_, kStart, kHuge), 3 * kSmall);
  ASSERT_TRUE(map_range(arena_, domain_, kStart, 16 * kHuge, kHuge, kMayRead));
  EXPECT_EQ(to_int(map_one(kStart + kSmall, 0x9000).error()), EADDRINUSE);
  EXPECT_EQ(unmap_range(arena_, domain_, kStart + kSmall, kSmall), 0u);
  EXPECT_EQ(address_at(kStart + kSmall), 16 * kHuge + kSmall);
  EXPECT_EQ(unmap_range(arena_, domain_, kStart, kHuge), kHuge);
  // A table that is empty makes room for a large page, and goes with it.
  ASSERT_TRUE(map_one(kStart, 0x5000));
  EXPECT_EQ(unmap_range(arena_, domain_, kStart, kSmall), kSmall);
  ASSERT_TRUE(map_range(arena_, domain_, kStart, 16 * kHuge, kHuge, kMayRead));
  EXPECT_EQ(to_int(map_one(kStart, 0x9000).error()), EADDRINUSE);
  EXPECT_EQ(translate(arena_, domain_, kStart)->page_bytes, kHuge);
  EXPECT_EQ(unmap_range(arena_, domain_, kStart, kHuge), kHuge);
  // Of two that are far apart each has its own.
  for (u64 i = 0; i < 4; ++i) ASSERT_TRUE(map_one(kStart + i * kHuge, 0x5000 + i * kSmall));
  for (u64 i = 0; i < 4; ++i) {
    EXPECT_EQ(address_at(kStart + i * kHuge), 0x5000 + i * kSmall);
    EXPECT_EQ(unmap_range(arena_, domain_, kStart + i * kHuge, kSmall), kSmall);
    EXPECT_EQ(unmap_range(arena_, domain_, kStart + i * kHuge, kSmall), 0u);
  }
}

TEST_F(DomainTest, WhatIsMappedStays) {
  make(false);
  const Arena::Guard guard(arena_);
  ASSERT_TRUE(map_range(arena_, domain_, kStart + kSmall, 0x5000, kSmall, kMayRead));
  const auto again = map_range(arena_, domain_, kStart, 0x9000, 2 * kSmall, kMayRead);
  EXPECT_EQ(to_int(again.error()), EADDRINUSE);
  EXPECT_EQ(address_at(kStart), 0u);
  EXPECT_EQ(address_at(kStart + kSmall), 0x5000u);
}

TEST_F(DomainTest, AMapThatIsRefusedMemoryLeavesNothingMapped) {
  make(false);
  const Arena::Guard guard(arena_);
  // Two tables of the lowest level are needed.
  const u64 runs = failpoint::sweep([&] {
    const u64 bytes = 2 * kHuge;
    if (map_range(arena_, domain_, kStart, 0x800000, bytes, kMayRead)) {
      unmap_range(arena_, domain_, kStart, bytes);
      return;
    }
    for (u64 at = 0; at < bytes; at += kSmall) ASSERT_EQ(address_at(kStart + at), 0u);
  });
  EXPECT_GE(runs, 2u);  // a table that was made stays, empty
}

TEST_F(DomainTest, DirtyPagesAreFoundOnce) {
  make(true);
  const Arena::Guard guard(arena_);
  ASSERT_TRUE(map_range(arena_, domain_, kStart, 0x5000, 8 * kSmall, kMayWrite));
  ASSERT_TRUE(map_range(arena_, domain_, kStart + kHuge, kHuge, kHuge, kMayWrite));
  EXPECT_TRUE(set_dirty(arena_, domain_, kStart + 3 * kSmall));
  EXPECT_TRUE(set_dirty(arena_, domain_, kStart + kHuge + 77 * kSmall));
  EXPECT_FALSE(set_dirty(arena_, domain_, kStart + 100 * kSmall));  // nothing there
  EXPECT_FALSE(set_dirty(arena_, domain_, u64{1} << 40));
  const u64 last = kStart + 2 * kHuge - 1;
  const auto kept = next_dirty(arena_, domain_, kStart, last, false);
  ASSERT_TRUE(kept);
  const auto first = next_dirty(arena_, domain_, kStart, last, true);
  ASSERT_TRUE(first);
  EXPECT_EQ(first->iova, kStart + 3 * kSmall);
  EXPECT_EQ(first->bytes, kSmall);
  const auto second = next_dirty(arena_, domain_, first->iova, last, true);
  ASSERT_TRUE(second);
  EXPECT_EQ(second->iova, kStart + kHuge);
  EXPECT_EQ(second->bytes, kHuge);  // a large page is dirty as a whole
  EXPECT_FALSE(next_dirty(arena_, domain_, kStart, last, true));
}

}  // namespace
}  // namespace stagetwo::iommu

// SPDX-License-Identifier: Apache-2.0
// A page by a call of its own: the short way leaves what the general one would, undoes what that
// did, and touches nothing where anything is out of the ordinary.
#include "base/failpoint.h"
#include "iommu/dma_engine.h"
#include "tests/unit/iommu/one_page_world.h"

namespace stagetwo::iommu {
namespace {

TEST_F(OnePage, IsAsWhatTheGeneralWayMapsAndUnmaps) {
  const s64 before = blocks();
  for (u64 i = 0; i < kPages; ++i) {
    const u64 page = i * 7 % kPages;
    ASSERT_TRUE(maps(page)) << page;
    expect_there(page);
  }
  EXPECT_EQ(blocks_of_areas(), before + 2 * static_cast<s64>(kPages));
  EXPECT_EQ(host::pin_use().pins, kPages + 1);
  for (u64 page = 0; page < kPages; ++page) {
    u64 bytes = 0;
    ASSERT_EQ(unmap(ioas_, iova(page), kPageSize, &bytes), 0);
    EXPECT_EQ(bytes, kPageSize);
    expect_gone(page);
    ASSERT_EQ(map_at(ioas_, address(page), kPageSize, iova(page)), 0);
    expect_there(page);
    if (page % 2 != 0) continue;
    ASSERT_TRUE(unmaps(page)) << page;
    expect_gone(page);
  }
  for (u64 page = 1; page < kPages; page += 2) ASSERT_EQ(unmap(ioas_, iova(page), kPageSize), 0);
  EXPECT_EQ(blocks(), before);
}

// A page that is there already is one page more of it, and each goes alone.
TEST_F(OnePage, OfMemoryThatIsMappedTwiceIsPinnedTwice) {
  ASSERT_TRUE(maps(3));
  ASSERT_TRUE(maps(3, {true, iova(9), kPageSize, kReadWrite}));
  expect_there(3, 2);
  EXPECT_EQ(walk(hwpt_, iova(9)), frame_address(address(3)));
  ASSERT_TRUE(unmaps(9));
  expect_there(3);
}

TEST_F(OnePage, LeavesWhatIsOutOfTheOrdinaryToMap) {
  ASSERT_TRUE(maps(4));
  const s64 before = blocks();
  const auto is_left = [&](u64 page, MapRequest request) {
    const bool left = !maps(page, request);
    return left && blocks() == before && host::pin_use().pins == 2;
  };
  EXPECT_TRUE(is_left(5, {false, iova(5), kPageSize, kReadWrite})) << "no place of its own";
  EXPECT_TRUE(is_left(5, {true, iova(5), 2 * kPageSize, kReadWrite})) << "two pages";
  EXPECT_TRUE(is_left(5, {true, iova(5) + 1, kPageSize, kReadWrite})) << "not aligned";
  EXPECT_TRUE(is_left(5, {true, iova(5), kPageSize, kMayRead})) << "not to be written";
  EXPECT_TRUE(is_left(5, {true, iova(4), kPageSize, kReadWrite})) << "somebody has the place";
  EXPECT_TRUE(is_left(5, {true, u64{1} << 60, kPageSize, kReadWrite})) << "behind the aperture";
  EXPECT_TRUE(is_left(5, {true, iova(512), kPageSize, kReadWrite})) << "another table";
  failpoint::count_only();
  EXPECT_TRUE(is_left(5, {true, iova(5), kPageSize, kReadWrite})) << "a failpoint is armed";
  failpoint::disarm();
  EXPECT_TRUE(is_left(kPages + 1, {true, iova(5), kPageSize, kReadWrite})) << "unknown memory";
  const u32 second = make_hwpt(ioas_, device_);
  EXPECT_FALSE(maps(5)) << "two domains";
  ASSERT_EQ(map_at(ioas_, address(5), kPageSize, iova(5)), 0);
  for (const u32 one : {hwpt_, second}) EXPECT_EQ(walk(one, iova(5)), frame_address(address(5)));
  ASSERT_EQ(destroy(second), 0);
  EXPECT_TRUE(maps(7)) << "one again";
}

TEST_F(OnePage, LeavesWhatIsOutOfTheOrdinaryToUnmap) {
  ASSERT_EQ(map_at(ioas_, address(0), 2 * kPageSize, iova(0)), 0);
  for (const u64 page : {4u, 5u, 6u}) ASSERT_TRUE(maps(page));
  EXPECT_FALSE(unmaps(0)) << "a part of an area";
  EXPECT_FALSE(unmaps(iova(0), iova(2) - 1)) << "two pages";
  EXPECT_FALSE(unmaps(3)) << "nothing is there";
  u32 other = make_ioas();
  u32 access = 0;
  u64 frame = 0;
  {
    Locked locked(*context_);
    Ioas& ioas = **locked.find<Ioas>(ioas_);
    MapRequest request{true, kIova, kPageSize, kReadWrite};
    ASSERT_EQ(error_of(locked.copy(ioas, iova(4), other, &request)), 0);
    Access* const made = *locked.make_access(&ioas, true, nullptr);
    access = made->object.id;
    ASSERT_EQ(error_of(locked.pin(*made, iova(5), kPageSize, true, &frame)), 0);
  }
  EXPECT_FALSE(unmaps(4)) << "its memory has another use";
  EXPECT_FALSE(unmaps(5)) << "an access has it pinned";
  for (const u64 page : {4u, 6u}) expect_there(page);
  expect_there(5, 1);
  {
    Locked locked(*context_);
    Access* const made = *locked.find<Access>(access);
    locked.unpin(*made, iova(5), kPageSize);
    locked.destroy_access(made);
  }
  {
    const auto engine = *DmaEngine::make(*context_, device_);
    u8 byte = 0;
    const auto reads = [&] { return engine->access(1, iova(6), 1, &byte, nullptr).reason; };
    ASSERT_EQ(reads(), FaultReason::kNone);
    ASSERT_TRUE(maps(6, {true, iova(20), kPageSize, kReadWrite})) << "its memory stays pinned";
    EXPECT_TRUE(unmaps(6));
    EXPECT_NE(reads(), FaultReason::kNone) << "an engine remembers it";
  }
  EXPECT_TRUE(unmaps(5));
  ASSERT_EQ(unmap_all(other), 0);
  EXPECT_TRUE(unmaps(4)) << "it has this use alone again";
  ASSERT_EQ(destroy(other), 0);
}

}  // namespace
}  // namespace stagetwo::iommu

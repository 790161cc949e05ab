// SPDX-License-Identifier: Apache-2.0
#include "tests/unit/iommu/iommufd_world.h"

namespace stagetwo::iommu {
namespace {

class ObjectTable : public IommufdWorld {};

TEST_F(ObjectTable, GivesTheLowestFreeNumberFromOne) {
  EXPECT_EQ(make_ioas(), 1u);
  EXPECT_EQ(make_ioas(), 2u);
  EXPECT_EQ(make_ioas(), 3u);
  EXPECT_EQ(destroy(2), 0);
  EXPECT_EQ(make_ioas(), 2u);
  for (u32 id : {1u, 2u, 3u}) EXPECT_EQ(destroy(id), 0);
}

TEST_F(ObjectTable, KnowsNobodyElse) {
  const u32 ioas = make_ioas();
  EXPECT_EQ(destroy(0), ENOENT);
  EXPECT_EQ(destroy(2), ENOENT);
  EXPECT_EQ(destroy(1u << 31), ENOENT);
  {
    Locked locked(*context_);
    EXPECT_EQ(error_of(locked.find<Hwpt>(ioas)), ENOENT) << "of another kind";
  }
  EXPECT_EQ(destroy(ioas), 0);
  EXPECT_EQ(destroy(ioas), ENOENT);
}

// It has its number, and is found by its maker alone.
TEST_F(ObjectTable, KeepsWhatIsHeldBackToItsMaker) {
  const u32 ioas = make_ioas();
  {
    Locked locked(*context_);
    locked.hold_back((*locked.find<Ioas>(ioas))->object);
    EXPECT_EQ(error_of(locked.find(ioas)), ENOENT);
    EXPECT_EQ(error_of(locked.find<Ioas>(ioas)), ENOENT);
    EXPECT_EQ(error_of(locked.find_made<Ioas>(ioas)), 0);
    EXPECT_EQ(error_of(locked.find_made<Hwpt>(ioas)), ENOENT);
  }
  EXPECT_EQ(destroy(ioas), ENOENT);
  const u32 other = make_ioas();
  EXPECT_NE(other, ioas) << "nobody else gets its number";
  {
    Locked locked(*context_);
    locked.told(ioas);
    locked.hold_back((*locked.find<Ioas>(other))->object);
    locked.take_back(other);
    EXPECT_EQ(error_of(locked.find_made<Ioas>(other)), ENOENT);
  }
  EXPECT_EQ(destroy(ioas), 0);
}

TEST_F(ObjectTable, Grows) {
  for (u32 id = 1; id <= 1000; ++id) ASSERT_EQ(make_ioas(), id);
  for (u32 id = 1; id <= 1000; ++id) ASSERT_EQ(destroy(id), 0);
}

TEST_F(ObjectTable, WhatOthersLeanOnStays) {
  const u32 ioas = make_ioas();
  const Attached a = attach_device(ioas);
  ASSERT_EQ(a.error, 0);
  EXPECT_EQ(destroy(ioas), EBUSY);
  EXPECT_EQ(destroy(a.hwpt), EBUSY);
  EXPECT_EQ(destroy(a.device), EBUSY);
  EXPECT_EQ(destroy(a.test_device), 0);
  EXPECT_EQ(destroy(a.hwpt), ENOENT) << "an automatic page table goes with its last device";
  EXPECT_EQ(destroy(a.device), ENOENT);
  EXPECT_EQ(destroy(ioas), 0);
}

}  // namespace
}  // namespace stagetwo::iommu

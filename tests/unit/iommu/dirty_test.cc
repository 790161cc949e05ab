// SPDX-License-Identifier: Apache-2.0
#include <vector>

#include "tests/unit/iommu/iommufd_world.h"

namespace stagetwo::iommu {
namespace {

class DirtyTest : public IommufdWorld {
 protected:
  using Ranges = std::vector<std::pair<u64, u64>>;
  void SetUp() override {
    IommufdWorld::SetUp();
    ioas_ = make_ioas();
    a_ = attach_device(ioas_);
    Locked locked(*context_);
    hwpt_ = (*locked.make_hwpt(**locked.find<Ioas>(ioas_), **locked.find<Device>(a_.device),
                               {.dirty = true}))
                ->object.id;
  }
  void TearDown() override {
    EXPECT_EQ(unmap_all(ioas_), 0);
    EXPECT_EQ(destroy(hwpt_), 0);
    EXPECT_EQ(destroy(a_.test_device), 0);
    EXPECT_EQ(destroy(ioas_), 0);
    IommufdWorld::TearDown();
  }
  int track(u32 hwpt, bool on) {
    Locked locked(*context_);
    return error_of(locked.set_dirty_tracking(**locked.find<Hwpt>(hwpt), on));
  }
  void write_at(u64 iova) {
    Locked locked(*context_);
    EXPECT_TRUE(set_dirty(locked.arena(), (*locked.find<Hwpt>(hwpt_))->domain, iova));
  }
  Ranges read(u64 first, u64 last, bool clear, bool* whole = nullptr) {
    Locked locked(*context_);
    Ranges out;
    const bool all = locked.read_dirty(
        **locked.find<Hwpt>(hwpt_), first, last, clear,
        [](void* to, u64 a, u64 b) { static_cast<Ranges*>(to)->emplace_back(a, b); }, &out);
    if (whole != nullptr) *whole = all;
    return out;
  }

  u32 ioas_ = 0, hwpt_ = 0;
  Attached a_;
  test::GuardedPages memory_{8};
  static constexpr u64 kLast = kApertureStart + 8 * 4096 - 1;
};

TEST_F(DirtyTest, OnlyATableMadeForItTracks) {
  EXPECT_EQ(track(a_.hwpt, true), EOPNOTSUPP);
  EXPECT_EQ(track(hwpt_, true), 0);
  EXPECT_EQ(track(hwpt_, false), 0);
}

TEST_F(DirtyTest, TellsWhatWasWrittenOnce) {
  ASSERT_EQ(map_at(ioas_, memory_.address(), 8 * 4096, kApertureStart), 0);
  write_at(kApertureStart);
  EXPECT_TRUE(read(kApertureStart, kLast, true).empty()) << "not tracking";
  ASSERT_EQ(track(hwpt_, true), 0);
  EXPECT_TRUE(read(kApertureStart, kLast, true).empty()) << "tracking begins clean";
  write_at(kApertureStart + 2048);
  write_at(kApertureStart + 5 * 4096);
  const Ranges expected = {{kApertureStart + 2048, kApertureStart + 4095},
                           {kApertureStart + 5 * 4096, kApertureStart + 5 * 4096 + 2047}};
  EXPECT_EQ(read(kApertureStart, kLast, false), expected);
  EXPECT_EQ(read(kApertureStart, kLast, true), expected);
  EXPECT_TRUE(read(kApertureStart, kLast, true).empty());
}

TEST_F(DirtyTest, AHoleEndsTheWalk) {
  ASSERT_EQ(map_at(ioas_, memory_.address(), 4096, kApertureStart), 0);
  ASSERT_EQ(map_at(ioas_, memory_.address(), 4096, kApertureStart + 2 * 4096), 0);
  ASSERT_EQ(track(hwpt_, true), 0);
  write_at(kApertureStart);
  write_at(kApertureStart + 2 * 4096);
  bool whole = true;
  EXPECT_EQ(read(kApertureStart, kLast, true, &whole).size(), 1u);
  EXPECT_FALSE(whole);
  EXPECT_EQ(read(kApertureStart + 2 * 4096, kApertureStart + 3 * 4096 - 1, true, &whole).size(),
            1u);
  EXPECT_TRUE(whole);
}

}  // namespace
}  // namespace stagetwo::iommu

// SPDX-License-Identifier: Apache-2.0
// Attaching, replacing, nesting.
#include "tests/unit/iommu/iommufd_world.h"

namespace stagetwo::iommu {
namespace {

class HwptTest : public IommufdWorld {
 protected:
  void SetUp() override {
    IommufdWorld::SetUp();
    ioas_ = make_ioas();
    a_ = attach_device(ioas_);
    ASSERT_EQ(a_.error, 0);
  }
  void TearDown() override {
    EXPECT_EQ(destroy(a_.test_device), 0);
    EXPECT_EQ(destroy(ioas_), 0);
    IommufdWorld::TearDown();
  }
  u32 make_hwpt(HwptHow how) {
    Locked locked(*context_);
    return (*locked.make_hwpt(**locked.find<Ioas>(ioas_), **locked.find<Device>(a_.device), how))
        ->object.id;
  }
  int replace(u32 device, u32* pt_id) {
    Locked locked(*context_);
    return error_of(locked.replace(**locked.find<Device>(device), pt_id));
  }
  int replace_by(u32 pt_id) { return replace(a_.device, &pt_id); }

  u32 ioas_ = 0;
  Attached a_;
};

TEST_F(HwptTest, ReplacingByTheSameIsNothing) {
  EXPECT_EQ(replace_by(a_.hwpt), 0);
  u32 pt = ioas_;
  EXPECT_EQ(replace(a_.device, &pt), 0);
  EXPECT_EQ(pt, a_.hwpt);
}

TEST_F(HwptTest, AnAutomaticTableGoesWithItsLastDevice) {
  const u32 manual = make_hwpt({});
  EXPECT_EQ(replace_by(manual), 0);
  EXPECT_EQ(destroy(a_.hwpt), ENOENT);
  EXPECT_EQ(destroy(manual), EBUSY);
  u32 pt = ioas_;
  EXPECT_EQ(replace(a_.device, &pt), 0);
  EXPECT_NE(pt, manual) << "a manual one is never chosen";
  EXPECT_EQ(destroy(manual), 0);
}

TEST_F(HwptTest, ADeviceThatCannotTellWritesTakesNoTrackingTable) {
  const u32 tracking = make_hwpt({.dirty = true});
  const Attached b = attach_device(tracking, true);
  EXPECT_EQ(b.error, EINVAL);
  const Attached c = attach_device(ioas_, true);
  EXPECT_EQ(c.error, 0);
  u32 pt = tracking;
  EXPECT_EQ(replace(c.device, &pt), EINVAL);
  EXPECT_EQ(destroy(tracking), 0);
  EXPECT_EQ(destroy(c.test_device), 0);
}

TEST_F(HwptTest, UnknownAndWrongIdsAreRefused) {
  EXPECT_EQ(attach_device(9999).error, ENOENT);
  EXPECT_EQ(attach_device(a_.device).error, EINVAL);
  EXPECT_EQ(replace_by(9999), ENOENT);
  EXPECT_EQ(replace_by(a_.test_device), EINVAL);
}

TEST_F(HwptTest, NestsOnParentsOnly) {
  const u32 parent = make_hwpt({.nest_parent = true});
  const u32 plain = make_hwpt({});
  u32 nested = 0;
  {
    Locked locked(*context_);
    EXPECT_EQ(error_of(locked.make_nested(**locked.find<Hwpt>(plain))), EINVAL);
    EXPECT_EQ(error_of(locked.make_nested(**locked.find<Hwpt>(a_.hwpt))), EINVAL);
    nested = (*locked.make_nested(**locked.find<Hwpt>(parent)))->object.id;
    EXPECT_EQ(error_of(locked.make_nested(**locked.find<Hwpt>(nested))), EINVAL);
  }
  EXPECT_EQ(destroy(parent), EBUSY);
  EXPECT_EQ(replace_by(nested), 0);
  EXPECT_EQ(destroy(nested), EBUSY);
  EXPECT_EQ(replace_by(ioas_), 0);
  EXPECT_EQ(destroy(nested), 0);
  EXPECT_EQ(destroy(parent), 0);
  EXPECT_EQ(destroy(plain), 0);
}

}  // namespace
}  // namespace stagetwo::iommu

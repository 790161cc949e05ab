// SPDX-License-Identifier: Apache-2.0
// Auxiliary domains as kernels 5.2 to 5.17 had them, and as attachments of a PASID.
#include "iommu/auxiliary.h"

#include "tests/unit/iommu/device_world.h"

namespace stagetwo::iommu {
namespace {

class Auxiliary : public DeviceWorld {
 protected:
  void SetUp() override {
    DeviceWorld::SetUp();
    ioas_ = make_ioas();
    for (unsigned i = 0; i < 2; ++i) devices_[i] = make_vtd(static_cast<u16>(0x80 + i));
    for (unsigned i = 0; i < 3; ++i) tables_[i] = make_hwpt(ioas_, devices_[0]);
    ASSERT_EQ(map_at(ioas_, memory_.address(), kPageSize, kApertureStart), 0);
  }
  void TearDown() override {
    for (const u32 device : devices_) {
      Locked locked(*context_);
      locked.detach_all(**locked.find<Device>(device));
    }
    EXPECT_EQ(unmap_all(ioas_), 0);
    for (const u32 id : tables_) EXPECT_EQ(destroy(id), 0);
    for (const u32 id : devices_) EXPECT_EQ(destroy(id), 0);
    EXPECT_EQ(destroy(ioas_), 0);
    DeviceWorld::TearDown();
  }
  // fn(Locked&, Device&, Hwpt&) of device d and table t.
  template <typename F>
  auto with(unsigned d, unsigned t, F&& fn) {
    Locked locked(*context_);
    return fn(locked, **locked.find<Device>(devices_[d]), **locked.find<Hwpt>(tables_[t]));
  }
  int enable(unsigned d) {
    return with(d, 0,
                [](Locked&, Device& device, Hwpt&) { return error_of(enable_auxiliary(device)); });
  }
  int disable(unsigned d) {
    return with(d, 0,
                [](Locked&, Device& device, Hwpt&) { return error_of(disable_auxiliary(device)); });
  }
  int add(unsigned d, unsigned t) {
    return with(d, t, [](Locked& locked, Device& device, Hwpt& hwpt) {
      return error_of(attach_auxiliary(locked, device, hwpt));
    });
  }
  void drop(unsigned d, unsigned t) {
    with(d, t, [](Locked& locked, Device& device, Hwpt& hwpt) {
      detach_auxiliary(locked, device, hwpt);
      return 0;
    });
  }
  // 0: not auxiliary there, and then the answer was EINVAL.
  u32 pasid_of(unsigned d, unsigned t) {
    return with(d, t, [](Locked&, Device& device, Hwpt& hwpt) {
      const auto pasid = auxiliary_pasid(device, hwpt);
      EXPECT_TRUE(pasid || to_int(pasid.error()) == EINVAL);
      return pasid ? *pasid : 0;
    });
  }
  FaultReason reached(unsigned d, s64 pasid) {
    return write_byte(devices_[d], pasid, kApertureStart, 1);
  }

  test::GuardedPages memory_{1};
  u32 ioas_ = 0, devices_[2] = {}, tables_[3] = {};
};

TEST_F(Auxiliary, S4_07_IsAModeOfTheDevice) {
  const u32 plain = make_vtd(0x90, 0);
  {
    Locked locked(*context_);
    Device& device = **locked.find<Device>(plain);
    EXPECT_FALSE(can_be_auxiliary(device));
    EXPECT_EQ(error_of(enable_auxiliary(device)), ENODEV);
  }
  EXPECT_EQ(destroy(plain), 0);
  EXPECT_EQ(add(0, 0), EPERM);
  EXPECT_EQ(attach(devices_[0], tables_[0]), 0);
  EXPECT_EQ(enable(0), EBUSY);
  detach(devices_[0]);
  EXPECT_EQ(enable(0), 0);
  EXPECT_EQ(enable(0), 0);
  EXPECT_EQ(attach(devices_[0], tables_[0]), EPERM) << "no primary one any more";
  EXPECT_EQ(add(0, 0), 0);
  EXPECT_EQ(disable(0), EBUSY);
  drop(0, 0);
  EXPECT_EQ(disable(0), 0);
  EXPECT_EQ(attach(devices_[0], tables_[0]), 0);
}

TEST_F(Auxiliary, APageTableHasOneNumberOnEveryDevice) {
  ASSERT_EQ(enable(0), 0);
  ASSERT_EQ(enable(1), 0);
  EXPECT_EQ(pasid_of(0, 0), 0u);
  ASSERT_EQ(add(0, 0), 0);
  ASSERT_EQ(add(0, 1), 0);
  ASSERT_EQ(add(1, 1), 0);
  EXPECT_NE(pasid_of(0, 0), 0u);
  EXPECT_NE(pasid_of(0, 1), pasid_of(0, 0));
  EXPECT_EQ(pasid_of(1, 1), pasid_of(0, 1));
  EXPECT_EQ(pasid_of(1, 0), 0u);
}

TEST_F(Auxiliary, S4_09_AttachmentsAreCounted) {
  ASSERT_EQ(enable(0), 0);
  for (unsigned i = 0; i < 3; ++i) ASSERT_EQ(add(0, 0), 0);
  const u32 pasid = pasid_of(0, 0);
  drop(0, 0);
  drop(0, 0);
  EXPECT_EQ(reached(0, pasid), FaultReason::kNone);
  drop(0, 0);
  EXPECT_EQ(reached(0, pasid), FaultReason::kPasidNotPresent);
  EXPECT_EQ(pasid_of(0, 0), 0u);
  drop(0, 0);  // nothing to do
}

TEST_F(Auxiliary, S4_06_I12_OneIsPrimaryHereAndAuxiliaryThere) {
  ASSERT_EQ(enable(1), 0);
  ASSERT_EQ(attach(devices_[0], tables_[0]), 0);
  ASSERT_EQ(add(1, 0), 0);
  const u32 pasid = pasid_of(1, 0);
  EXPECT_EQ(reached(0, kNoPasid), FaultReason::kNone);
  EXPECT_EQ(reached(1, pasid), FaultReason::kNone);
  EXPECT_EQ(reached(1, kNoPasid), FaultReason::kPasidNotPresent);
  ASSERT_EQ(unmap(ioas_, kApertureStart, kPageSize), 0);
  EXPECT_EQ(reached(0, kNoPasid), FaultReason::kSecondDenied);
  EXPECT_EQ(reached(1, pasid), FaultReason::kSecondDenied);
}

// The same map seen from both sides.
TEST_F(Auxiliary, IsAnAttachmentOfItsPasid) {
  ASSERT_EQ(enable(0), 0);
  ASSERT_EQ(enable(1), 0);
  ASSERT_EQ(attach(devices_[1], tables_[2], 1), 0);
  ASSERT_EQ(add(0, 0), 0);
  const u32 pasid = pasid_of(0, 0);
  EXPECT_NE(pasid, 1u) << "a number somebody has is not chosen";
  EXPECT_EQ(attached(devices_[0], pasid), tables_[0]);
  EXPECT_EQ(attach(devices_[0], tables_[1], pasid), EBUSY);
  ASSERT_EQ(attach(devices_[1], tables_[1], pasid), 0);
  EXPECT_EQ(add(1, 0), EBUSY) << "its number is another's there";
  EXPECT_EQ(replace(devices_[0], tables_[1], pasid), 0);
  EXPECT_EQ(pasid_of(0, 0), 0u) << "it is the other one's now, by its PASID";
  EXPECT_EQ(disable(0), 0);
  ASSERT_EQ(enable(0), 0);
  ASSERT_EQ(add(0, 0), 0);
  detach(devices_[0], pasid_of(0, 0));
  EXPECT_EQ(pasid_of(0, 0), 0u);
}

TEST_F(Auxiliary, NumbersRunOut) {
  const u32 narrow = make_vtd(0x91, 1);  // PASIDs 0 and 1
  Locked locked(*context_);
  Device& device = **locked.find<Device>(narrow);
  ASSERT_EQ(error_of(enable_auxiliary(device)), 0);
  Hwpt& first = **locked.find<Hwpt>(tables_[0]);
  ASSERT_EQ(error_of(attach_auxiliary(locked, device, first)), 0);
  EXPECT_EQ(error_of(attach_auxiliary(locked, device, **locked.find<Hwpt>(tables_[1]))), ENOSPC);
  detach_auxiliary(locked, device, first);
  EXPECT_EQ(error_of(attach_auxiliary(locked, device, **locked.find<Hwpt>(tables_[1]))), 0);
  locked.detach_all(device);
  locked.destroy_device(&device);
}

}  // namespace
}  // namespace stagetwo::iommu

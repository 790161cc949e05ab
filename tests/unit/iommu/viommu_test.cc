// SPDX-License-Identifier: Apache-2.0
// Virtual IOMMUs under the iommufd's lock: who counts as whose user.
#include "iommu/viommu.h"

#include "base/failpoint.h"
#include "tests/unit/iommu/viommu_world.h"

namespace stagetwo::iommu {
namespace {

class Viommus : public ViommuWorld {};

TEST_F(Viommus, AreOfDriversThatHaveThem) {
  Locked locked(*context_);
  device(locked).side.possible = false;
  EXPECT_EQ(error_of(make_viommu(locked, device(locked), parent(locked))), EOPNOTSUPP);
  EXPECT_EQ(error_of(make_vdevice(locked, viommu(locked), device(locked), 1)), EINVAL);
}

TEST_F(Viommus, ANumberIsKeptByNobodyWhenItsDeviceGoes) {
  Locked locked(*context_);
  Vdevice* const vdevice = *make_vdevice(locked, viommu(locked), device(locked), 7);
  const u32 id = vdevice->object.id;
  EXPECT_EQ(find_vdevice(viommu(locked), 7), vdevice);
  EXPECT_EQ(error_of(make_vdevice(locked, viommu(locked), device(locked), 8)), EEXIST);
  EXPECT_EQ(viommu(locked).object.users, 1u);
  const u32 objects = locked.root().objects;
  bury_vdevice(locked, vdevice);
  EXPECT_EQ(viommu(locked).object.users, 0u);
  EXPECT_EQ(find_vdevice(viommu(locked), 7), nullptr);
  EXPECT_EQ(locked.root().objects, objects) << "it counts on";
  EXPECT_EQ(error_of(locked.find(id)), ENOENT);
  Ioas* const ioas = *locked.make_ioas();
  EXPECT_NE(ioas->object.id, id);
  locked.destroy_ioas(ioas);
  locked.root().table[id] = 0;  // the world looks for what is left
  --locked.root().objects;
}

TEST_F(Viommus, ANestedTableOnOneIsItsUserAndNotTheParents) {
  Locked locked(*context_);
  const u32 before = parent(locked).object.users;
  Hwpt* const nested = *make_nested_on(locked, viommu(locked), true);
  EXPECT_TRUE(nested->pasid_compatible);
  EXPECT_EQ(parent(locked).object.users, before);
  EXPECT_EQ(viommu(locked).object.users, 1u);
  EXPECT_EQ(error_of(check_has_number(device(locked), *nested)), ENOENT);
  EXPECT_EQ(error_of(check_has_number(device(locked), parent(locked))), 0);
  locked.destroy_hwpt(nested);
  EXPECT_EQ(parent(locked).object.users, before);
  EXPECT_EQ(viommu(locked).object.users, 0u);
}

TEST_F(Viommus, ADriverRefusesEverySecondTableOfOnePasid) {
  Locked locked(*context_);
  Device& one = device(locked);
  one.side.refusing_pasid = 9;
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(error_of(set_pasid_table(one, 9)), 0);
    EXPECT_EQ(error_of(set_pasid_table(one, 8)), 0);
    EXPECT_EQ(error_of(set_pasid_table(one, 9)), ENOMEM);
  }
}

TEST_F(Viommus, WhatIsRefusedMemoryLeavesNothing) {
  failpoint::sweep([&] {
    Locked locked(*context_);
    const auto made = make_viommu(locked, device(locked), parent(locked));
    if (made) {
      const auto page = add_page(locked, **made, 5);
      EXPECT_EQ((*made)->page != 0, page.has_value());
      EXPECT_EQ(find_by_page(locked, (*made)->page + 8191), page ? *made : nullptr);
      destroy_viommu(locked, *made);
    }
    EXPECT_EQ(parent(locked).object.users, 1u);
  });
}

}  // namespace
}  // namespace stagetwo::iommu

// SPDX-License-Identifier: Apache-2.0
#pragma once

// A device whose driver has virtual IOMMUs, a nesting parent and a virtual IOMMU on it.

#include "iommu/viommu.h"
#include "tests/unit/iommu/iommufd_world.h"

namespace stagetwo::iommu {

class ViommuWorld : public IommufdWorld {
 protected:
  void SetUp() override {
    IommufdWorld::SetUp();
    ioas_ = make_ioas();
    Locked locked(*context_);
    Device* const made = *locked.make_device(false, false, 0);
    made->side.possible = true;
    device_ = made->object.id;
    Hwpt* const hwpt = *locked.make_hwpt(**locked.find<Ioas>(ioas_), *made, {.nest_parent = true});
    parent_ = hwpt->object.id;
    viommu_ = (*make_viommu(locked, *made, *hwpt))->object.id;
  }
  void TearDown() override {
    for (const u32 id : {viommu_, parent_, device_}) EXPECT_EQ(destroy(id), 0);
    EXPECT_EQ(unmap_all(ioas_), 0);
    EXPECT_EQ(destroy(ioas_), 0);
    IommufdWorld::TearDown();
  }
  Device& device(Locked& locked) { return **locked.find<Device>(device_); }
  Hwpt& parent(Locked& locked) { return **locked.find<Hwpt>(parent_); }
  Viommu& viommu(Locked& locked) { return **locked.find<Viommu>(viommu_); }

  u32 ioas_ = 0, device_ = 0, parent_ = 0, viommu_ = 0;
};

}  // namespace stagetwo::iommu

// SPDX-License-Identifier: Apache-2.0
#pragma once

// An iommufd with devices in VT-d's tables.

#include "tests/unit/iommu/iommufd_world.h"

namespace stagetwo::iommu {

class DeviceWorld : public IommufdWorld {
 protected:
  static constexpr u8 kPasidBits = 8;

  u32 make_vtd(u16 source, u8 pasid_bits = kPasidBits, u8 levels = 4) {
    Locked locked(*context_);
    const auto made = locked.make_vtd_device(
        {.source = SourceId{source}, .max_pasid_lg2 = pasid_bits, .levels = levels});
    return made ? (*made)->object.id.get() : 0;
  }
  u32 make_hwpt(u32 ioas, u32 device, HwptHow how = {.pasid = true}) {
    Locked locked(*context_);
    const auto made =
        locked.make_hwpt(**locked.find<Ioas>(ioas), **locked.find<Device>(device), how);
    return made ? (*made)->object.id.get() : 0;
  }
  int attach(u32 device, u32 pt, u32 pasid = 0) {
    Locked locked(*context_);
    return error_of(locked.attach(**locked.find<Device>(device), &pt, pasid));
  }
  int replace(u32 device, u32 pt, u32 pasid = 0) {
    Locked locked(*context_);
    return error_of(locked.replace(**locked.find<Device>(device), &pt, pasid));
  }
  void detach(u32 device, u32 pasid = 0) {
    Locked locked(*context_);
    locked.detach(**locked.find<Device>(device), pasid);
  }
  // The page table a PASID means; 0: none.
  u32 attached(u32 device, u32 pasid = 0) {
    Locked locked(*context_);
    const auto* const one = locked.find_attachment(**locked.find<Device>(device), pasid);
    return one == nullptr ? 0 : one->hwpt->object.id.get();
  }
  // What the device's tables say of it.
  FoundPasid entry(u32 device, s64 pasid) {
    Locked locked(*context_);
    const Device& d = **locked.find<Device>(device);
    return find_pasid(locked.arena(), locked.root().root_table, SourceId{d.source.get()}, pasid);
  }
  DmaAnswer write(u32 device, s64 pasid, u64 iova, const void* from, u64 bytes) {
    Locked locked(*context_);
    return locked.dma(**locked.find<Device>(device), pasid, iova, bytes, nullptr, from);
  }
  DmaAnswer read(u32 device, s64 pasid, u64 iova, void* to, u64 bytes) {
    Locked locked(*context_);
    return locked.dma(**locked.find<Device>(device), pasid, iova, bytes, to, nullptr);
  }
  FaultReason write_byte(u32 device, s64 pasid, u64 iova, u8 value) {
    return write(device, pasid, iova, &value, 1).reason;
  }
};

}  // namespace stagetwo::iommu

// SPDX-License-Identifier: Apache-2.0
#pragma once

// What a device has of virtual IOMMUs (viommu.h). Part of objects.h.

#include "iommu/arena.h"

namespace stagetwo::iommu {

struct Viommu;
struct Vdevice;

inline constexpr unsigned kDeviceWords = 4;

struct VirtualSide {
  Kept<bool> possible;      // of a driver that has virtual IOMMUs
  RelPtr<Vdevice> vdevice;  // null: none
  // Whose nested page table the device's own requests use, and its number there when it was
  // attached: kept until another is.
  RelPtr<Viommu> viommu;
  Kept<u64> virtual_id;
  Kept<u32> cache_words[kDeviceWords];  // a test device's
  // A PASID of a test device with a driver that refuses every second table for it; 0: none.
  Kept<u32> refusing_pasid;
  Kept<bool> refuses_next;
};

}  // namespace stagetwo::iommu

// SPDX-License-Identifier: Apache-2.0
#pragma once

// What a device has of virtual IOMMUs (viommu.h). Part of objects.h.

#include "iommu/arena.h"

namespace stagetwo::iommu {

struct Viommu;
struct Vdevice;

inline constexpr unsigned kDeviceWords = 4;

struct VirtualSide {
  bool possible = false;    // of a driver that has virtual IOMMUs
  RelPtr<Vdevice> vdevice;  // null: none
  // Whose nested page table the device's own requests use, and its number there when it was
  // attached: kept until another is.
  RelPtr<Viommu> viommu;
  u64 virtual_id = 0;
  u32 cache_words[kDeviceWords] = {};  // a test device's
  // A PASID of a test device with a driver that refuses every second table for it; 0: none.
  u32 refusing_pasid = 0;
  bool refuses_next = false;
};

}  // namespace stagetwo::iommu

// SPDX-License-Identifier: Apache-2.0
#pragma once

// What a container keeps in its arena beside the iommu room's objects, and the steps over it that
// container.cc and type1.cc share. Not for other rooms. Locking: the arena's.

#include "vfio/container.h"
#include "vfio/registry.h"

namespace stagetwo::vfio {

template <typename T>
using Kept = iommu::Kept<T>;

// A group in the container. All zero: none.
struct Member {
  Kept<u64> born;
  Kept<u32> device;  // the iommu room's, while a domain is attached; 0: external
  Kept<u16> source;
  Kept<u8> pasid_bits;
  Kept<bool> mediated;
};

// A range that was written since the bitmap was read; or a map that waits for another address.
struct Range {
  iommu::IntervalNode node;
};
using Ranges = iommu::IntervalSet<Range>;

struct ContainerState {
  Kept<IommuType> type;
  Kept<u32> groups;
  Kept<u32> ioas;  // while a type is set
  Kept<u32> hwpt;  // the domain; 0: there is none
  Kept<bool> tracking;
  Kept<bool> all_dirty;  // there was no memory to say which
  Ranges dirty;          // of what has no domain
  Ranges moving;         // whole maps
  Member members[kSlots];
};

Result<void> join_domain(iommu::Locked& locked, ContainerState& found, iommu::Device& device,
                         u32 slot);
void leave_domain(iommu::Locked& locked, ContainerState& found, u32 device_id);

// Whole pages. Failure: ENOMEM.
Result<void> note_dirty(iommu::Locked& locked, ContainerState& found, u64 iova, u64 last);
// Takes away what has something in common with [iova, last].
void clear(iommu::Locked& locked, Ranges& ranges, u64 iova, u64 last);

}  // namespace stagetwo::vfio

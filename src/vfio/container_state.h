// SPDX-License-Identifier: Apache-2.0
#pragma once

// What a container keeps in its arena beside the iommu room's objects, and the steps over it that
// container.cc and type1.cc share. Not for other rooms. Locking: the arena's.

#include "vfio/container.h"
#include "vfio/registry.h"

namespace stagetwo::vfio {

// A group in the container. All zero: none.
struct Member {
  u64 born = 0;
  u32 device = 0;  // the iommu room's, while a domain is attached; 0: external
  u16 source = 0;
  u8 pasid_bits = 0;
  bool mediated = false;
};

// A range that was written since the bitmap was read; or a map that waits for another address.
struct Range {
  iommu::IntervalNode node;
};
using Ranges = iommu::IntervalSet<Range>;

struct ContainerState {
  IommuType type = IommuType::kNone;
  u32 groups = 0;
  u32 ioas = 0;  // while a type is set
  u32 hwpt = 0;  // the domain; 0: there is none
  bool tracking = false;
  bool all_dirty = false;  // there was no memory to say which
  Ranges dirty;            // of what has no domain
  Ranges moving;           // whole maps
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

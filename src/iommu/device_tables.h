// SPDX-License-Identifier: Apache-2.0
#pragma once

// The tables by which an IOMMU finds out what a device's PASID means: VT-d's scalable mode, bit by
// bit (iommu/vtd_layout.h), in the arena. Analogue: drivers/iommu/intel/pasid.c.
//
// I1  An entry is present iff the PASID is attached; a device without a PASID of its own uses 0.
// I2  A PASID table stays until its device goes; so clearing and replacing need no memory.
// I3  The last device's context takes the context and root tables with it.
// Locking: the arena's. Failure: the kernel's errno, nothing changed.

#include "addr/addr.h"
#include "base/result.h"
#include "iommu/arena.h"
#include "iommu/vtd_layout.h"

namespace stagetwo::iommu {

// `root_table`: the unit's root table pointer, 0 while it has no device.
// Failure: EBUSY (there is such a device), ENOMEM. Pre: pasid_bits <= kMostPasidBits.
Result<void> add_context(Arena& arena, Kept<u64>* root_table, SourceId source, unsigned pasid_bits);
void remove_context(Arena& arena, Kept<u64>* root_table, SourceId source);

// Failure: ENODEV (no such device), EINVAL (beyond its directory), EBUSY (present), ENOMEM.
Result<void> set_pasid_entry(Arena& arena, u64 root_table, SourceId source, u32 pasid,
                             const PasidEntry& entry);
// Pre: present.
void replace_pasid_entry(Arena& arena, u64 root_table, SourceId source, u32 pasid,
                         const PasidEntry& entry);
// The order of a removal has two steps with the flush between them: nobody finds the entry any
// more; nothing is left of it.
void hide_pasid_entry(Arena& arena, u64 root_table, SourceId source, u32 pasid);
void wipe_pasid_entry(Arena& arena, u64 root_table, SourceId source, u32 pasid);

// What the unit finds for a request; `pasid` < 0: one without. Failure: the reason.
struct FoundPasid {
  FaultReason reason = FaultReason::kNone;
  u32 pasid = 0;
  PasidEntry entry{};
};
[[nodiscard]] FoundPasid find_pasid(const Arena& arena, u64 root_table, SourceId source, s64 pasid);

}  // namespace stagetwo::iommu

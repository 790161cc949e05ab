// SPDX-License-Identifier: Apache-2.0
#pragma once

// Where an access of a device goes, found in the tables alone: the walk an IOMMU in scalable mode
// makes below a PASID entry (the way to it: device_tables.h). Source: Intel VT-d specification 3.6
// to 3.8.
//
//   first level    a processor's tables; user accesses, a write needs a writable entry everywhere
//   second level   IOVA to frame
//   nested         first, its tables and what they yield being second-level addresses
//   pass-through   the address itself
//
// I1  First-level entries of the IOMMU's own are marked accessed, and dirty by a write;
//     second-level ones where the PASID entry asks for it. A nested guest's are left alone.
// Locking: the arena's.

#include "iommu/device_tables.h"
#include "iommu/objects.h"

namespace stagetwo::iommu {

struct Walked {
  FaultReason reason = FaultReason::kNone;
  u64 address = 0;     // of the byte: a frame's as tables hold it
  u64 page_bytes = 0;  // all of them lead to the same page
  u32 rights = 0;
  bool of_process = false;  // `address` is one of this process's own, and may not be there
};

// Reads eight bytes of a frame. False: not to be reached from here.
class FrameReader {
 public:
  virtual bool read(u64 address, u64* word) = 0;

 protected:
  ~FrameReader() = default;
};

// `wanted`: one right. Pre: the entry is one find_pasid() found without a reason.
[[nodiscard]] Walked walk(const Arena& arena, const PasidEntry& entry, u64 iova, Rights wanted,
                          FrameReader& frames);

}  // namespace stagetwo::iommu

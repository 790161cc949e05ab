// SPDX-License-Identifier: Apache-2.0
#pragma once

// What a client of this process has mapped of virtual IOMMUs: while it has, they stay.
// Analogue: iommufd_fops_mmap() with its vm_operations (kernel file: drivers/iommu/iommufd/main.c).
// Differs: it is asked whether a mapping is still where it was made.
// Locking: its own, a leaf.

#include "addr/addr.h"
#include "base/vec.h"
#include "host/description.h"
#include "sync/mutex.h"

namespace stagetwo::iommu {

class Locked;

class ViommuPages {
 public:
  // Failure: EINVAL (private), EPERM (executable), ENXIO (not one whole page of a virtual IOMMU).
  static Result<void> check(Locked& locked, const host::MapRequest& request);
  void note(Hva at);  // the map has succeeded
  [[nodiscard]] bool is_mapped(u64 offset) const;

 private:
  struct Mapped {
    Hva at;
    u64 inode;
    u64 offset;
  };
  mutable sync::Mutex lock_{sync::Rank::kLeaf};
  Vec<Mapped> mapped_ TA_GUARDED(lock_){"iommu.viommu_pages"};
};

}  // namespace stagetwo::iommu

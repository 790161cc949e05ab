// SPDX-License-Identifier: Apache-2.0
#include "iommu/viommu_pages.h"

#include <sys/mman.h>

#include "host/process_map.h"
#include "iommu/viommu.h"

namespace stagetwo::iommu {

Result<void> ViommuPages::check(Locked& locked, const host::MapRequest& request) {
  if ((request.flags & MAP_TYPE) == MAP_PRIVATE) return refuse(EINVAL);
  if ((request.prot & PROT_EXEC) != 0) return refuse(EPERM);
  const u64 offset = static_cast<u64>(request.offset);
  Viommu* const viommu = find_by_page(locked, offset);
  const u64 bytes = (request.size + kPageSize - 1) & kPageMask;
  if (viommu == nullptr || offset != viommu->page || bytes != kViommuPageBytes) {
    return refuse(ENXIO);
  }
  viommu->mapped = true;
  return {};
}

void ViommuPages::note(Hva at) {
  const auto mapping = host::mapping_at(at);
  if (!mapping) return;
  const sync::MutexGuard guard(lock_);
  static_cast<void>(mapped_.push_back({at, mapping->inode, mapping->offset}));
}

bool ViommuPages::is_mapped(u64 offset) const {
  for (size_t i = 0;; ++i) {
    Mapped one{};
    {
      const sync::MutexGuard guard(lock_);
      if (i >= mapped_.size()) return false;
      one = mapped_[i];
    }
    if (one.offset != offset) continue;
    const auto now = host::mapping_at(one.at);
    if (now && now->inode == one.inode && now->offset + (one.at - now->range.start()) == offset) {
      return true;
    }
  }
}

}  // namespace stagetwo::iommu

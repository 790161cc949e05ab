// SPDX-License-Identifier: Apache-2.0
// What devices have written. kernel file: drivers/iommu/iommufd/io_pagetable.c
// (iopt_set_dirty_tracking, iopt_read_and_clear_dirty_data).
#include <algorithm>

#include "base/guard.h"
#include "iommu/locked.h"

namespace stagetwo::iommu {

Result<void> Locked::set_dirty_tracking(Hwpt& hwpt, bool on) {
  if (!hwpt.domain.dirty_ops) return refuse(EOPNOTSUPP);
  const Ioas& ioas = *hwpt.ioas;
  for (const Area* area = areas(ioas).first(); on && area != nullptr;
       area = ioas.nodes.next(area)) {
    u64 at = area->iova();
    while (const auto page = next_dirty(arena(), hwpt.domain, at, area->last(), true)) {
      at = page->iova + page->bytes;
    }
  }
  hwpt.domain.tracking = on;
  // A cached right to write is one whose write was marked: it has to be marked again.
  flush_pages(hwpt, 0, ~u64{0});
  return {};
}

bool Locked::read_dirty(Hwpt& hwpt, u64 iova, u64 last, bool clear, DirtyFn fn, void* context) {
  if (!hwpt.domain.tracking) return false;
  const bool whole = collect_dirty(hwpt, iova, last, clear, fn, context);
  if (clear && ST_GUARD(iommu_dirty_flush, true)) flush_pages(hwpt, iova, last);
  return whole;
}

bool Locked::collect_dirty(Hwpt& hwpt, u64 iova, u64 last, bool clear, DirtyFn fn, void* context) {
  for (u64 at = iova;;) {
    const Area* const area = areas(*hwpt.ioas, at, at).first(at, at);
    if (area == nullptr || area->filler != 0) return false;
    const u64 end = std::min(last, area->last());
    while (at <= end) {
      const auto page = next_dirty(arena(), hwpt.domain, at, end, clear);
      if (!page) break;
      const u64 page_last = page->iova + page->bytes - 1;
      fn(context, std::max(page->iova, at), std::min(page_last, last));
      at = page_last + 1;
    }
    if (end == last) return true;
    at = end + 1;
  }
}

}  // namespace stagetwo::iommu

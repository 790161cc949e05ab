// SPDX-License-Identifier: Apache-2.0
// What the process's own page table says, page by page, without a fault. kernel file:
// lib/test_hmm.c (dmirror_snapshot) over mm/hmm.c.

#include "base/sys.h"
#include "host/mapping_level.h"
#include "host/process_map.h"
#include "mirror/mirror.h"

namespace stagetwo::mirror {
namespace {

constexpr u64 kSnapshotTimeoutNs = 1'000'000'000;

PageView view_of(Hva at, const host::PageState& page, const host::Mapping& mapping) {
  PageView view;
  view.where = page.present ? PageView::Where::kSystem : PageView::Where::kNothing;
  view.writable = page.writable(mapping);
  view.zero = page.zero;
  if (page.present && (page.huge || mapping.page_size != kPageSize)) {
    view.level = host::mapping_level(at);
  }
  return view;
}

}  // namespace

Result<void> Mirror::view_chunk(Hva first, unsigned count, PageView* out) {
  host::PageState states[kMaxPages];
  ST_TRY(host::page_states(first, count, states));
  host::Mapping mapping;
  for (unsigned i = 0; i < count; ++i) {
    const Hva at = first + u64{i} * kPageSize;
    out[i] = {};
    if (!mapping.range.contains(at)) {
      const auto found = host::mapping_at(at);
      if (!found && to_int(found.error()) != EFAULT) return refuse(found.error());
      if (!found) continue;
      mapping = *found;
    }
    if (!mapping.prot.read) continue;
    bool elsewhere = false;
    {
      const sync::MutexGuard guard(device_->lock);
      const DevicePage* here = device_->find(at);
      if (here != nullptr && !here->exclusive) {
        out[i].where = PageView::Where::kThisDevice;
        out[i].writable = here->writable;
        continue;
      }
      elsewhere = here != nullptr;
    }
    // Another device's page, or an exclusive one, is an entry without access.
    if (elsewhere || host::is_absent(at)) {
      out[i].where = PageView::Where::kNothing;
    } else {
      out[i] = view_of(at, states[i], mapping);
    }
  }
  return {};
}

Result<void> Mirror::snapshot(Hva first, unsigned count, PageView* out) {
  const u64 end = sys::monotonic_ns() + kSnapshotTimeoutNs;
  while (sys::monotonic_ns() < end) {
    const auto seen = gate_.snapshot();
    ST_TRY(view_chunk(first, count, out));
    const sync::MutexGuard guard(device_->lock);
    if (!changed(seen, first, count)) return {};
  }
  return refuse(EBUSY);
}

}  // namespace stagetwo::mirror

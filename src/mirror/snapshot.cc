// SPDX-License-Identifier: Apache-2.0
// What the process's own page table says, page by page, without a fault. kernel file:
// lib/test_hmm.c (dmirror_snapshot) over mm/hmm.c.

#include "base/sys.h"
#include "host/interval_notifier.h"
#include "host/mapping_level.h"
#include "host/process_map.h"
#include "mirror/mirror.h"
#include "sync/futex.h"
#include "sync/try_mutex.h"

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

// For as long as the look takes, as the kernel's driver does it: a mirror need not have looked
// there.
class Watch final : public host::IntervalNotifier {
 public:
  explicit Watch(sync::Mutex* lock) : lock_(lock) {}
  ~Watch() { remove(); }
  bool invalidate(const host::InvalidateEvent& event, u64 sequence) override {
    if (event.blockable) {
      const sync::MutexGuard guard(*lock_);
      set_sequence(sequence);
      return true;
    }
    const sync::TryMutexGuard guard(*lock_);
    if (guard.locked()) set_sequence(sequence);
    return guard.locked();
  }

 private:
  sync::Mutex* lock_;
};

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
      if (here != nullptr && !here->exclusive && !device_->coherent()) {
        out[i].where = PageView::Where::kThisDevice;
        out[i].writable = here->writable && mapping.prot.write;
        continue;
      }
      elsewhere = here != nullptr;
    }
    const Device::Residence residence = Device::residence_of(at);
    // Half way: the page table says neither.
    if (residence.coming) return refuse(EBUSY);
    // Another device's page, or an exclusive one, is an entry without access.
    if (elsewhere || host::is_absent(at)) {
      out[i].where = PageView::Where::kNothing;
      continue;
    }
    out[i] = view_of(at, states[i], mapping);
    if (residence.device == nullptr) continue;
    if (!states[i].present) {
      host::PageState now;
      // Nobody told of the unmap. The first look may have been before the page came.
      const bool gone = host::page_states(at, 1, &now) && !now.present && !now.swapped;
      if (gone) residence.device->forget_resident(at.raw() >> kPageShift);
      continue;
    }
    out[i].where = residence.device == device_ ? PageView::Where::kResidentHere
                                               : PageView::Where::kResidentElsewhere;
    out[i].level = 1;
  }
  return {};
}

Result<void> Mirror::snapshot(Hva first, unsigned count, PageView* out) {
  const u64 end = sys::monotonic_ns() + kSnapshotTimeoutNs;
  Watch watch(&device_->lock);
  if (!watch.insert(first, u64{count} * kPageSize)) return refuse(EFAULT);
  while (sys::monotonic_ns() < end) {
    const u64 seen = watch.read_begin();
    const auto viewed = view_chunk(first, count, out);
    if (!viewed && to_int(viewed.error()) == EBUSY) {
      sync::yield_thread();
      continue;
    }
    ST_TRY(viewed);
    const sync::MutexGuard guard(device_->lock);
    if (!watch.read_retry(seen)) return {};
  }
  return refuse(EBUSY);
}

}  // namespace stagetwo::mirror

// SPDX-License-Identifier: Apache-2.0
#include "mirror/span.h"

#include <algorithm>

#include "base/trace.h"
#include "mirror/mirror.h"
#include "sync/try_mutex.h"

namespace stagetwo::mirror {

// The lock is held while a page is copied, which may wait for the kernel to bring it in: so a start
// that may not wait does not wait for it.
bool Span::invalidate(const host::InvalidateEvent& event, u64 sequence) TA_NO_ANALYSIS {
  trace::enter_room(trace::Room::mirror, 5, event.range.start().raw());
  if (event.blockable) {
    const sync::MutexGuard guard(mirror_->device_->lock);
    forget(event, sequence);
    return true;
  }
  const sync::TryMutexGuard guard(mirror_->device_->lock);
  if (guard.locked()) forget(event, sequence);
  return guard.locked();
}

HvaRange Span::part_of(HvaRange range) const {
  const Hva first(number_ * kBytes);
  const u64 start = std::max(first.raw(), range.start().raw());
  const u64 last = std::min(first.raw() + (kBytes - 1), range.end().raw() - 1);
  return HvaRange(Hva(start), last + 1 - start);
}

void Span::forget(const host::InvalidateEvent& event, u64 sequence) TA_NO_ANALYSIS {
  set_sequence(sequence);
  const HvaRange part = part_of(event.range);
  if (mirror_->device_->takes_residents(event)) {
    lost_by_ = sequence;
    mirror_->device_->lose_residents(part);
  }
  if (event.owner == mirror_->device_) {
    mirror_->suspend_entries(part, sequence);
  } else {
    mirror_->erase_entries(part);
  }
}

}  // namespace stagetwo::mirror

// SPDX-License-Identifier: Apache-2.0
// What stands beside an arena whose last section was put back (kept.h): the pipes behind the
// queues say what those hold, and who waits for a response looks again.
#include <climits>

#include "iommu/event_queue.h"
#include "sync/futex.h"

namespace stagetwo::iommu {

void Locked::settle_after_death() {
  const auto tell = [this](const QueueFile& file, bool any) {
    queue_files().fall(file);
    if (any) queue_files().rise(file, false);
  };
  for (u64 id = 1; id < root().table_size; ++id) {
    if (const auto faults = find<FaultQueue>(static_cast<u32>(id))) {
      tell((*faults)->file, (*faults)->delivered.get() != nullptr);
    } else if (const auto events = find<EventQueue>(static_cast<u32>(id))) {
      tell((*events)->file, first_event(**events).any);
    }
  }
  guard_.settled();
  root().responses.fetch_add(1, sync::kRelease);
  sync::futex_wake(root().responses, INT_MAX);
}

void Uncharged::settle() {
  for (const auto mode :
       {host::PinCharge::kNone, host::PinCharge::kUser, host::PinCharge::kProcess}) {
    if (const u64 some = pages_[place_of(mode, false)]) host::uncharge_pins(mode, some);
    if (const u64 some = pages_[place_of(mode, true)]) host::uncharge_pins_of_the_dead(mode, some);
  }
}

}  // namespace stagetwo::iommu

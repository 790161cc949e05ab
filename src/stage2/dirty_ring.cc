// SPDX-License-Identifier: Apache-2.0
#include "stage2/dirty_ring.h"

#include <algorithm>

#include "addr/addr.h"
#include "base/check.h"
#include "base/guard.h"
#include "base/trace.h"

// An entry's way round:
//
//   vCPU                              | client                      | reset
//   slot, offset; index; DIRTY (rel)  |                             |
//                                     | DIRTY (acq): slot, offset   |
//                                     | RESET (rel)                 |
//                                     |                             | RESET (acq): slot, offset,
//                                     index |                             | 0; taken (rel)
//   taken (acq): room; slot, offset   |                             |
//
// The index is counted before DIRTY is shown: reset() stops at the index (I3), and an entry the
// client has already collected must not be beyond what reset() sees of it.
//
// Why a page is never lost between a store and a reset (I2); W is "the page may be written":
//
//   vCPU                                    | client, reset
//   enters RUNNING; W was clear: sets it    |
//   push                                    |
//                                           | collects the entry, RESET
//                                           | reset: W cleared
//   stores through its translation          | flush: waits for this line
//   polls: drops the translation, acks      |
//   next store: W is clear: sets it, push   | returns; the client reads the page: it holds the
//   store
//
//   vCPU A                  | vCPU B                   | reset
//   sets W, push            |                          |
//                           | enters, finds W set      | W cleared
//                           | stores                   | flush: waits for B as well
//
// So what a second vCPU stores without pushing is in the pages that the entry taken stands for, if
// the client reads them after KVM_RESET_DIRTY_RINGS returned, as its rules say.
//
// Overrun:
//
//   vCPU                                    | client
//   the ring is soft full: leaves at the    |
//   boundary of the instruction that pushed |
//                                           | collects nothing, runs the vCPU again
//   is told again, before the first         |
//   instruction                             |

namespace stagetwo::stage2 {

Result<void> DirtyRing::check_size(u32 bytes) {
  if (bytes == 0 || (bytes & (bytes - 1)) != 0) return refuse(EINVAL);
  constexpr u64 kLeast = std::max<u64>(kReservedEntries * sizeof(DirtyGfn), kPageSize);
  if (bytes < kLeast) return refuse(EINVAL);
  if (bytes > kMaxEntries * sizeof(DirtyGfn)) return refuse(E2BIG);
  return {};
}

DirtyRing::DirtyRing(u32 index, void* entries, u32 bytes, u32 reserved)
    : index_(index),
      size_(bytes / sizeof(DirtyGfn)),
      soft_limit_(size_ - reserved),
      entries_(static_cast<DirtyGfn*>(entries)) {}

void DirtyRing::push(u32 slot, u64 offset) {
  ST_CHECK_OP(used(), <, size_);  // I1; pairs with the release of take()
  const u32 at = dirty_index_.load(sync::kRelaxed);
  DirtyGfn& entry = entries_[at & (size_ - 1)];
  entry.slot.store(slot, sync::kRelaxed);
  entry.offset.store(offset, sync::kRelaxed);
  const bool counted_first = ST_GUARD(ring_count_first, true);
  if (counted_first) dirty_index_.store(at + 1, sync::kRelaxed);
  entry.flags.store(kGfnDirtied, ST_GUARD(ring_release, true) ? sync::kRelease : sync::kRelaxed);
  if (!counted_first) dirty_index_.store(at + 1, sync::kRelaxed);
  trace::emit(trace::Event::kvm_dirty_ring_push, trace::Room::stage2, index_, slot, offset,
              reset_index_.load(sync::kRelaxed));
}

bool DirtyRing::take(u32* slot, u64* offset) {
  const u32 at = reset_index_.load(sync::kRelaxed);  // stored under slots_lock
  DirtyGfn& entry = entries_[at & (size_ - 1)];
  if ((entry.flags.load(sync::kAcquire) & kGfnReset) == 0) return false;
  if (at == dirty_index_.load(sync::kRelaxed)) return false;  // I3
  *slot = entry.slot.load(sync::kRelaxed);
  *offset = entry.offset.load(sync::kRelaxed);
  entry.flags.store(0, sync::kRelease);
  reset_index_.store(at + 1, sync::kRelease);
  return true;
}

bool ResetWindow::add(u32 slot, u64 offset) {
  if (mask_ == 0 || slot != slot_) return false;
  const u64 forward = offset - offset_;
  if (forward < 64) {
    mask_ |= u64{1} << forward;
    return true;
  }
  const u64 back = offset_ - offset;
  if (back >= 64 || mask_ << back >> back != mask_) return false;
  offset_ = offset;
  mask_ = mask_ << back | 1;
  return true;
}

void ResetWindow::start(u32 slot, u64 offset) {
  slot_ = slot;
  offset_ = offset;
  mask_ = 1;
}

}  // namespace stagetwo::stage2

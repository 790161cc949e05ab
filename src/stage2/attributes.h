// SPDX-License-Identifier: Apache-2.0
#pragma once

// Which frames of a VM are private: what KVM_SET_MEMORY_ATTRIBUTES has said. Analogue:
// mem_attr_array and the mixed bit of lpage_info (kernel files: kvm_main.c, mmu.c). Differs:
// ranges, not an entry a page, so one call costs what it changes in ranges; whether a huge page's
// frames differ is asked of the ranges and stored nowhere.
//
// Invariants: I1  every frame is shared until it is said otherwise,
//                 with a slot or without, and stays what it is when
//                 its slot goes.
//             I2  a reader sees a call as a whole or not at all.
// Locking: lock_ (rank: attributes): faults share it, a change holds it alone for as long as it
// edits the ranges. Changes exclude each other by slots_lock; they happen while the gate is closed
// for the frames (private_memory.cc), so a fault that read the old answer installs nothing.

#include "addr/addr.h"
#include "base/interval_map.h"
#include "base/result.h"
#include "sync/big_reader_mutex.h"

namespace stagetwo::stage2 {

class MemoryAttributes {
 public:
  [[nodiscard]] bool is_private(Gfn gfn) const TA_EXCL(lock_) {
    const sync::BigReaderGuard shared(lock_);
    return static_cast<bool>(private_.find(gfn.raw()));
  }
  // Is every frame of the range private, or every one shared?
  [[nodiscard]] bool all_are(GfnRange range, bool is_private) const TA_EXCL(lock_) {
    const sync::BigReaderGuard shared(lock_);
    const auto first = private_.find_from(range.start().raw());
    if (!is_private) return !first || first.start >= range.end().raw();
    return first && first.start <= range.start().raw() && first.end >= range.end().raw();
  }
  [[nodiscard]] bool is_mixed(GfnRange range) const {
    return !all_are(range, false) && !all_are(range, true);
  }

  // Post: the next set() cannot fail. Failure: ENOMEM. Context: under slots_lock, as set().
  [[nodiscard]] Result<void> reserve() TA_EXCL(lock_) {
    const sync::BigWriterGuard alone(lock_);
    return private_.reserve();
  }
  void set(GfnRange range, bool is_private) TA_EXCL(lock_) {
    const sync::BigWriterGuard alone(lock_);
    if (is_private) {
      private_.assign_reserved(range.start().raw(), range.end().raw(), true);
    } else {
      private_.erase_reserved(range.start().raw(), range.end().raw());
    }
  }
  [[nodiscard]] size_t range_count() const TA_EXCL(lock_) {
    const sync::BigReaderGuard shared(lock_);
    return private_.size();
  }

 private:
  mutable sync::BigReaderMutex lock_{sync::Rank::kAttributes};
  IntervalMap<u64, bool> private_ TA_GUARDED(lock_){"stage2.attributes"};
};

}  // namespace stagetwo::stage2

// SPDX-License-Identifier: Apache-2.0
#pragma once

// Which pages were made present since the last invalidation ended, so that the kernel is not asked
// again. A hint of fixed size: forgetting an entry costs a touch or a system call, remembering one
// too long costs a fault that host/access.h turns into an answer. Each vCPU has one for its faults,
// the VM one for KVM's own accesses: a fault writes here, and a line that two vCPUs write costs
// more than all the rest of a fault.
//
// Invariant: I1  an entry counts only together with the gate's snapshot it was made under: the
//                sequence is part of it, so one invalidation forgets them all.
// Locking: none; each entry is one atomic word, relaxed: it carries no other data.

#include "addr/addr.h"
#include "base/types.h"
#include "sync/atomic.h"

namespace stagetwo::stage2 {

class ResidentCache {
 public:
  // Known present for `access` under `sequence`?
  [[nodiscard]] bool contains(Hva page, u64 sequence, bool writable) const {
    const u64 entry = entries_[index_of(page)].load(std::memory_order_relaxed);
    return entry == word_of(page, sequence, true) ||
           (!writable && entry == word_of(page, sequence, false));
  }
  // Pre: page was made present under `sequence`, and the gate still says so.
  void insert(Hva page, u64 sequence, bool writable) {
    if (!writable && contains(page, sequence, true)) return;
    entries_[index_of(page)].store(word_of(page, sequence, writable), std::memory_order_relaxed);
  }

 private:
  static constexpr unsigned kEntriesLg2 = 9;

  // 35 bits of page number, one of right, 28 of sequence: one wrap apart looks equal, which costs a
  // guarded fault and nothing else. Zero is no entry, as page 0 is never a client's.
  static u64 word_of(Hva page, u64 sequence, bool writable) {
    return (page.raw() >> kPageShift) << 29 | u64{writable} << 28 | (sequence & ((1U << 28) - 1));
  }
  static size_t index_of(Hva page) {
    return ((page.raw() >> kPageShift) * 0x9E3779B97F4A7C15U) >> (64 - kEntriesLg2);
  }

  sync::Atomic<u64> entries_[1U << kEntriesLg2]{};
};

}  // namespace stagetwo::stage2

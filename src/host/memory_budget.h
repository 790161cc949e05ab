// SPDX-License-Identifier: Apache-2.0
#pragma once

// How many more pages guests may get before somebody makes room: whoever is about to make one
// present pays here first, and who finds nothing left makes room himself, by a turn of the work
// item that said so, or waits for who is at it. Analogue: try_charge() of a memory cgroup and its
// direct reclaim (kernel file: mm/memcontrol.c). Differs: what is paid is an estimate that each
// turn corrects, and a payment is never refused: where no room can be made, the limit is not kept.
//
// Pressure is data, not a bell: docs/decisions/0024-memory-under-a-limit.md.
//
// Locking: none of its own; a turn takes what it takes. Lifetime: the item until clear().

#include "base/types.h"
#include "sync/atomic.h"

namespace stagetwo::host {

class WorkItem;

namespace budget {

namespace detail {
extern sync::Atomic<bool> limited;  // relaxed
void pay_slow(u64 pages);
}  // namespace detail

// Context: a thread of the client's outside of every section, with no lock; may run a turn.
inline void pay(u64 pages) {
  if (detail::limited.load(sync::kRelaxed)) [[unlikely]]
    detail::pay_slow(pages);
}
// The same for who must not wait for anybody: nothing left is the worker's to know. Deep in debt it
// takes a millisecond.
void owe(u64 pages);

[[nodiscard]] inline bool is_limited() {
  return detail::limited.load(sync::kRelaxed);
}
// Pages are paid for from now on, and `item` makes room. Pre: it is in the worker's list.
void limit(WorkItem* item);
// Nobody pays any more. Post: no turn runs on account of a payment. Pre: before remove_work().
void clear();
// What is left, in place of what was. Wakes those who wait.
void grant(s64 pages);
[[nodiscard]] s64 left();

void after_fork_child();

}  // namespace budget
}  // namespace stagetwo::host

// SPDX-License-Identifier: Apache-2.0
#pragma once

// What Atomic<T>, futexes and the asymmetric barrier ask of the deterministic scheduler. Only in
// ST_SCHED builds; tests include sync/schedule.h instead.
//
// A write is three calls: before_write() is the schedule point (and learns the word), read_newest()
// if the operation also reads, then wrote() or modified() without a schedule point between.

#include <atomic>

#include "base/types.h"

#if defined(ST_SCHED)

namespace stagetwo::sync::sched {

// Is the calling thread one of a scheduled run?
bool active();

// Which one; outside of a run 0.
unsigned thread_number();

u64 load(const void* word, u64 newest, std::memory_order order);
void before_write(const void* word, u64 newest);
void read_newest(const void* word, std::memory_order order);
void wrote(const void* word, u64 value, std::memory_order order);
void modified(const void* word, u64 value, std::memory_order order);
// May a weak compare-and-exchange fail for no reason now?
bool fail_weakly();
// New objects live in these bytes.
void forget(const void* memory, u64 bytes);

// A wait loop: the caller made no progress and wants the others to go first.
void spin();
// Blocks until futex_wake on `word`, unless the newest value is not `expected`. With a timeout it
// may wake at any later schedule point. False: it timed out or did not sleep.
bool futex_wait(const void* word, u32 expected, bool has_timeout);
void futex_wake(const void* word, int count);
// The heavy half of the asymmetric barrier: a full barrier in every thread of the run.
void barrier_everywhere();
// The same, and every restartable access that is under way is aborted.
void restart_everywhere();
// A number that orders runs' time: grows by one a step.
u64 now();

}  // namespace stagetwo::sync::sched

#endif

// SPDX-License-Identifier: Apache-2.0
#pragma once

// Sleeping on a word, through the schedule seam. Analogue: futex(2), private.
// Spurious returns are allowed; the caller looks again.

#include "sync/atomic.h"

namespace stagetwo::sync {

inline constexpr u64 kNoTimeout = ~u64{0};

// Sleeps while `word` is `expected`, at most `timeout_ns`.
void futex_wait(Atomic<u32>& word, u32 expected, u64 timeout_ns = kNoTimeout);
// Wakes up to `count` sleepers.
void futex_wake(Atomic<u32>& word, int count);
// Gives the processor away.
void yield_thread();
// Nanoseconds since some moment; steps of the scheduler inside a scheduled run.
u64 now_ns();

}  // namespace stagetwo::sync

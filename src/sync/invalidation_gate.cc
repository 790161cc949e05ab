// SPDX-License-Identifier: Apache-2.0
#include "sync/invalidation_gate.h"

#include "base/check.h"
#include "base/guard.h"
#include "base/trace.h"

// The races of the gate. F is a fault for a frame inside the range of invalidation I, W is I's
// waiting for the ack lines (sync/ack_line.h), "install" stands for any use of the looked-up page.
//
//   F                                 | I
//   snapshot s                        |
//   look up (old meaning)             |
//                                     | count 0 → 1
//   line RUNNING; count = 1, in hull  |                              → retry
//
//   F                                 | I
//   snapshot s; look up               |
//   line RUNNING; count = 0; s same   |
//                                     | count 0 → 1; W sees RUNNING: waits
//   install; use; poll: flushed       |
//                                     | W ends; zap removes the entry → nothing is left
//
//   F                                 | I
//   snapshot s; look up (old meaning) |
//                                     | count 1; W; zap; change; sequence s + 1; count 0
//   line RUNNING; count = 0           |
//   sequence = s + 1                  |                              → retry
//
//   F                                 | I
//   reads count = 1                   | (I is in progress)
//                                     | sequence s + 1; count 0
//                                     | another begins elsewhere: hull reset, count 1
//   reads the other's hull: outside   |
//   sequence = s + 1                  |                              → retry
//
// The last case is why the hull is stored with release and read with acquire. A half-reset hull
// (one bound new, one old) is the same case: any new bound brings the new sequence with it.
// The count that dropped before the sequence rose would lose the third case; tests/sched keeps such
// a twin and shows that it is found.

namespace stagetwo::sync {

void InvalidationGate::widen(u64 first, u64 last) {
  const bool fresh = count_.load(kRelaxed) == 0;
  if (fresh || first < hull_first_.load(kRelaxed)) hull_first_.store(first, kRelease);
  if (fresh || last > hull_last_.load(kRelaxed)) hull_last_.store(last, kRelease);
}

void InvalidationGate::begin(u64 first, u64 last) {
  ST_DCHECK(first <= last);
  {
    const MutexGuard guard(lock_);
    widen(first, last);
    count_.fetch_add(1, kSeqCst);
  }
  trace::emit(trace::Event::st_gate_begin, trace::Room::sync, first, last,
              sequence_.load(kRelaxed));
}

void InvalidationGate::extend(u64 first, u64 last) {
  const MutexGuard guard(lock_);
  ST_DCHECK(count_.load(kRelaxed) != 0);
  widen(first, last);
}

void InvalidationGate::end() {
  const MutexGuard guard(lock_);
  const u64 sequence = sequence_.load(kRelaxed) + 1;
  const u64 left = count_.load(kRelaxed) - 1;  // nobody else writes it: a store does
  ST_CHECK_OP(left, !=, ~u64{0});
  // Lookup and install (O1): a fault that finds the count low finds the new sequence, too.
  const bool count_last = ST_GUARD(sequence_first, true);
  if (!count_last) count_.store(left, kRelease);
  sequence_.store(sequence, kRelease);
  if (count_last) count_.store(left, kRelease);
  trace::emit(trace::Event::st_gate_end, trace::Room::sync, sequence);
}

void InvalidationGate::end(u64 first, u64 last) {
  ST_DCHECK(first >= hull_first_.load(kRelaxed) && last <= hull_last_.load(kRelaxed));
  end();
}

}  // namespace stagetwo::sync

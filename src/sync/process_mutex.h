// SPDX-License-Identifier: Apache-2.0
#pragma once

// A lock in memory that several processes share: what hangs off a file description is changed
// under one (DESIGN.md, rule 11). It holds a thread's number, so that whoever waits finds out that
// the holder has died; the next one gets the lock and is told.
//
//   word   0                free
//          tid              held
//          tid | kWaiters   held, and somebody may sleep
//
//   waiter                                 holder
//   word | kWaiters, sleep 10 ms           exchange(0), wake one if kWaiters was set
//   after 10 ms: does `tid` live?          dies, waited for or not: the word stays
//   no: compare-exchange to its own tid    → the waiter has it and died() is true
//
// I1  Whoever had to wait holds it with kWaiters, so no sleeper is forgotten.
// I2  died() is true for exactly one taker a death.
// Differs from a robust futex of libc: no list a thread has to register. A thread number that was
// given out again while somebody waits is taken for the holder.
// Locking: ranked like any other. Lifetime: the memory's. Zero is free: fresh memory is a lock.

#include "base/sys.h"
#include "sync/mutex.h"

namespace stagetwo::sync {

// Has this thread, of whatever process, ended? Waited for or not.
[[nodiscard]] bool is_thread_gone(u32 tid);

class TA_CAP("process_mutex") ProcessMutex {
 public:
  constexpr ProcessMutex() = default;
  ProcessMutex(const ProcessMutex&) = delete;
  ProcessMutex& operator=(const ProcessMutex&) = delete;

 private:
  friend class ProcessMutexGuard;
  static constexpr u32 kWaiters = 1u << 31;

  // True: the last holder died inside.
  bool acquire() {
    const u32 self = static_cast<u32>(sys::current_tid());
    u32 seen = 0;
    if (word_.compare_exchange(seen, self, kAcquire)) [[likely]]
      return false;
    return acquire_slow(self);
  }
  bool acquire_slow(u32 self);
  void release() {
    if ((word_.exchange(0, kRelease) & kWaiters) != 0) [[unlikely]]
      wake();
  }
  void wake();

  Atomic<u32> word_{0};  // acquire on entry pairs with release on exit, across processes
};
static_assert(sizeof(ProcessMutex) == 4, "its place in shared memory is for ever");

class TA_SCOPED ProcessMutexGuard {
 public:
  explicit ProcessMutexGuard(ProcessMutex& mutex, Rank rank, Place place = Place::current())
      TA_ACQ(mutex)
      : mutex_(mutex) {
    if constexpr (detail::kCheckRanks) detail::note_acquire(held_, &mutex, rank, place);
    died_ = mutex.acquire();
  }
  ~ProcessMutexGuard() TA_REL() {
    mutex_.release();
    if constexpr (detail::kCheckRanks) detail::note_release(held_);
  }
  ProcessMutexGuard(const ProcessMutexGuard&) = delete;
  ProcessMutexGuard& operator=(const ProcessMutexGuard&) = delete;

  // What the lock protects may be half changed.
  [[nodiscard]] bool died() const { return died_; }

 private:
  ProcessMutex& mutex_;
  bool died_ = false;
  [[maybe_unused]] detail::Held held_;
};

}  // namespace stagetwo::sync

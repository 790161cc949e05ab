// SPDX-License-Identifier: Apache-2.0
#pragma once

// A lock in memory that several processes share: what hangs off a file description is changed
// under one (DESIGN.md, rule 11). It holds a thread's number, and the kernel marks it when that
// thread ends (sync/death_notice.h); the next one gets the lock and is told.
//
//   word   0                free
//          tid              held; the number is that of the holder's PID namespace
//          tid | kWaiters   held, and somebody may sleep
//          kDied …          free; the last holder ended inside
//          tid | kUntold …  held by a thread that the kernel may not be told of
//
//   waiter                                 holder
//   word | kWaiters, sleep at most 10 ms   exchange(0), wake one if kWaiters was set
//                                          dies: the kernel writes kDied, wakes one
//   free or kDied: compare-exchange to     → the waiter has it and died() is true
//   its own tid
//   a waiter's number says nothing about   two namespaces may both have it
//   a holder's
//
// I1  Whoever had to wait holds it with kWaiters, so no sleeper is forgotten.
// I2  died() is true for exactly one taker a death.
// I3  Nobody is taken for dead but by the kernel, which knows whose number it is. Where it may not
//     be told, a waiter asks for the thread by its number, as its own namespace has it.
// Differs from a robust futex of libc: a sleeper looks again after 10 ms, so a wake that was lost
// with a thread that ended between release and wake costs no more.
// Locking: ranked like any other. Lifetime: the memory's. Zero is free: fresh memory is a lock.

#include <cstddef>

#include "base/this_thread.h"
#include "sync/death_notice.h"
#include "sync/mutex.h"

namespace stagetwo::sync {

// Has this thread, of whatever process of our PID namespace, ended? Waited for or not.
[[nodiscard]] bool is_thread_gone(u32 tid);

class TA_CAP("process_mutex") ProcessMutex {
 public:
  constexpr ProcessMutex() = default;
  ProcessMutex(const ProcessMutex&) = delete;
  ProcessMutex& operator=(const ProcessMutex&) = delete;

 private:
  friend class ProcessMutexGuard;
  static constexpr u32 kWaiters = DeathNotice::kWaiters, kDied = DeathNotice::kDied;
  static constexpr u32 kOwner = DeathNotice::kOwner, kUntold = 1u << 29;

  // True: the last holder died inside.
  bool acquire(DeathNotice& notice) {
    u32 seen = word_.load(kRelaxed);
    if (seen == 0 && try_word(notice, &seen, 0)) [[likely]]
      return false;
    return acquire_slow(notice);
  }
  void release(DeathNotice& notice) {
    notice.leave(&links_);
    if ((word_.exchange(0, kRelease) & kWaiters) != 0) [[unlikely]]
      wake();
    notice.left();
  }
  // One attempt at a word without an owner. The kernel is told only for so long: of a thread that
  // waits it would take a namesake's lock for its own.
  bool try_word(DeathNotice& notice, u32* seen, u32 wanted_bits) {
    const sys::ThisThread self = sys::known_this_thread();
#if defined(ST_SCHED)
    if (sched::active()) return word_.compare_exchange(*seen, self.tid | wanted_bits, kAcquire);
#endif
    notice.begin(self, &links_);
    const u32 untold = notice.told() ? 0 : kUntold;
    if (word_.compare_exchange(*seen, self.tid | wanted_bits | untold, kAcquire)) [[likely]] {
      notice.taken(&links_);
      return true;
    }
    notice.cancel();
    return false;
  }
  bool acquire_slow(DeathNotice& notice);
  void wake();

  Atomic<u32> word_{0};  // acquire on entry pairs with release on exit, across processes
  [[maybe_unused]] u32 unused_[5] = {};
  RobustLinks links_;  // the holder's

 public:
  static constexpr size_t entry_offset() { return offsetof(ProcessMutex, links_.next); }
};
static_assert(sizeof(ProcessMutex) == 40, "its place in shared memory is for ever");
static_assert(ProcessMutex::entry_offset() == -DeathNotice::kWordOffset);

class TA_SCOPED ProcessMutexGuard {
 public:
  explicit ProcessMutexGuard(ProcessMutex& mutex, Rank rank, Place place = Place::current())
      TA_ACQ(mutex)
      : mutex_(mutex) {
    if constexpr (detail::kCheckRanks) detail::note_acquire(held_, &mutex, rank, place);
    died_ = mutex.acquire(notice_);
  }
  ~ProcessMutexGuard() TA_REL() {
    mutex_.release(notice_);
    if constexpr (detail::kCheckRanks) detail::note_release(held_);
  }
  ProcessMutexGuard(const ProcessMutexGuard&) = delete;
  ProcessMutexGuard& operator=(const ProcessMutexGuard&) = delete;

  // What the lock protects may be half changed.
  [[nodiscard]] bool died() const { return died_; }

 private:
  ProcessMutex& mutex_;
  DeathNotice notice_;
  bool died_ = false;
  [[maybe_unused]] detail::Held held_;
};

}  // namespace stagetwo::sync

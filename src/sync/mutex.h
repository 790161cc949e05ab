// SPDX-License-Identifier: Apache-2.0
#pragma once

// The locks of the house: futex-based, ranked, annotated for clang's analysis. They allocate
// nothing, are constant-initialised, need no destruction, and go through the schedule seam.
//
//   sync::Mutex lock_{sync::Rank::kSlots};
//   const sync::MutexGuard guard(lock_);
//
// A guard is the only way to take a lock; fork hooks (sync/fork.h) are the one exception.
// Not recursive: a rank is held at most once. Not for signal handlers.
// Analogue: the kernel's mutex and rw_semaphore with lockdep's order check.

#include "base/check.h"
#include "sync/annotations.h"
#include "sync/atomic.h"
#include "sync/rank.h"

namespace stagetwo::sync {

// Where a lock was taken.
struct Place {
  const char* file;
  int line;
  static constexpr Place current(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return {file, line};
  }
};

namespace detail {
// One held lock, on the stack of its guard, chained per thread in debug builds.
struct Held {
  const void* lock = nullptr;
  Rank rank = Rank::kLeaf;
  Place place{nullptr, 0};
  Held* outer = nullptr;
};
void note_acquire(Held& held, const void* lock, Rank rank, Place place);
void note_release(Held& held);
void check_held(const void* lock, Rank rank);
inline constexpr bool kCheckRanks = ST_DEBUG_CHECKS != 0;
}  // namespace detail

class TA_CAP("mutex") Mutex {
 public:
  explicit constexpr Mutex(Rank rank) : rank_(rank) {}
  Mutex(const Mutex&) = delete;
  Mutex& operator=(const Mutex&) = delete;

  // For the analysis where it cannot follow a callback; checked in debug builds.
  void assert_held() const TA_ASSERT(this) {
    if constexpr (detail::kCheckRanks) detail::check_held(this, rank_);
  }
  [[nodiscard]] Rank rank() const { return rank_; }
  // Racy; diagnostics only.
  [[nodiscard]] bool debug_locked() const { return state_.load(kRelaxed) != kFree; }

 private:
  friend class MutexGuard;
  friend class TryMutexGuard;
  friend class ForkLocks;
  static constexpr u32 kFree = 0, kLocked = 1, kContended = 2;

  void acquire() {
    u32 seen = kFree;
    if (!state_.compare_exchange(seen, kLocked, kAcquire)) [[unlikely]]
      acquire_slow();
  }
  void acquire_slow();
  void release() {
    if (state_.exchange(kFree, kRelease) == kContended) [[unlikely]]
      wake_one();
  }
  void wake_one();

  // Free, locked, or locked with sleepers. Acquire on entry pairs with release on exit.
  Atomic<u32> state_{kFree};
  Rank rank_;
};

class TA_SCOPED MutexGuard {
 public:
  explicit MutexGuard(Mutex& mutex, Place place = Place::current()) TA_ACQ(mutex) : mutex_(mutex) {
    if constexpr (detail::kCheckRanks) detail::note_acquire(held_, &mutex, mutex.rank_, place);
    mutex.acquire();
  }
  ~MutexGuard() TA_REL() {
    mutex_.release();
    if constexpr (detail::kCheckRanks) detail::note_release(held_);
  }
  MutexGuard(const MutexGuard&) = delete;
  MutexGuard& operator=(const MutexGuard&) = delete;

 private:
  Mutex& mutex_;
  [[maybe_unused]] detail::Held held_;
};

// Many readers or one writer. A waiting writer holds off new readers.
class TA_CAP("shared_mutex") SharedMutex {
 public:
  explicit constexpr SharedMutex(Rank rank) : rank_(rank) {}
  SharedMutex(const SharedMutex&) = delete;
  SharedMutex& operator=(const SharedMutex&) = delete;

  void assert_held() const TA_ASSERT(this) {
    if constexpr (detail::kCheckRanks) detail::check_held(this, rank_);
  }
  void assert_held_shared() const TA_ASSERT_SHARED(this) {
    if constexpr (detail::kCheckRanks) detail::check_held(this, rank_);
  }
  [[nodiscard]] Rank rank() const { return rank_; }

 private:
  friend class SharedGuard;
  friend class ExclusiveGuard;
  friend class ForkLocks;
  // The word: writer | somebody sleeps | a writer waits | number of readers.
  static constexpr u32 kWriter = 1u << 31, kParked = 1u << 30, kWriterWaits = 1u << 29;
  static constexpr u32 kReaders = kWriterWaits - 1;

  void acquire() {
    u32 seen = 0;
    if (!state_.compare_exchange(seen, kWriter, kAcquire)) [[unlikely]]
      acquire_slow();
  }
  void acquire_slow();
  void release() {
    if ((state_.exchange(0, kRelease) & kParked) != 0) [[unlikely]]
      wake_all();
  }
  void acquire_shared() {
    u32 seen = state_.load(kRelaxed);
    if ((seen & ~kReaders) != 0 || !state_.compare_exchange(seen, seen + 1, kAcquire))
        [[unlikely]] {
      acquire_shared_slow();
    }
  }
  void acquire_shared_slow();
  void release_shared() {
    const u32 left = state_.fetch_sub(1, kRelease) - 1;
    if ((left & kReaders) == 0 && (left & kParked) != 0) [[unlikely]]
      release_shared_slow();
  }
  void release_shared_slow();
  void wake_all();

  // Acquire on entry pairs with release on exit, of readers as of writers.
  Atomic<u32> state_{0};
  Rank rank_;
};

class TA_SCOPED SharedGuard {
 public:
  explicit SharedGuard(SharedMutex& mutex, Place place = Place::current()) TA_ACQ_SHARED(mutex)
      : mutex_(mutex) {
    if constexpr (detail::kCheckRanks) detail::note_acquire(held_, &mutex, mutex.rank_, place);
    mutex.acquire_shared();
  }
  ~SharedGuard() TA_REL_GENERIC() {
    mutex_.release_shared();
    if constexpr (detail::kCheckRanks) detail::note_release(held_);
  }
  SharedGuard(const SharedGuard&) = delete;
  SharedGuard& operator=(const SharedGuard&) = delete;

 private:
  SharedMutex& mutex_;
  [[maybe_unused]] detail::Held held_;
};

class TA_SCOPED ExclusiveGuard {
 public:
  explicit ExclusiveGuard(SharedMutex& mutex, Place place = Place::current()) TA_ACQ(mutex)
      : mutex_(mutex) {
    if constexpr (detail::kCheckRanks) detail::note_acquire(held_, &mutex, mutex.rank_, place);
    mutex.acquire();
  }
  ~ExclusiveGuard() TA_REL() {
    mutex_.release();
    if constexpr (detail::kCheckRanks) detail::note_release(held_);
  }
  ExclusiveGuard(const ExclusiveGuard&) = delete;
  ExclusiveGuard& operator=(const ExclusiveGuard&) = delete;

 private:
  SharedMutex& mutex_;
  [[maybe_unused]] detail::Held held_;
};

// A role: nothing is locked, the analysis checks who may call whom (docs/locking.md).
class TA_CAP("role") Role {
 public:
  constexpr Role() = default;
};

}  // namespace stagetwo::sync

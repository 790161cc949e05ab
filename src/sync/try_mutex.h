// SPDX-License-Identifier: Apache-2.0
#pragma once

// Taking a lock only if nobody holds it, for who may not wait. Analogue: mutex_trylock().
// The analysis does not follow locked(): a user says TA_NO_ANALYSIS and touches what the lock
// protects only where it is true. Ranks are checked as for the guards that wait.

#include "sync/big_reader_mutex.h"

namespace stagetwo::sync {

class TryMutexGuard {
 public:
  explicit TryMutexGuard(Mutex& mutex, Place place = Place::current()) : mutex_(mutex) {
    u32 seen = Mutex::kFree;
    locked_ = mutex.state_.compare_exchange(seen, Mutex::kLocked, kAcquire);
    if constexpr (detail::kCheckRanks) {
      if (locked_) detail::note_acquire(held_, &mutex, mutex.rank_, place);
    }
  }
  ~TryMutexGuard() {
    if (!locked_) return;
    mutex_.release();
    if constexpr (detail::kCheckRanks) detail::note_release(held_);
  }
  TryMutexGuard(const TryMutexGuard&) = delete;
  TryMutexGuard& operator=(const TryMutexGuard&) = delete;

  [[nodiscard]] bool locked() const { return locked_; }

 private:
  Mutex& mutex_;
  bool locked_ = false;
  [[maybe_unused]] detail::Held held_;
};

// A BigReaderMutex alone, if there are neither readers nor another writer.
class TryBigWriterGuard {
 public:
  explicit TryBigWriterGuard(BigReaderMutex& mutex, Place place = Place::current())
      : mutex_(mutex), locked_(mutex.try_acquire()) {
    if constexpr (detail::kCheckRanks) {
      if (locked_) detail::note_acquire(held_, &mutex, mutex.rank_, place);
    }
  }
  ~TryBigWriterGuard() {
    if (!locked_) return;
    mutex_.release();
    if constexpr (detail::kCheckRanks) detail::note_release(held_);
  }
  TryBigWriterGuard(const TryBigWriterGuard&) = delete;
  TryBigWriterGuard& operator=(const TryBigWriterGuard&) = delete;

  [[nodiscard]] bool locked() const { return locked_; }

 private:
  BigReaderMutex& mutex_;
  const bool locked_;
  [[maybe_unused]] detail::Held held_;
};

}  // namespace stagetwo::sync

// SPDX-License-Identifier: Apache-2.0
#pragma once

// Many readers that never share a cache line, or one writer who pays for it. For the lock of a
// fault path: every fault takes it shared, changes of the address space take it alone. Analogue:
// the kernel's percpu_rw_semaphore in the place of mmu_lock. Differs: it also answers "is somebody
// waiting" (rwlock_needbreak), so that a long holder can yield, and it serves as the read section
// of what its readers walk (wait_for_shared is their synchronize_rcu).
//
// Invariants: I1  a writer is alone; readers see whole writer sections.
//             I2  a shared section costs two locked adds on a line few threads share. A waiting
//                 writer holds off new readers, so it waits for one section of each at most.
//             I3  who waited when a writer dropped the lock has had it when retake() returns, if
//                 the scheduler runs it within about a millisecond.
//             I4  what was unlinked before wait_for_shared() is reached by no section that begins
//                 after it, and every section that may have reached it has ended when it returns.
// Locking: ranked like any lock; not recursive, shared neither. Not for signal handlers.
// Lifetime: no section is left when it is destroyed.
//
// writer_:  0 free, 1 taken, 2 taken and somebody may sleep. Taken seq_cst: with the readers' cells
//           it is a Dekker handshake (big_reader_mutex.cc). Released with release, read by readers
//           seq_cst.
// waiters_: how many wait, for contended(); relaxed, a hint.
// admitted_: raised by who has waited and got in, read by who gave way; relaxed, a hint.

#include "sync/mutex.h"
#include "sync/passage.h"

namespace stagetwo::sync {

class TA_CAP("shared_mutex") BigReaderMutex {
 public:
  explicit constexpr BigReaderMutex(Rank rank) : rank_(rank) {}
  BigReaderMutex(const BigReaderMutex&) = delete;
  BigReaderMutex& operator=(const BigReaderMutex&) = delete;

  // Does somebody wait for this lock? A holder that works long asks, and yields. A hint.
  [[nodiscard]] bool contended() const { return waiters_.load(kRelaxed) != 0; }

  // The grace period of the readers: every shared section that began before has ended.
  // Pre: the caller holds the lock in no way. Waits for sections, never for a writer.
  void wait_for_shared() const TA_EXCL(this) { readers_.wait_for_acquirers(); }

  void assert_held() const TA_ASSERT(this) {
    if constexpr (detail::kCheckRanks) detail::check_held(this, rank_);
  }
  void assert_held_shared() const TA_ASSERT_SHARED(this) {
    if constexpr (detail::kCheckRanks) detail::check_held(this, rank_);
  }
  [[nodiscard]] Rank rank() const { return rank_; }
  // Racy; tests only.
  [[nodiscard]] bool debug_idle() const {
    return writer_.load(kRelaxed) == kFree && readers_.debug_empty();
  }

 private:
  friend class BigReaderGuard;
  friend class BigWriterGuard;
  friend class TryBigWriterGuard;
  static constexpr u32 kFree = 0, kTaken = 1, kSlept = 2;

  Passage::Ticket acquire_shared() {
    const Passage::Ticket ticket = readers_.enter();
    if (writer_.load(kSeqCst) == kFree) [[likely]]
      return ticket;
    return acquire_shared_slow(ticket);
  }
  Passage::Ticket acquire_shared_slow(Passage::Ticket ticket);
  void release_shared(Passage::Ticket ticket) { readers_.leave(ticket); }
  void acquire();
  bool try_acquire();
  void release() {
    if (writer_.exchange(kFree, kRelease) == kSlept) wake_all();
  }
  void wake_all();
  bool sleep_while_taken();
  // Waits until somebody who waits has got in since `admitted` was read.
  void give_way(u32 admitted);

  Passage readers_;
  alignas(64) Atomic<u32> writer_{kFree};
  Atomic<u32> waiters_{0};
  Atomic<u32> admitted_{0};
  Rank rank_;
};

// A shared section.
class TA_SCOPED BigReaderGuard {
 public:
  explicit BigReaderGuard(BigReaderMutex& mutex, Place place = Place::current())
      TA_ACQ_SHARED(mutex)
      : mutex_(mutex), place_(place) {
    begin();
  }
  ~BigReaderGuard() TA_REL_GENERIC() {
    if (held_now_) end();
  }
  BigReaderGuard(const BigReaderGuard&) = delete;
  BigReaderGuard& operator=(const BigReaderGuard&) = delete;

  // Lets go and comes back, for long work. What was read in between may have changed.
  void drop() TA_REL_GENERIC() { end(); }
  void retake() TA_ACQ_SHARED() { begin(); }

 private:
  void begin() {
    if constexpr (detail::kCheckRanks) detail::note_acquire(held_, &mutex_, mutex_.rank_, place_);
    ticket_ = mutex_.acquire_shared();
    held_now_ = true;
  }
  void end() {
    held_now_ = false;
    mutex_.release_shared(ticket_);
    if constexpr (detail::kCheckRanks) detail::note_release(held_);
  }

  BigReaderMutex& mutex_;
  Passage::Ticket ticket_ = 0;
  bool held_now_ = false;
  [[maybe_unused]] Place place_;
  [[maybe_unused]] detail::Held held_;
};

// The exclusive section.
class TA_SCOPED BigWriterGuard {
 public:
  explicit BigWriterGuard(BigReaderMutex& mutex, Place place = Place::current()) TA_ACQ(mutex)
      : mutex_(mutex), place_(place) {
    begin();
  }
  ~BigWriterGuard() TA_REL() {
    if (held_now_) end();
  }
  BigWriterGuard(const BigWriterGuard&) = delete;
  BigWriterGuard& operator=(const BigWriterGuard&) = delete;

  // Lets those in who wait, and comes back.
  void drop() TA_REL() {
    admitted_ = mutex_.admitted_.load(kRelaxed);
    end();
  }
  void retake() TA_ACQ() {
    mutex_.give_way(admitted_);
    begin();
  }

 private:
  void begin() {
    if constexpr (detail::kCheckRanks) detail::note_acquire(held_, &mutex_, mutex_.rank_, place_);
    mutex_.acquire();
    held_now_ = true;
  }
  void end() {
    held_now_ = false;
    mutex_.release();
    if constexpr (detail::kCheckRanks) detail::note_release(held_);
  }

  BigReaderMutex& mutex_;
  u32 admitted_ = 0;
  bool held_now_ = false;
  [[maybe_unused]] Place place_;
  [[maybe_unused]] detail::Held held_;
};

}  // namespace stagetwo::sync

// SPDX-License-Identifier: Apache-2.0
#pragma once

// Epoch reclamation on the ack lines: what was unlinked is released once every line of the set has
// passed a quiescent point. No second kind of registration: a reader is an AckLine that runs.
// Analogue: RCU with call_rcu(), where a grace period is one acknowledged flush.
//
// I1: a retired object is released only after every section that was running when it was retired
//     has polled, left, or died.
// I2: at most kCapacity objects wait; a retirer beyond that waits for a grace period itself.
//
// retire() never fails and never allocates: teardown may use it. The place for the objects is part
// of the domain.
// Locking: the list is under lock_; nothing is waited for and nothing released under it.

#include "sync/ack_line.h"

namespace stagetwo::sync {

class EpochDomain {
 public:
  static constexpr u32 kCapacity = 1024;
  using Release = void (*)(void* object);

  // `set` outlives the domain.
  explicit constexpr EpochDomain(AckSet& set) : set_(set) {}
  // Pre: no section of the set can still reach a retired object. Releases everything.
  ~EpochDomain();
  EpochDomain(const EpochDomain&) = delete;
  EpochDomain& operator=(const EpochDomain&) = delete;

  // `object` can no longer be found by who enters now; release(object) is called later, by this or
  // another thread, without a lock. Context: the caller holds no borrowed pointer of the set, and
  // no lock that a running section may want: it may wait.
  void retire(void* object, Release release);
  // Releases what all lines have passed already. Returns how many. Waits for nobody.
  u32 collect();
  // Post: everything retired before the call is released, or in the hands of a thread that is
  // releasing it. Waits for a grace period.
  void synchronize();
  // Does the object still wait for a line? Once no: for ever no, though it may not be released yet.
  [[nodiscard]] bool is_waiting(const void* object);
  // Objects that wait. A racy hint.
  [[nodiscard]] u32 debug_waiting();

 private:
  struct Retired {
    u64 ticket = 0;  // released when every line has passed this request
    void* object = nullptr;
    Release release = nullptr;
  };
  static constexpr u32 kBatch = 64;

  // Takes up to kBatch objects with a ticket up to `passed` off the list.
  u32 take(u64 passed, Retired* batch);
  u32 release_up_to(u64 passed);

  AckSet& set_;
  Mutex lock_{Rank::kRetired};
  // A ring in order of retirement, so in order of tickets.
  u32 first_ TA_GUARDED(lock_) = 0;
  u32 count_ TA_GUARDED(lock_) = 0;
  Retired ring_[kCapacity] TA_GUARDED(lock_);
};

}  // namespace stagetwo::sync

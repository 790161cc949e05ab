// SPDX-License-Identifier: Apache-2.0
#pragma once

// The bell for one range: a subscription with a sequence number, for who holds translations of a
// few ranges and keeps them under a lock of its own. Analogue: struct mmu_interval_notifier (kernel
// file: mmu_notifier.c). Differs: a change that no subscription overlaps takes no lock.
//
//   the user                                    a change of the range
//   seq = read_begin()   waits out changes
//   looks the pages up, without its lock        start: invalidate(event, seq'): takes the user's
//   takes its lock                                     lock, set_sequence(seq'), forgets
//   read_retry(seq): differs -> again           the system call
//   installs; releases its lock                 end: sleepers of read_begin() go on
//
// Invariants: I1  the registry's sequence is odd exactly while a change that matched is under way.
//             I2  a subscription inserted meanwhile enters the tree at the last end; one that a
//                 change may have missed lets nobody read until that change is over.
//             I3  a start that was rung for a subscription has stored its number there before it
//                 returned, unless the change is the subscriber's own (event.owner); so a number
//                 from before it is refused by read_retry().
//             I4  after remove() no callback of the subscription runs or will run.
// Locking: invalidate() is called with no lock of this room held. insert() and remove() take the
// registry's leaf lock for a moment. Lifetime: borrowed by the registry from insert() to remove().

#include "addr/addr.h"
#include "base/result.h"
#include "base/types.h"
#include "host/mmu_notifier.h"
#include "host/subscription_tree.h"
#include "sync/atomic.h"

namespace stagetwo::host {

class IntervalNotifier;

// What the registry keeps of a subscription. All but the node: under its lock.
struct IntervalLink : SubscriptionTree::Node {
  enum class State : u8 { kOut, kArriving, kIn, kLeaving };
  explicit IntervalLink(IntervalNotifier* of) : who(of) {}
  IntervalNotifier* const who;
  State state = State::kOut;
  u32 stamp = 0;                         // of the process that inserted it
  IntervalLink* next_waiting = nullptr;  // for the last end
};

class IntervalNotifier {
 public:
  IntervalNotifier() = default;
  IntervalNotifier(const IntervalNotifier&) = delete;
  IntervalNotifier& operator=(const IntervalNotifier&) = delete;

  // Pre: not inserted. Does not wait for changes under way. Failure: EOVERFLOW (no bytes, or the
  // range wraps), ESRCH (the process ends).
  [[nodiscard]] Result<void> insert(Hva start, u64 size);
  // Waits for callbacks, and for changes under way. Never fails; nothing if it is not inserted.
  // Context: not from a callback, not inside a change, no lock that a callback takes.
  void remove();

  // The number under which pages may be looked up; waits while a change of the range is under way.
  // Context: not from a callback, not inside a change, without the user's lock.
  [[nodiscard]] u64 read_begin();
  // Has the range changed since? Pre: the user's lock is held. Then it is the last word.
  [[nodiscard]] bool read_retry(u64 sequence) const { return check_retry(sequence); }
  // The same without the lock, as a hint: false may be wrong, true is not.
  [[nodiscard]] bool check_retry(u64 sequence) const {
    return own_sequence_.load(sync::kAcquire) != sequence;
  }

  // Is a change still under way that invalidate() was called for with this number, or one that
  // overlapped it in time? False of 0.
  [[nodiscard]] static bool is_under_way(u64 sequence);

  // The range is about to change: take the lock that read_retry() is asked under, set_sequence(),
  // forget, and wait until nobody uses what was forgotten. Of an event that is not blockable, false
  // says that it would have had to wait and that nothing was done; never else.
  // Context: as MmuNotifier::invalidate_range_start.
  virtual bool invalidate(const InvalidateEvent& event, u64 sequence) = 0;

 protected:
  ~IntervalNotifier();
  // The first thing invalidate() does under its lock.
  void set_sequence(u64 sequence) { own_sequence_.store(sequence, sync::kRelease); }

 private:
  IntervalLink link_{this};
  sync::Atomic<u64> own_sequence_{0};  // stored under the user's lock, read by anyone
  sync::Atomic<u32> settled_{0};       // changes that may have missed it are over
};

// Subscriptions now inserted. Racy: diagnostics and tests.
[[nodiscard]] u64 debug_interval_count();

}  // namespace stagetwo::host

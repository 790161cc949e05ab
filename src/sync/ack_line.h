// SPDX-License-Identifier: Apache-2.0
#pragma once

// Acknowledging a flush: the proof that after an invalidation returns nobody dereferences the old
// address. Each vCPU, device engine or copying helper owns one AckLine; an invalidator raises the
// request of every line of a set and waits until each line is outside or has acknowledged.
// Analogue: the kernel's remote TLB flush request and vcpu->mode (OUTSIDE_GUEST_MODE,
// IN_GUEST_MODE).
//
//   owner                                      invalidator
//   if (line.enter()) flush my caches;         gate.begin(first, last);
//   check the gate; fill; access …             set.barrier();
//   if (line.poll()) flush my caches;          zap; change; gate.end();
//   line.leave();
//
// I1: requests and acknowledgements never fall; ack <= request.
// I2: a line whose state is outside holds no borrowed address and no borrowed table pointer.
// I3: whoever enters after a request was raised sees everything that was done before it was raised.
//
// An acknowledgement is data, not a bell: the owner polls one word, nothing is called.
// Locking: owners are lock-free; the set's lines change under its lock. Nothing can fail.
// Lifetime: a line is removed from its set, outside, before it is destroyed.

#include "sync/mutex.h"

namespace stagetwo::sync {

class AckSet;

class alignas(64) AckLine {
 public:
  AckLine() = default;
  AckLine(const AckLine&) = delete;
  AckLine& operator=(const AckLine&) = delete;
  ~AckLine();

  // --- The owner's side. Context: the thread that runs what the line stands for. ---

  // From now on addresses may be borrowed. True: something was requested since the last
  // acknowledgement; it is acknowledged now, and the caller drops its caches before it uses them.
  // Pre: outside. Sections of different lines nest, last in first out.
  [[nodiscard]] bool enter();
  // Every borrowed address has been dropped. Pre: running, entered by this thread.
  void leave();
  // The quiescent point: no borrowed address survives it. About one relaxed load when nothing is
  // requested. True: as for enter().
  [[nodiscard]] bool poll() {
    if (!pending()) [[likely]]
      return false;
    acknowledge();
    return true;
  }
  // Is something requested that was not acknowledged?
  [[nodiscard]] bool pending() const { return request_.load(kRelaxed) != ack_.load(kRelaxed); }
  // The second half of poll() for owners that drop their caches first.
  void acknowledge();

  // --- Anybody. ---

  [[nodiscard]] bool running() const { return state_.load(kAcquire) != 0; }
  // Thread id of the section's thread; 0 outside. A racy hint.
  [[nodiscard]] int debug_owner() const { return static_cast<int>(state_.load(kRelaxed)); }

 private:
  friend class AckSet;
  friend struct ThreadSections;

  void raise_to(u64 ticket);
  void ring();
  void sleep_until_passed(u64 ticket);
  void leave_for_the_dead(u64 ticket);
  [[nodiscard]] bool passed(u64 ticket) const;

  // One cache line, and nothing else on it.
  // request_: raised by invalidators (release, seq_cst), read by the owner (relaxed, then acquire).
  Atomic<u64> request_{0};
  // ack_: stored by the owner (release), read by invalidators (acquire).
  Atomic<u64> ack_{0};
  // state_: 0 outside, else (number of the entry << 32 | thread id). Exchanged seq_cst by enter,
  // stored release by leave, read seq_cst by invalidators: Dekker with request_.
  Atomic<u64> state_{0};
  // Sleepers among the invalidators, and the word they sleep on. Hints: every sleep has an end.
  Atomic<u32> waiters_{0};
  Atomic<u32> bell_{0};

  // The second line: cold.
  alignas(64) u32 entries_ = 0;     // the owner's
  AckLine* outer_ = nullptr;        // the owner's: sections this one stands in
  AckSet* set_ = nullptr;           // immutable while in the set
  AckLine* next_in_set_ = nullptr;  // under the set's lock
};

// The section as a scope.
class RunningSection {
 public:
  explicit RunningSection(AckLine& line) : line_(line), must_flush_(line.enter()) {}
  ~RunningSection() { line_.leave(); }
  RunningSection(const RunningSection&) = delete;
  RunningSection& operator=(const RunningSection&) = delete;
  // What enter() said.
  [[nodiscard]] bool must_flush() const { return must_flush_; }

 private:
  AckLine& line_;
  bool must_flush_;
};

// The lines that borrow from one thing. Tickets number the requests of a set.
class AckSet {
 public:
  constexpr AckSet() = default;
  AckSet(const AckSet&) = delete;
  AckSet& operator=(const AckSet&) = delete;

  // Pre: the line is in no set, and outside. remove() waits for invalidators that look at it.
  void add(AckLine& line);
  void remove(AckLine& line);

  // Calls of the set but kick() may wait, for its lock at least. While they do, sections of the
  // calling thread count as outside: it polls before its next access to anything borrowed.

  // Raises every line's request. Everything done before is seen by whoever acknowledges.
  u64 bump_all();
  // Post: every line that was running at bump_all() has acknowledged, left, or died.
  // Context: no lock that a running section may want; may sleep.
  void wait_all(u64 ticket);
  // Both.
  void barrier() { wait_all(bump_all()); }
  // One line's poll() shall say true soon; nobody waits. Async-signal-safe.
  void kick(AckLine& line) { line.raise_to(ticket_.fetch_add(1, kSeqCst) + 1); }

  // For epochs. next_ticket(): any bump that gets this number or a higher one sees what the caller
  // did before. passed(): every line has passed the requests up to this number.
  [[nodiscard]] u64 next_ticket() { return ticket_.fetch_add(0, kAcqRel) + 1; }
  [[nodiscard]] u64 passed();
  [[nodiscard]] size_t debug_line_count();

 private:
  SharedMutex lock_{Rank::kAckSet};
  AckLine* first_ TA_GUARDED(lock_) = nullptr;
  Atomic<u64> ticket_{0};  // raised by read-modify-writes only
};

}  // namespace stagetwo::sync

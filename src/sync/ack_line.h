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
// I2: a line whose state is outside, or that has let go, holds no borrowed address and no borrowed
//     table pointer.
// I3: whoever enters or holds after a request was raised sees everything that was done before it
//     was raised.
//
// An owner whose accesses can be taken back by the kernel (sync/restartable.h) may let go inside
// its section: it then borrows nothing but within such an access, and need not run to be passed.
//
// An acknowledgement is data, not a bell: the owner polls one word, nothing is called.
// Locking: owners are lock-free; the set's lines change under its lock. Nothing can fail.
// Lifetime: a line is removed from its set, outside, before it is destroyed.

#include "base/arch/restartable.h"
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
  [[nodiscard]] bool pending() const { return asked_.load(kRelaxed) != 0; }
  // The second half of poll() for owners that drop their caches first.
  void acknowledge();

  // Nothing is borrowed from here to hold(), except by restartable accesses of this thread that are
  // told by restart(). Pre: running, holding; restartable_section() gave a word.
  void let_go();
  // The opposite. True: as for poll(). Pre: running, let go.
  [[nodiscard]] bool hold() {
    holding_.store(kHolds, kRelaxed);
    // The processor's order is the barrier's business: nobody relies on this word before it.
    asm volatile("" ::: "memory");
    return poll();
  }
  // What restartable accesses compare and count.
  [[nodiscard]] arch::Restart restart(u64* section) {
    return {section, asked_.address(), &aborted_};
  }
  [[nodiscard]] u64 aborted() const { return aborted_; }

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
  // Pre: a restart barrier began after the request of whoever asks.
  [[nodiscard]] bool has_let_go() const { return holding_.load(kSeqCst) == kLetGo; }
  [[nodiscard]] bool may_let_go() const { return holding_.load(kRelaxed) != kAlways; }

  enum Holding : u32 { kAlways, kHolds, kLetGo };

  // One cache line, and nothing else on it.
  // request_: raised by invalidators (release, seq_cst), read by the owner (relaxed, then acquire).
  Atomic<u64> request_{0};
  // ack_: stored by the owner (release), read by invalidators (acquire).
  Atomic<u64> ack_{0};
  // state_: 0 outside, else (number of the entry << 32 | thread id). Exchanged seq_cst by enter,
  // stored release by leave, read seq_cst by invalidators: Dekker with request_.
  Atomic<u64> state_{0};
  // asked_: what the owner polls (relaxed). 1 after request_ was raised (seq_cst), 0 before the
  // owner reads that to acknowledge (seq_cst). Too often 1 is one acknowledgement too many.
  Atomic<u32> asked_{0};
  // Sleepers among the invalidators, and the word they sleep on. Hints: every sleep has an end.
  Atomic<u32> waiters_{0};
  Atomic<u32> bell_{0};
  // holding_: stored by the owner (let_go release; hold relaxed: Dekker with asked_, whose fence is
  // the invalidator's restart barrier), read by invalidators after that.
  Atomic<u32> holding_{kAlways};

  // The second line: cold.
  alignas(64) u32 entries_ = 0;     // the owner's
  u64 aborted_ = 0;                 // the owner's
  AckLine* outer_ = nullptr;        // the owner's: sections this one stands in
  AckSet* set_ = nullptr;           // immutable while in the set
  AckLine* next_in_set_ = nullptr;  // under the set's lock
};

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
  // Post: every line that was running at bump_all() has acknowledged, left, let go, or died.
  // Context: no lock that a running section may want; may sleep.
  void wait_all(u64 ticket);
  // Both, at the price of one.
  void barrier();
  // One line's poll() shall say true soon. Async-signal-safe.
  void kick(AckLine& line) { line.raise_to(ticket_.fetch_add(1, kSeqCst) + 1); }

  // For epochs. next_ticket(): a bump of this number or a higher one sees what the caller did.
  // passed(): every line has passed the requests up to this number, at least those waited for.
  [[nodiscard]] u64 next_ticket() { return ticket_.fetch_add(0, kAcqRel) + 1; }
  [[nodiscard]] u64 passed();
  // Does every line pass within the time one that is scheduled needs, or a barrier?
  [[nodiscard]] bool passes_soon(u64 ticket);
  [[nodiscard]] size_t debug_line_count();

  struct Counts {
    u64 let_go = 0;  // lines passed without an answer, after a barrier
    u64 waited = 0;  // lines waited for beyond spinning and barrier
  };
  [[nodiscard]] Counts counts() const;

 private:
  // One wait: since when it spins, and whether a restart barrier was made for it.
  struct Wait {
    u64 ticket;
    u64 start = 0;
    bool covered = false;
  };
  u64 raise_all() TA_REQ_SHARED(lock_);
  void await_all(u64 ticket) TA_REQ_SHARED(lock_);
  bool cover(u64 ticket);
  [[nodiscard]] bool passes_quickly(AckLine& line, Wait& wait);

  SharedMutex lock_{Rank::kAckSet};
  AckLine* first_ TA_GUARDED(lock_) = nullptr;
  Atomic<u64> ticket_{0};      // raised by read-modify-writes only
  Atomic<u64> covered_{0};     // the highest that a returned restart barrier came after (acq_rel)
  Atomic<u64> waited_for_{0};  // the highest that every line was waited for to pass (acq_rel)
  Atomic<u64> let_go_{0};
  Atomic<u64> waited_{0};
};

}  // namespace stagetwo::sync

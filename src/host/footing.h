// SPDX-License-Identifier: Apache-2.0
#pragma once

// What a thread stands on while it is in the engine: its stack, its own data (TLS), its alternate
// signal stack. They are the client's memory, and may go to a page owner as any other. But whoever
// touches an absent page waits for its owner, and the owner for the engine's locks: a thread that
// holds one of them and touches an absent page of its own stack would wait for itself.
//
//   Footing footing;                // outermost: an EngineSection, the engine's own thread
//   footing.enter(here);            // may sleep, no lock held
//   lock; ...; unlock               // what is touched here is there, and stays
//   footing.leave();
//
// Invariants: I1  no thread touches client memory that an owner can take while it holds a lock that
//                 taking a page or bringing one back needs. Buffers and arguments are touched with
//                 no such lock held; what a thread cannot but touch is its footing.
//             I2  from the end of enter() to leave() nothing of a footing is absent, and no owner
//                 takes of it or begins to watch it (a first touch of what is watched asks us,
//                 too).
//             I3  enter() touches the page of its frame, the one below, the thread's data, and else
//                 only what is absent or watched because of an owner. The rest is the client's: it
//                 may answer touches there itself, on this thread.
// Analogue: a page that somebody has isolated stays where it is (kernel file: mm/migrate_device.c).
//
//   thread                                  | taker (for each page or run, for each span)
//   its windows are in its slot (seq_cst)   | enters the passage (seq_cst)
//   reads the count of takings (seq_cst)    | lock; raises the count (seq_cst); a slot has the
//   as when it last looked: all is there    |   page (seq_cst): refused; else a record
//   else waits for takers in the passage,   | unlock; the page goes
//   looks into the table, touches           | leaves the passage
//
// Either the taker sees the slot, or the thread sees the count. What was absent then comes back
// before the thread takes any lock.
//
// Where touches are signals (host/blocked_faults.h) stacks are never taken, and none is touched.
//
// Locking: none; looking takes the table's lock for a moment. Lifetime: a slot is a thread's
// between enter() and leave(), and keeps what its last one knew. Context: handlers deferred. A
// read-modify-write, as long as nothing is taken.

#include "addr/addr.h"
#include "base/types.h"
#include "sync/atomic.h"
#include "sync/passage.h"

namespace stagetwo::host {

// A range in one word: its first page, and how many there are. 0: none.
[[nodiscard]] constexpr u64 packed(HvaRange range) {
  return range.empty() ? 0 : range.start().raw() | range.size() / kPageSize;
}
[[nodiscard]] constexpr HvaRange unpacked(u64 word) {
  return HvaRange(Hva(word & kPageMask), (word & ~kPageMask) * kPageSize);
}

struct Standing {
  u64 stack = 0, data = 0, alternate = 0;  // packed
};

struct alignas(64) FootingSlot {
  // Written by who is in the slot, read by takers (seq_cst both). 0: nobody is.
  sync::Atomic<u64> stack{0};
  sync::Atomic<u64> data{0}, alternate{0};
  // Of who is in it, or was last: there, and watched or not, when so many takings had begun.
  sync::Atomic<u64> looked{0};
  sync::Atomic<u64> takings{0};
};

// The slots of a process. A schedule test has its own.
class Footings {
 public:
#if defined(ST_SCHED)
  static constexpr u32 kMost = 4;
#else
  static constexpr u32 kMost = 4096;  // threads that are in the engine at once
#endif

  constexpr Footings() = default;

  // ---- threads ----
  // Null: all are taken, and until leave(null) no page is. `hint`: where it was last; and is now.
  FootingSlot* enter(const Standing& standing, u32* hint);
  void leave(FootingSlot* slot);
  // Is all there since it last looked?
  [[nodiscard]] bool is_known(const FootingSlot& slot) const;
  // Those that had begun before enter() are over. Answers how many have begun.
  u64 wait_for_takers() const;
  static void note_looked(FootingSlot& slot, u64 takings);

  // ---- takers ----
  class Taking {
   public:
    explicit Taking(const Footings& all) : all_(all), ticket_(all.takers_.enter()) {}
    ~Taking() { all_.takers_.leave(ticket_); }
    Taking(const Taking&) = delete;
    Taking& operator=(const Taking&) = delete;

   private:
    const Footings& all_;
    sync::Passage::Ticket ticket_;
  };
  // Before it looks at the slots, under the table's lock.
  void count_taking();
  // The first part of `range` that somebody stands on; empty: none.
  [[nodiscard]] HvaRange first_in(HvaRange range) const;
  // What of `span` is around `piece`, as far as nobody stands on it.
  [[nodiscard]] HvaRange clear_around(HvaRange piece, HvaRange span) const;
  // In a child of fork, which has one thread, outside.
  void reset();

 private:
  template <typename F>
  void for_each(F&& see) const;

  FootingSlot slots_[kMost];
  sync::Atomic<u32> used_{0};     // behind the last slot that anybody was ever in
  sync::Atomic<u32> crowd_{0};    // threads without a slot
  sync::Atomic<u64> takings_{0};  // 0: nothing was ever taken
  mutable sync::Passage takers_;
};

// Those of this process.
[[nodiscard]] Footings& footings();

class Footing {
 public:
  Footing() = default;
  ~Footing() { leave(); }
  Footing(const Footing&) = delete;
  Footing& operator=(const Footing&) = delete;

  // `here`: the caller's frame. Pre: the thread has no other.
  void enter(const void* here);
  void leave();

 private:
  FootingSlot* slot_ = nullptr;
  bool entered_ = false;
};

// While it lives its thread has pages in hand, which it takes or brings back. Others wait for them,
// so it waits for nobody: what it touches by a guarded access and finds hidden is refused. That is
// the page itself, which has lost its rights meanwhile.
class PagesInHand {
 public:
  PagesInHand();
  ~PagesInHand();
  PagesInHand(const PagesInHand&) = delete;
  PagesInHand& operator=(const PagesInHand&) = delete;
  [[nodiscard]] static bool any();
};

// The calling thread has another alternate stack, or none.
void alternate_stack_changed();
// The calling thread has discarded memory that its own stack may be in: what it stands on is there
// again. Context: no lock.
void footing_discarded(u64 start, u64 size);
// What of its stack a thread stands on that comes in at `here`.
[[nodiscard]] HvaRange footing_at(const void* here);
void footings_after_fork_child();

}  // namespace stagetwo::host

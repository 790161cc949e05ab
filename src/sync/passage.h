// SPDX-License-Identifier: Apache-2.0
#pragma once

// Threads pass through; a waiter waits until those that were inside when it asked have left. For
// sections of threads that have no ack line of their own. Analogue: SRCU (kernel file: srcu.h).
// Differs: few counters, picked by the thread, because a waiter reads them all.
//
// Invariants: I1  what was published before wait() is seen by every section that begins after it;
//                 every section that may have missed it has ended when wait() returns.
//             I2  a section costs two locked adds on a line that few threads share, and no lock.
//             I3  new sections cannot keep a waiter waiting: it counts those of the other side.
// Locking: waiters exclude each other (rank: passage). Sections may nest, and may end on another
// thread than they began on.
//
// side_:       written by waiters under their lock, read by sections relaxed: a stale side is
//              waited for as well.
// cell.inside: two counts, of side 0 below and of side 1 above, so that a waiter who finds nobody
//              has looked at one word a cell. Added to by sections, read by waiters, both seq_cst:
//              either the waiter sees the section, or the section sees what the waiter published
//              (seq_cst) before.
// used_:       a bit for each cell that anybody was ever in, set (seq_cst) before the first count,
//              read (acquire) before every other: a waiter who reads it (seq_cst) and misses a bit
//              comes before the section in the same way (passage.cc).

#include "base/guard.h"
#include "base/types.h"
#include "sync/annotations.h"
#include "sync/atomic.h"
#include "sync/mutex.h"

namespace stagetwo::sync {

class Passage {
 public:
  using Ticket = u32;  // the cell, and the side in the lowest bit

  constexpr Passage() = default;
  Passage(const Passage&) = delete;
  Passage& operator=(const Passage&) = delete;

  // Context: any thread, signal handlers included. Does not fail and does not wait.
  [[nodiscard]] Ticket enter() const {
    const u32 side = side_.load(std::memory_order_relaxed);
    const u32 cell = cell_of_thread();
    const bool known = (used_.load(used_order()) & 1u << cell) != 0;
    if (ST_GUARD(passage_cell_used, !known)) used_.fetch_or(1u << cell);
    cells_[cell].inside.fetch_add(one(side));
    return cell << 1 | side;
  }
  void leave(Ticket ticket) const { cells_[ticket >> 1].inside.fetch_sub(one(ticket & 1)); }

  // Pre: the caller is inside no section of this passage. Spins, then yields, then sleeps.
  void wait() const;
  // The same, but gives up after that time. False: somebody may still be inside.
  [[nodiscard]] bool wait_at_most(u64 ns) const;
  // As wait(), for sections that read what was published with acquire only: it leaves a mark in
  // every cell that whoever enters later synchronises with. Costs a locked add a cell.
  void wait_for_acquirers() const;
  // Was each cell empty when it was looked at? Who is inside and was not seen sees what the caller
  // published before, as after wait().
  [[nodiscard]] bool nobody_inside() const {
    for (u32 left = used(); left != 0; left &= left - 1) {
      if (cells_[__builtin_ctz(left)].inside.load() != 0) return false;
    }
    return true;
  }
  // Nobody is inside at some moment of the call. Pre: the caller keeps newcomers out, or they hold
  // it up.
  void wait_until_empty() const {
    for (const Cell& cell : cells_) wait_for(cell, ~u64{0}, ~u64{0});
  }

  // Nobody is inside. Racy: checks and tests.
  [[nodiscard]] bool debug_empty() const;
  // In a child of fork: the sections of other threads are gone.
  void reset();

 private:
#if defined(ST_SCHED)
  static constexpr u32 kCells = 2;  // of threads by their number: a schedule knows no chance
#else
  static constexpr u32 kCells = 16;
#endif
  struct alignas(64) Cell {
    mutable Atomic<u64> inside{0};
  };

  static constexpr u64 one(u32 side) { return u64{1} << (32 * side); }
  static constexpr u64 all(u32 side) { return u64{0xffff'ffff} << (32 * side); }
  // The cells to look at.
  u32 used() const { return used_.load(); }
  static std::memory_order used_order() {
    return ST_GUARD(passage_used_acquire, true) ? kAcquire : kRelaxed;
  }
  static u32 cell_of_thread();
  static bool wait_for(const Cell& cell, u64 mask, u64 until);
  bool wait_for_side(u32 side, u64 until) const;
  bool turn(u64 until) const;

  mutable Cell cells_[kCells];
  mutable Atomic<u32> side_{0};
  mutable Atomic<u32> used_{0};
  mutable Mutex waiters_{Rank::kPassage};
};

}  // namespace stagetwo::sync

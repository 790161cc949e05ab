// SPDX-License-Identifier: Apache-2.0
#pragma once

// How many more pages guests may get before somebody makes room: whoever is about to make one
// present pays here first, and who finds nothing left makes room himself, by one turn of the work
// item that said so, or waits a millisecond for who is at it. Analogue: try_charge() of a memory
// cgroup and its direct reclaim (kernel file: mm/memcontrol.c). Differs: what is paid is an
// estimate that each turn corrects, and a payment is never refused: where no room can be made, the
// limit is not kept.
//
// A store may need several pages (its table, its page), and a guest whose store takes 10 ms is
// taken for one that stands still. So those who answer touches of the process, and can bring back
// more in a millisecond than a turn takes away, wait before the last pages are gone: a guest finds
// some left (the reserve) whatever the process has just read.
//
// Parts of the memory may have limits of their own (host/budget_accounts.h). What comes into one is
// counted when it has come; who reaches for a page of one in which nothing is left, makes room, or
// waits, as for the whole.
//
// Pressure is data, not a bell: docs/decisions/0024-memory-under-a-limit.md.
//
// Locking: none of its own; a turn takes what it takes. Lifetime: the item until clear().

#include "addr/addr.h"
#include "base/types.h"
#include "sync/atomic.h"
#include "sync/passage.h"

namespace stagetwo::host {

class WorkItem;

namespace budget {

namespace detail {
extern sync::Atomic<bool> limited;  // relaxed
extern constinit sync::Passage reaching;
extern constinit sync::Atomic<u32> no_room;  // relaxed
void pay_slow(u64 pages);
void reach_slow(u64 pages, Hva at);
}  // namespace detail

// Context: a thread of the client's outside of every section, with no lock; may run a turn.
inline void pay(u64 pages) {
  if (detail::limited.load(sync::kRelaxed)) [[unlikely]]
    detail::pay_slow(pages);
}
// The same for who must not wait for anybody: that only the reserve is left is the worker's to
// know. Below it a call takes a millisecond.
void owe(u64 pages);
// For the pages that came there: they are counted in what has them, too.
void owe_for(HvaRange came);
// While it lives nobody can make room: a fork has everything brought back and nothing taken. What
// is owed is then a debt for afterwards, and takes no time.
class NoRoom {
 public:
  NoRoom() { detail::no_room.fetch_add(1, sync::kRelaxed); }
  ~NoRoom() { detail::no_room.fetch_sub(1, sync::kRelaxed); }
  NoRoom(const NoRoom&) = delete;
  NoRoom& operator=(const NoRoom&) = delete;
};

[[nodiscard]] inline bool is_limited() {
  return detail::limited.load(sync::kRelaxed);
}
// A guest's access reaches for its page: as pay(), and under a limit who waits for stores to land
// waits until it has it. Of a part with a limit of its own it is `at`. Context: as pay().
class Reach {
 public:
  explicit Reach(u64 pages, Hva at = Hva(0)) : counted_(is_limited()) {
    if (!counted_) [[likely]]
      return;
    ticket_ = detail::reaching.enter();
    detail::reach_slow(pages, at);
  }
  ~Reach() {
    if (counted_) [[unlikely]]
      detail::reaching.leave(ticket_);
  }
  Reach(const Reach&) = delete;
  Reach& operator=(const Reach&) = delete;

 private:
  const bool counted_;
  sync::Passage::Ticket ticket_ = 0;
};
// Accesses that have begun get what they reach for, 50 ms at most: who collects what guests have
// stored finds no store held up by us that a machine with memory enough had done long ago. Context:
// no lock, outside of every Reach.
void let_stores_land();

// Pages are paid for from now on, and `item` makes room; the last `reserve` are for those who pay
// first. Pre: it is in the worker's list.
void limit(WorkItem* item, s64 reserve = 0);
// Nobody pays any more. Post: no turn runs on account of a payment. Pre: before remove_work().
void clear();
// First touches of these ranges are reported, and owed for, from now on: who touches fast what it
// never had would else be ahead of who makes room. In place of the ranges of the last call; what
// cannot be watched is not, and who changes a mapping ends it there. Where userfaultfd serves user
// mode only nothing is. Context: no lock, no section.
void watch_growth(const HvaRange* ranges, size_t count);
// What is left, in place of what was. Wakes those who wait.
void grant(s64 pages);
[[nodiscard]] s64 left();
// Who waits looks again: something has become of what was short.
void wake();
// Beyond the reserve: of the whole, and of what has the page.
[[nodiscard]] s64 spare(Hva at = Hva(0));
// How often somebody has slept until room was made, so far.
[[nodiscard]] u64 waits();

void after_fork_child();

}  // namespace budget
}  // namespace stagetwo::host

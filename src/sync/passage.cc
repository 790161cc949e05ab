// SPDX-License-Identifier: Apache-2.0
#include "sync/passage.h"

#include <memory>

#include "sync/futex.h"

// Why two sides, and why each wait turns them twice. A section counts itself on the side it read. A
// waiter turns new sections to the other side and waits for the one they left, so newcomers cannot
// hold it up. But a section may have read the side and not yet counted itself:
//
//   section                       | waiter 1                | waiter 2
//   reads side 0                  |                         |
//                                 | turns to 1, side 0 is 0 |
//                                 | returns                 |
//   counts itself on 0            |                         |
//   (sees what waiter 1 published)|                         |
//                                 |                         | publishes, must wait for it
//                                 |                         | turns to 0, waits for side 1
//                                 |                         | turns to 1, waits for side 0: found
//
// So a wait that looked at one side only would miss it. Looking at both, after the publication, is
// enough: the section either counted itself before the waiter's load (and is waited for), or its
// count, sequentially consistent, comes after and it sees what was published. That is also why
// nothing is turned where one look at every cell, both sides at once, finds nobody.

// Cells nobody was ever in are not looked at. The first in a cell sets its bit, the others read it:
//
//   A, the first in its cell      | waiter                  | B, the second in that cell
//                                 | publishes               |
//                                 | reads used: no such bit |
//   sets the bit; counts itself   |                         |
//   reads what was published      |                         |
//                                 |                         | reads the bit: it need not set it
//                                 |                         | counts itself
//                                 |                         | reads what was published
//
// A's bit comes after the waiter's look, so what A reads then is what was published: for
// sequentially consistent reads by that order alone; for acquiring ones the look is a write, and
// A's bit a later one of the same word (wait_for_acquirers). B has it from A's bit, by acquiring.

namespace stagetwo::sync {
namespace {

constexpr unsigned kSpins = 128;
constexpr unsigned kYields = 64;
constexpr u64 kSleepNs = 50'000;

}  // namespace

u32 Passage::cell_of_thread() {
#if defined(ST_SCHED)
  return sched::thread_number() % kCells;
#else
  // The thread's control block is aligned and far from the next one: its page number tells threads
  // apart as well as anything that is as cheap.
  const u64 block = reinterpret_cast<std::uintptr_t>(__builtin_thread_pointer()) >> 12;
  return static_cast<u32>((block * 0x9E3779B97F4A7C15U) >> 32) % kCells;
#endif
}

// Until the counts of the mask are 0. False: `until` came first.
bool Passage::wait_for(const Cell& cell, u64 mask, u64 until) {
  for (unsigned tries = 0; (cell.inside.load() & mask) != 0; ++tries) {
    if (tries < kSpins) {
      spin_hint();
    } else if (tries < kSpins + kYields) {
      yield_thread();
    } else {
      // Sections are short or inside a system call of the client: poll, nobody has to wake us.
      if (until != ~u64{0} && now_ns() >= until) return false;
      Atomic<u32> never{0};
      futex_wait(never, 0, kSleepNs);
    }
  }
  return true;
}

bool Passage::wait_for_side(u32 side, u64 until) const {
  for (const Cell& cell : cells_) {
    if (!wait_for(cell, all(side), until)) return false;
  }
  return true;
}

bool Passage::turn(u64 until) const {
  const MutexGuard guard(waiters_);
  for (int turns = 0; turns < 2; ++turns) {
    const u32 old_side = side_.load(kRelaxed);  // written under waiters_ only
    side_.store(old_side ^ 1, kSeqCst);
    if (!wait_for_side(old_side, until)) return false;
  }
  return true;
}

void Passage::wait() const {
  if (!nobody_inside()) turn(~u64{0});
}

bool Passage::wait_at_most(u64 ns) const {
  return turn(now_ns() + ns);
}

void Passage::wait_for_acquirers() const {
  bool inside = false;
  const u32 cells = ST_GUARD(passage_used_marked, true) ? used_.fetch_add(0) : used_.load();
  for (u32 left = cells; left != 0; left &= left - 1) {
    inside |= cells_[__builtin_ctz(left)].inside.fetch_add(0) != 0;
  }
  if (inside) turn(~u64{0});
}

bool Passage::debug_empty() const {
  for (const Cell& cell : cells_) {
    if (cell.inside.load(kRelaxed) != 0) return false;
  }
  return true;
}

void Passage::reset() {
  for (Cell& cell : cells_) cell.inside.store(0, kRelaxed);
  std::construct_at(&waiters_, Rank::kPassage);  // whoever held it is not in this process
}

}  // namespace stagetwo::sync

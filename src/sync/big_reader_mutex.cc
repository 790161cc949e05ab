// SPDX-License-Identifier: Apache-2.0
#include "sync/big_reader_mutex.h"

#include "base/guard.h"
#include "sync/futex.h"

// Each side says first and looks after, both sequentially consistent:
//
//   reader                              | writer
//   cell + 1                            | writer_ = 1
//   reads writer_: 0 -> inside          | reads every cell until it is 0
//
// so not both miss the other. A reader that finds a writer takes itself out again before it waits,
// or the writer would wait for it:
//
//   reader                              | writer
//   cell + 1                            |
//                                       | writer_ = 1, reads the cell: 1, spins
//   reads writer_: 1                    |
//   cell - 1                            |
//   sleeps on writer_ == 2              | reads the cell: 0 -> inside
//                                       | exchange(0) -> 2: wakes all
//
// Who has slept takes the lock as 2, because it cannot know whether it was the last sleeper.
//
// The lock is not handed over: who is awake takes it. A writer that lets go in order to come back
// is awake, and those it lets go for are not, so it would take the lock again before any of them
// runs. It waits until one of them has had it, but not for ever: that one may not be scheduled.

namespace stagetwo::sync {
namespace {

constexpr int kSpins = 128;
constexpr int kYields = 64;
constexpr int kSleeps = 20;
constexpr u64 kSleepNs = 50'000;

}  // namespace

// One round of waiting for the writer to go. False: it is gone.
bool BigReaderMutex::sleep_while_taken() {
  for (int i = 0; i < kSpins; ++i) {
    if (writer_.load(kRelaxed) == kFree) return false;
    spin_hint();
  }
  u32 seen = kTaken;
  if (!writer_.compare_exchange(seen, kSlept, kRelaxed) && seen == kFree) return false;
  futex_wait(writer_, kSlept);
  return true;
}

Passage::Ticket BigReaderMutex::acquire_shared_slow(Passage::Ticket ticket) {
  waiters_.fetch_add(1, kRelaxed);
  for (;;) {
    readers_.leave(ticket);
    while (sleep_while_taken()) {
    }
    ticket = readers_.enter();
    if (writer_.load(kSeqCst) == kFree) break;
  }
  waiters_.fetch_sub(1, kRelaxed);
  admitted_.fetch_add(1, kRelaxed);
  return ticket;
}

void BigReaderMutex::acquire() {
  u32 seen = kFree;
  const bool at_once = writer_.compare_exchange(seen, kTaken, kSeqCst);
  if (at_once && readers_.nobody_inside()) [[likely]]
    return;
  waiters_.fetch_add(1, kRelaxed);
  if (!at_once) {
    u32 take_as = kTaken;
    do {
      if (sleep_while_taken()) take_as = kSlept;
      seen = kFree;
    } while (!writer_.compare_exchange(seen, take_as, kSeqCst));
    admitted_.fetch_add(1, kRelaxed);
  }
  if (ST_GUARD(big_writer_drains, true)) readers_.wait_until_empty();
  waiters_.fetch_sub(1, kRelaxed);
}

bool BigReaderMutex::try_acquire() {
  u32 seen = kFree;
  if (!writer_.compare_exchange(seen, kTaken, kSeqCst)) return false;
  if (readers_.nobody_inside()) return true;
  release();
  return false;
}

void BigReaderMutex::give_way(u32 admitted) {
  if (!ST_GUARD(big_writer_gives_way, true)) return;
  for (int i = 0; i < kYields + kSleeps; ++i) {
    if (!contended() || admitted_.load(kRelaxed) != admitted) return;
    if (i < kYields) {
      yield_thread();
    } else {
      Atomic<u32> never{0};
      futex_wait(never, 0, kSleepNs);
    }
  }
}

void BigReaderMutex::wake_all() {
  futex_wake(writer_, 1 << 30);
}

}  // namespace stagetwo::sync

// SPDX-License-Identifier: Apache-2.0
#pragma once

// Waiting until something under a lock has changed: a page that somebody works on, operations that
// are to end. The waiter reads the turn under the lock, lets go, and sleeps until the turn moves.
// Analogue: wait_event() on a page's lock bit.
//
// I1: no turn is missed: whoever changes what is waited for raises the number before it wakes.

#include "addr/addr.h"
#include "sync/atomic.h"
#include "sync/futex.h"

namespace stagetwo::uv {

// A page that somebody works on for longer is told of; nothing is refused for being slow.
inline constexpr u64 kSlowNs = 100'000'000;

// One wait, however many turns it takes. Analogue: the kernel's watchdog for hung tasks.
class Watchdog {
 public:
  // Asked at each turn; true once, when it has taken too long.
  [[nodiscard]] bool barks() {
    const u64 now = sync::now_ns();
    if (since_ == 0) since_ = now;
    if (told_ || now - since_ < kSlowNs) return false;
    told_ = true;
    return true;
  }

 private:
  u64 since_ = 0;
  bool told_ = false;
};

// Somebody was told to come again for a page: since when, and when last.
struct PageWait {
  Gpa page;
  Watchdog watchdog;
  u64 latest = 0;  // 0: nobody waits
};

class Turnstile {
 public:
  // Pre: the lock under which the condition was found false is held.
  [[nodiscard]] u32 now() const { return turn_.load(sync::kRelaxed); }
  // Returns when the turn is no longer `seen`, or after a while: the caller looks again.
  void wait(u32 seen) {
    sleepers_.fetch_add(1);
    sync::futex_wait(turn_, seen, kPatienceNs);
    sleepers_.fetch_sub(1);
  }
  // Pre: the lock is held.
  void turn() {
    turn_.fetch_add(1);
    // seq_cst with the sleeper's count: it counts itself before the kernel compares the word.
    if (sleepers_.load() != 0) sync::futex_wake(turn_, 1 << 30);
  }

 private:
  static constexpr u64 kPatienceNs = kSlowNs;
  sync::Atomic<u32> turn_{0};
  sync::Atomic<u32> sleepers_{0};
};

}  // namespace stagetwo::uv

// SPDX-License-Identifier: Apache-2.0
#pragma once

// A writer that works long lets go and comes back at once, with a reader who waits. Under
// schedules, whose number of steps no other load changes: with real threads it is the kernel's
// wake-up that lets the reader in, or does not.

#include "sync/big_reader_mutex.h"
#include "sync/futex.h"
#include "tests/sched/sched_support.h"

namespace stagetwo::test {

struct YieldingWriter {
  static constexpr unsigned kThreads = 2;
  static inline unsigned let_in = 0;  // in how many runs

  sync::BigReaderMutex lock{sync::Rank::kSecondary};
  sync::Atomic<u32> taken{0}, entered{0};
  void thread(unsigned me) {
    if (me == 0) {
      while (taken.load() == 0) sync::yield_thread();
      const sync::BigReaderGuard shared(lock);
      entered.store(1);
    } else {
      sync::BigWriterGuard guard(lock);
      taken.store(1);
      while (!lock.contended()) sync::yield_thread();
      guard.drop();
      guard.retake();
      let_in += entered.load();
    }
  }
};

// In how many of `runs` schedules, always the same, the reader got in.
inline unsigned readers_let_in(unsigned runs) {
  YieldingWriter::let_in = 0;
  for (unsigned seed = 1; seed <= runs; ++seed) {
    EXPECT_TRUE(run_once<YieldingWriter>(seed).finished());
  }
  return YieldingWriter::let_in;
}

}  // namespace stagetwo::test

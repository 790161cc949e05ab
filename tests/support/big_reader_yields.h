// SPDX-License-Identifier: Apache-2.0
#pragma once

// A writer that works long lets go and comes back at once, with a reader who waits.

#include <thread>

#include "sync/big_reader_mutex.h"
#include "sync/futex.h"

namespace stagetwo::test {

// In how many of `rounds` yields the reader got in.
inline int readers_let_in(int rounds) {
  using namespace sync;
  BigReaderMutex lock(Rank::kSecondary);
  Atomic<int> begun{0};
  Atomic<int> entered{0};
  std::thread reader([&] {
    for (int seen = 0; seen < rounds;) {
      while (begun.load() == seen) yield_thread();
      seen = begun.load();
      const BigReaderGuard shared(lock);
      entered.fetch_add(1);
    }
  });
  int let_in = 0;
  for (int round = 0; round < rounds; ++round) {
    BigWriterGuard guard(lock);
    const int before = entered.load();
    begun.fetch_add(1);
    while (!lock.contended()) yield_thread();
    guard.drop();
    guard.retake();
    let_in += entered.load() != before;
  }
  reader.join();
  return let_in;
}

}  // namespace stagetwo::test

// SPDX-License-Identifier: Apache-2.0
#pragma once

// SequenceCounter: readers of a few words that change rarely read without a lock and look again if
// a writer was there. Analogue: seqcount_t. Writers exclude each other by a lock of their own; the
// words themselves are Atomic (relaxed), so that no read is undefined.
//
//   reader                            | writer (under its lock)
//   s = begin_read()   (acquire)      |
//                                     | begin_write(): s + 1, odd   (exchange, acq_rel)
//   reads word a                      | a = …  (release)
//   reads word b                      | b = …  (release)
//                                     | end_write(): s + 2   (release)
//   retry_read(s): differs → again    |
//
// A reader that saw a new word (by acquire) sees the odd or later number in retry_read().
// Progress: a reader waits only while a writer is between begin and end.

#include "sync/atomic.h"

namespace stagetwo::sync {

class SequenceCounter {
 public:
  constexpr SequenceCounter() = default;

  [[nodiscard]] u64 begin_read() const {
    for (;;) {
      const u64 sequence = sequence_.load(kAcquire);  // pairs with end_write
      if ((sequence & 1) == 0) return sequence;
      spin_hint();
    }
  }
  [[nodiscard]] bool retry_read(u64 sequence) const { return sequence_.load(kAcquire) != sequence; }

  void begin_write() { sequence_.fetch_add(1, kAcqRel); }
  void end_write() { sequence_.fetch_add(1, kRelease); }

 private:
  Atomic<u64> sequence_{0};
};

// A word published under a SequenceCounter: the orders of the table above, so that nobody forgets.
template <typename T>
class Sequenced {
 public:
  constexpr Sequenced() = default;
  explicit constexpr Sequenced(T value) : word_(value) {}
  [[nodiscard]] T read() const { return word_.load(kAcquire); }
  void write(T value) { word_.store(value, kRelease); }

 private:
  Atomic<T> word_{};
};

}  // namespace stagetwo::sync

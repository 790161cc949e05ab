// SPDX-License-Identifier: Apache-2.0
#pragma once

// Which threads are between the two ends of a fork. Between them run handlers of the client, which
// may leave it by siglongjmp, so that the second end never comes: a mark is believed as long as its
// thread lives, does nothing it would not do in a fork (leave()), and is not older than any fork
// takes.
//
// Context: any thread; allocates nothing, takes no lock. In a child of fork: clear().

#include "base/types.h"
#include "sync/atomic.h"

namespace stagetwo::host {

class ForkMarks {
 public:
  static constexpr unsigned kMost = 8;
  static constexpr u64 kLongestMs = 10'000;

  // The calling thread begins one. Where as many as possible are under way it waits for one to end.
  // Sequentially consistent, as any() is.
  void enter();
  // It is in none: at the second end, and wherever a thread in a fork does not come to.
  void leave();
  // Is any under way? Marks that nobody stands behind go.
  [[nodiscard]] bool any();
  void clear();

 private:
  // Thread and time in ms, 0: nobody's. Times wrap after 49 days.
  sync::Atomic<u64> marks_[kMost]{};
};

}  // namespace stagetwo::host

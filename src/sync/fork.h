// SPDX-License-Identifier: Apache-2.0
#pragma once

// Locks across fork. A child inherits every lock word as it stood; a lock another thread of the
// parent held would never be free. The few locks a child still needs (descriptors, session) are
// therefore taken in rank order before a fork and let go on both sides after it; everything else of
// the engine answers EIO in a child and is not touched.
//
// Registered locks live as long as the process. At most kMaxForkLocks.
// Context: fork_prepare to fork_parent/fork_child in the forking thread, which holds no lock.

#include "sync/mutex.h"

namespace stagetwo::sync {

class ForkLocks {
 public:
  static constexpr unsigned kMaxForkLocks = 16;

  // Pre: called once for each lock, before the first fork that matters.
  static void add(Mutex& mutex);
  // All registered locks, outermost rank first.
  static void prepare();
  static void parent();
  // Also forgets which ack lines the forking thread had entered: they belong to the parent.
  static void child();
};

}  // namespace stagetwo::sync

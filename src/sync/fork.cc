// SPDX-License-Identifier: Apache-2.0
#include "sync/fork.h"

#include "base/check.h"
#include "sync/thread_sections.h"

namespace stagetwo::sync {
namespace {

// Registered locks in rank order. The list itself is under a lock of leaf rank that prepare() takes
// last and that nobody holds across anything else.
struct Registered {
  Mutex* lock[ForkLocks::kMaxForkLocks];
  unsigned count;
};
constinit Registered registered{};
constinit Mutex list_lock{Rank::kLeaf};

}  // namespace

void ForkLocks::add(Mutex& mutex) {
  const MutexGuard guard(list_lock);
  ST_CHECK_OP(registered.count, <, kMaxForkLocks);
  unsigned at = registered.count++;
  for (; at > 0 && registered.lock[at - 1]->rank() > mutex.rank(); --at) {
    registered.lock[at] = registered.lock[at - 1];
  }
  registered.lock[at] = &mutex;
}

void ForkLocks::prepare() {
  for (unsigned i = 0; i < registered.count; ++i) registered.lock[i]->acquire();
  list_lock.acquire();
}

void ForkLocks::parent() {
  list_lock.release();
  for (unsigned i = registered.count; i > 0; --i) registered.lock[i - 1]->release();
}

void ForkLocks::child() {
  ThreadSections::abandon();
  parent();
}

}  // namespace stagetwo::sync

// SPDX-License-Identifier: Apache-2.0
// The lock of shared memory under every schedule: exclusion, publication, nobody waits for ever.
// What happens when a holder dies needs real processes: tests/unit/sync/process_mutex_test.cc.

#include "sync/process_mutex.h"

#include "sync/futex.h"
#include "tests/sched/sched_support.h"

namespace stagetwo::test {
namespace {

using namespace stagetwo::sync;

struct ThreeInTheLock {
  static constexpr unsigned kThreads = 3;
  ProcessMutex lock;
  sched::PlainWord value;
  Atomic<u32> done;
  void thread(unsigned) {
    for (int i = 0; i < 2; ++i) {
      const ProcessMutexGuard guard(lock, Rank::kIoas);
      sched::expect(!guard.died(), "somebody was taken for dead");
      value.write(value.read() + 1);
    }
    if (done.fetch_add(1) == 2) sched::expect(value.read() == 6, "an increment was lost");
  }
};
TEST(ProcessMutex, ExcludesAndPublishes) {
  expect_holds<ThreeInTheLock>(2500);
}

// It takes a holder that lets it wait for one that has died.
class ImpatientLock {
 public:
  void lock() {
    u32 seen = 0;
    if (word_.compare_exchange(seen, 1, kAcquire)) return;
    for (;;) {
      seen = word_.load(kRelaxed);
      if (seen == 0) {
        if (word_.compare_exchange(seen, kMine, kAcquire)) return;
        continue;
      }
      futex_wait(word_, seen, 10'000'000);
      if (word_.load(kRelaxed) == seen && word_.compare_exchange(seen, kMine, kAcquire)) return;
    }
  }
  void unlock() {
    if (word_.exchange(0, kRelease) != 0) futex_wake(word_, 1);
  }

 private:
  static constexpr u32 kMine = 2;
  Atomic<u32> word_{0};
};
struct ImpatientThreads {
  static constexpr unsigned kThreads = 3;
  ImpatientLock lock;
  Atomic<u32> inside;
  void thread(unsigned) {
    for (int i = 0; i < 2; ++i) {
      lock.lock();
      sched::expect(inside.fetch_add(1) == 0, "two at once");
      inside.fetch_sub(1);
      lock.unlock();
    }
  }
};
TEST(ProcessMutexTwin, OneThatDoesNotAskWhetherTheHolderLivesIsFound) {
  expect_found<ImpatientThreads>();
}

}  // namespace
}  // namespace stagetwo::test

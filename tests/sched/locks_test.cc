// SPDX-License-Identifier: Apache-2.0
// Locks, sequence counters and reference counts under every schedule: exclusion, publication, no
// lost wake-up. Each with a twin that is broken on purpose.

#include "sync/mutex.h"

#include "sync/futex.h"
#include "sync/ref.h"
#include "sync/sequence_counter.h"
#include "tests/sched/sched_support.h"

namespace stagetwo::test {
namespace {

using namespace stagetwo::sync;

struct ThreeInTheMutex {
  static constexpr unsigned kThreads = 3;
  Mutex lock{Rank::kLeaf};
  sched::PlainWord value;
  Atomic<u32> done;
  void thread(unsigned) {
    for (int i = 0; i < 2; ++i) {
      const MutexGuard guard(lock);
      value.write(value.read() + 1);
    }
    if (done.fetch_add(1) == 2) sched::expect(value.read() == 6, "an increment was lost");
  }
};
TEST(Mutex, ExcludesAndPublishesAndWakes) {
  expect_holds<ThreeInTheMutex>();
}

// A lock whose release does not release, and one that never wakes.
struct ForgetfulMutex {
  Atomic<u32> state{0};
  void lock() {
    while (state.exchange(1, kAcquire) != 0) spin_hint();
  }
  void unlock() { state.store(0, kRelaxed); }
};
struct SleepyMutex {
  Atomic<u32> state{0};
  void lock() {
    u32 seen = 0;
    if (state.compare_exchange(seen, 1, kAcquire)) return;
    while (state.exchange(2, kAcquire) != 0) futex_wait(state, 2);
  }
  void unlock() {
    // Wakes only if it looks contended before the release: the sleeper in between is forgotten.
    const bool contended = state.load(kRelaxed) == 2;
    state.store(0, kRelease);
    if (contended) futex_wake(state, 1);
  }
};
template <typename Lock>
struct BrokenMutex {
  static constexpr unsigned kThreads = 2;
  Lock lock;
  sched::PlainWord value;
  void thread(unsigned) {
    lock.lock();
    value.write(value.read() + 1);
    lock.unlock();
  }
};
TEST(MutexTwin, ReleaseWithoutReleaseOrderIsFound) {
  expect_found<BrokenMutex<ForgetfulMutex>>();
}
TEST(MutexTwin, ALostWakeUpIsFound) {
  expect_found<BrokenMutex<SleepyMutex>>();
}

struct ReadersAndWriters {
  static constexpr unsigned kThreads = 4;
  SharedMutex lock{Rank::kLeaf};
  sched::PlainWord a, b;
  void thread(unsigned me) {
    if (me < 2) {
      for (int i = 0; i < 2; ++i) {
        const SharedGuard guard(lock);
        sched::expect(a.read() == b.read(), "a reader saw half a write");
      }
    } else {
      const ExclusiveGuard guard(lock);
      a.write(a.read() + 1);
      b.write(b.read() + 1);
    }
  }
};
TEST(SharedMutex, ReadersSeeWholeWrites) {
  expect_holds<ReadersAndWriters>();
}

template <bool kOrdered>
struct SequenceReader {
  static constexpr unsigned kThreads = 2;
  static constexpr auto kRead = kOrdered ? kAcquire : kRelaxed;
  static constexpr auto kWrite = kOrdered ? kRelease : kRelaxed;
  SequenceCounter counter;
  Atomic<u64> a, b;
  void thread(unsigned me) {
    if (me == 0) {
      for (u64 i = 1; i < 3; ++i) {
        counter.begin_write();
        a.store(i, kWrite);
        b.store(i, kWrite);
        counter.end_write();
      }
      return;
    }
    for (int tries = 0; tries < 3; ++tries) {
      const u64 s = counter.begin_read();
      const u64 x = a.load(kRead);
      const u64 y = b.load(kRead);
      if (!counter.retry_read(s)) sched::expect(x == y, "torn");
    }
  }
};
TEST(SequenceCounter, ReadersSeeNoHalf) {
  expect_holds<SequenceReader<true>>();
}
TEST(SequenceCounter, RelaxedWordsAreFound) {
  expect_found<SequenceReader<false>>(5000);
}

// Lookup against the last unref: the object is found alive or not at all.
struct Counted : RefCounted {
  explicit Counted(sched::PlainWord& w) : word(w) {}
  ~Counted() override { word.write(0); }
  sched::PlainWord& word;
};
struct LookupAgainstLastUnref {
  static constexpr unsigned kThreads = 3;
  sched::PlainWord alive{1};
  Ref<Counted> table;
  Mutex lock{Rank::kLeaf};
  Counted* listed;
  LookupAgainstLastUnref() : table(std::move(*Ref<Counted>::make("test", alive))) {
    listed = table.get();
  }
  void thread(unsigned me) {
    if (me == 0) {
      {
        const MutexGuard guard(lock);
        listed = nullptr;
      }
      table.reset();
      return;
    }
    Ref<Counted> mine;
    {
      const MutexGuard guard(lock);
      if (listed != nullptr && listed->try_ref()) mine = Ref<Counted>::adopt(listed);
    }
    if (mine) sched::expect(alive.read() == 1, "a reference to a dead object");
  }
};
TEST(Ref, LookupAgainstTheLastUnref) {
  expect_holds<LookupAgainstLastUnref>();
}

}  // namespace
}  // namespace stagetwo::test

// SPDX-License-Identifier: Apache-2.0
// The scheduler and its memory model against the litmus tests everybody knows: what C++ permits is
// found, what it forbids never happens.

#include <string.h>

#include "sync/asymmetric.h"
#include "sync/futex.h"
#include "tests/sched/sched_support.h"

namespace stagetwo::test {
namespace {

using namespace stagetwo::sync;

// Store buffering: both threads write their own word, then read the other's.
template <std::memory_order Write, std::memory_order Read>
struct StoreBuffering {
  static constexpr unsigned kThreads = 2;
  Atomic<u32> word[2];
  unsigned seen[2] = {9, 9};
  unsigned done = 0;
  void thread(unsigned me) {
    word[me].store(1, Write);
    seen[me] = word[1 - me].load(Read);
    if (++done == 2) sched::expect(seen[0] + seen[1] > 0, "both read 0");
  }
};

TEST(StoreBuffering, IsFoundWithReleaseAndAcquire) {
  expect_found<StoreBuffering<kRelease, kAcquire>>(200);
}
TEST(StoreBuffering, IsFoundWhenOnlyTheWritesAreSequentiallyConsistent) {
  expect_found<StoreBuffering<kSeqCst, kAcquire>>(200);
}
TEST(StoreBuffering, DoesNotHappenWhenAllFourAreSequentiallyConsistent) {
  expect_holds<StoreBuffering<kSeqCst, kSeqCst>>();
}
TEST(StoreBuffering, DoesNotHappenWithoutWeakMemory) {
  EXPECT_FALSE((search<StoreBuffering<kRelaxed, kRelaxed>>(500, false).found));
}

// Message passing: data, then a flag.
template <std::memory_order Write, std::memory_order Read>
struct MessagePassing {
  static constexpr unsigned kThreads = 2;
  sched::PlainWord data;
  Atomic<u32> flag;
  void thread(unsigned me) {
    if (me == 0) {
      data.write(42);
      flag.store(1, Write);
    } else if (flag.load(Read) == 1) {
      sched::expect(data.read() == 42, "old data behind a new flag");
    }
  }
};

TEST(MessagePassing, HoldsWithReleaseAndAcquire) {
  expect_holds<MessagePassing<kRelease, kAcquire>>();
}
TEST(MessagePassing, MissingReleaseIsFound) {
  expect_found<MessagePassing<kRelaxed, kAcquire>>(200);
}
TEST(MessagePassing, MissingAcquireIsFound) {
  expect_found<MessagePassing<kRelease, kRelaxed>>(200);
}

// A read-modify-write in the middle carries the release on.
struct ReleaseSequence {
  static constexpr unsigned kThreads = 3;
  sched::PlainWord data;
  Atomic<u32> word;
  void thread(unsigned me) {
    if (me == 0) {
      data.write(1);
      word.store(1, kRelease);
    } else if (me == 1) {
      word.fetch_add(1, kRelaxed);
    } else if (word.load(kAcquire) == 2) {
      sched::expect(data.read() == 1, "release sequence broken");
    }
  }
};
TEST(ReadModifyWrite, CarriesAReleaseOn) {
  expect_holds<ReleaseSequence>();
}

// A page of tables that was given back and zeroed by plain stores serves somebody else.
template <bool IsSaid>
struct MemoryMadeAnew {
  static constexpr unsigned kThreads = 2;
  Atomic<u32> words[4];
  Atomic<u32> turn;
  void thread(unsigned me) {
    if (me == 0) {
      for (auto& word : words) word.store(7);
      memset(static_cast<void*>(words), 0, sizeof words);
      if (IsSaid) made_anew(words, sizeof words);
      return turn.store(1);
    }
    if (turn.load() == 0) return;
    for (auto& word : words) sched::expect(word.load() == 0, "of what stood there before");
  }
};
TEST(MemoryMadeAnew, HasNoOlderValues) {
  expect_holds<MemoryMadeAnew<true>>(300);
}
TEST(MemoryMadeAnew, KeepsThemForWhoIsNotTold) {
  expect_found<MemoryMadeAnew<false>>(100);
}

struct Increments {
  static constexpr unsigned kThreads = 3;
  Atomic<u32> word;
  Atomic<u32> done;
  void thread(unsigned) {
    for (int i = 0; i < 3; ++i) word.fetch_add(1, kRelaxed);
    if (done.fetch_add(1) == 2) sched::expect(word.load() == 9, "an increment was lost");
  }
};
TEST(ReadModifyWrite, LosesNothing) {
  expect_holds<Increments>(300);
}

struct LostIncrements {
  static constexpr unsigned kThreads = 2;
  Atomic<u32> word;
  Atomic<u32> done;
  void thread(unsigned) {
    word.store(word.load() + 1);
    if (done.fetch_add(1) == 1) sched::expect(word.load() == 2, "an increment was lost");
  }
};
TEST(ReadModifyWrite, MadeOfTwoAccessesIsFound) {
  expect_found<LostIncrements>(100);
}

// The asymmetric barrier, and its fallback.
template <bool kMembarrier, bool kBarrier>
struct Asymmetric {
  static constexpr unsigned kThreads = 2;
  Atomic<u32> flag;
  Atomic<u32> request;
  unsigned seen[2] = {9, 9};
  unsigned done = 0;
  Asymmetric() {
    if (kMembarrier) {
      asymmetric_init();
    } else {
      debug_forbid_membarrier();
    }
  }
  void thread(unsigned me) {
    if (me == 0) {
      store_light(flag, u32{1});
      seen[0] = request.load(kSeqCst);
    } else {
      request.store(1, kSeqCst);
      if (kBarrier) asymmetric_barrier();
      seen[1] = load_heavy(flag);
    }
    if (++done == 2) sched::expect(seen[0] + seen[1] > 0, "both missed each other");
  }
};
TEST(AsymmetricBarrier, NobodyMissesTheOther) {
  if (!asymmetric_init())
    GTEST_SKIP() << "only the fallback here: no membarrier(2), or the thread sanitizer";
  expect_holds<Asymmetric<true, true>>();
}
TEST(AsymmetricBarrier, TheFallbackHoldsToo) {
  expect_holds<Asymmetric<false, true>>();
}
TEST(AsymmetricBarrier, WithoutTheBarrierTheMissIsFound) {
  if (!asymmetric_init())
    GTEST_SKIP() << "only the fallback here: no membarrier(2), or the thread sanitizer";
  expect_found<Asymmetric<true, false>>(300);
}

struct SleepsForEver {
  static constexpr unsigned kThreads = 2;
  Atomic<u32> word;
  void thread(unsigned me) {
    if (me == 0) futex_wait(word, 0);
  }
};
TEST(Scheduler, ReportsADeadlock) {
  const Found found = search<SleepsForEver>(20);
  ASSERT_TRUE(found.found);
  EXPECT_EQ(found.outcome.end, sched::End::kDeadlock);
}

struct SpinsForEver {
  static constexpr unsigned kThreads = 2;
  Atomic<u32> word;
  void thread(unsigned me) {
    while (me == 0 && word.load() == 0) spin_hint();
  }
};
TEST(Scheduler, ReportsALivelock) {
  const auto outcome = run_once<SpinsForEver>(1);
  EXPECT_EQ(outcome.end, sched::End::kStepLimit);
}

struct WakesAfterCheck {
  static constexpr unsigned kThreads = 2;
  Atomic<u32> word;
  void thread(unsigned me) {
    if (me == 0) {
      while (word.load(kAcquire) == 0) futex_wait(word, 0);
    } else {
      word.store(1, kRelease);
      futex_wake(word, 1);
    }
  }
};
TEST(Scheduler, FutexComparesBeforeItSleeps) {
  expect_holds<WakesAfterCheck>(500);
}

TEST(Scheduler, TheSameSeedGivesTheSameRun) {
  const auto first = run_once<Increments>(77);
  const auto second = run_once<Increments>(77);
  EXPECT_EQ(first.steps, second.steps);
}

}  // namespace
}  // namespace stagetwo::test

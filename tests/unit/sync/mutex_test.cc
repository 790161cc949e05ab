// SPDX-License-Identifier: Apache-2.0
#include "sync/mutex.h"

#include <gtest/gtest.h>

#include <string>
#include <thread>
#include <vector>

namespace stagetwo::sync {
namespace {

struct Counter {
  Mutex lock{Rank::kLeaf};
  int value TA_GUARDED(lock) = 0;
};

TEST(Mutex, Excludes) {
  Counter counter;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 10'000; ++i) {
        const MutexGuard guard(counter.lock);
        ++counter.value;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  const MutexGuard guard(counter.lock);
  EXPECT_EQ(counter.value, 40'000);
}

TEST(Mutex, IsFreeAfterItsGuard) {
  Mutex lock(Rank::kLeaf);
  {
    const MutexGuard guard(lock);
    EXPECT_TRUE(lock.debug_locked());
    lock.assert_held();
  }
  EXPECT_FALSE(lock.debug_locked());
}

TEST(SharedMutex, LetsReadersInTogetherAndWritersAlone) {
  SharedMutex lock(Rank::kLeaf);
  Atomic<int> inside{0};
  Atomic<int> most{0};
  int written = 0;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 5'000; ++i) {
        if (t == 0) {
          const ExclusiveGuard guard(lock);
          EXPECT_EQ(inside.load(), 0);
          ++written;
        } else {
          const SharedGuard guard(lock);
          const int now = inside.fetch_add(1) + 1;
          int seen = most.load();
          while (seen < now && !most.compare_exchange(seen, now)) {
          }
          inside.fetch_sub(1);
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(written, 5'000);
  EXPECT_GE(most.load(), 1);
}

TEST(SharedMutex, TwoReadersAreInsideAtOnce) {
  SharedMutex lock(Rank::kLeaf);
  Atomic<int> inside{0};
  const auto reader = [&] {
    const SharedGuard guard(lock);
    inside.fetch_add(1);
    while (inside.load() < 2) spin_hint();
  };
  std::thread other(reader);
  reader();
  other.join();
}

TEST(Ranks, HaveNamesInOrder) {
  EXPECT_STREQ(name_of(Rank::kSession), "session");
  EXPECT_STREQ(name_of(Rank::kSecondary), "secondary");
  EXPECT_STREQ(name_of(Rank::kLeaf), "leaf");
}

#if ST_DEBUG_CHECKS
TEST(Ranks, TheWrongOrderEndsTheProcessAndNamesBothPlaces) {
  Mutex slots(Rank::kSlots);
  Mutex leaf(Rank::kLeaf);
  EXPECT_DEATH(
      {
        const MutexGuard inner(leaf);
        const MutexGuard outer(slots);
      },
      "lock order broken: slots .*mutex_test.cc:.* taken while holding leaf .*mutex_test.cc:");
}

TEST(Ranks, TwoLocksOfOneRankAreRefused) {
  Mutex a(Rank::kSecondary);
  Mutex b(Rank::kSecondary);
  EXPECT_DEATH(
      {
        const MutexGuard one(a);
        const MutexGuard two(b);
      },
      "lock order broken: secondary");
}

// The analysis sees this mistake too; here the run-time check has to.
void take_twice(SharedMutex& lock) TA_NO_ANALYSIS {
  const SharedGuard one(lock);
  const SharedGuard two(lock);
}
TEST(Ranks, TheSameLockTwiceIsRefused) {
  SharedMutex lock(Rank::kSlots);
  EXPECT_DEATH(take_twice(lock), "lock order broken: slots");
}

TEST(Ranks, AssertHeldKnowsWhoHolds) {
  Mutex a(Rank::kSlots);
  EXPECT_DEATH(a.assert_held(), "slots is not held");
}
#endif

TEST(Ranks, TheRightOrderPasses) {
  SharedMutex slots(Rank::kSlots);
  Mutex gate(Rank::kGate);
  const SharedGuard outer(slots);
  {
    const MutexGuard inner(gate);
    gate.assert_held();
    slots.assert_held_shared();
  }
  const MutexGuard again(gate);
}

}  // namespace
}  // namespace stagetwo::sync

// SPDX-License-Identifier: Apache-2.0
#include "sync/big_reader_mutex.h"

#include <gtest/gtest.h>

#include <thread>
#include <vector>

#include "sync/futex.h"
#include "sync/try_mutex.h"

namespace stagetwo::sync {
namespace {

TEST(BigReaderMutex, LetsReadersInTogetherAndWritersAlone) {
  BigReaderMutex lock(Rank::kSecondary);
  Atomic<int> inside{0};
  int written = 0;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 5'000; ++i) {
        if (t == 0) {
          const BigWriterGuard guard(lock);
          EXPECT_EQ(inside.load(), 0);
          ++written;
        } else {
          const BigReaderGuard guard(lock);
          inside.fetch_add(1);
          EXPECT_GE(written, 0);
          inside.fetch_sub(1);
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(written, 5'000);
  EXPECT_TRUE(lock.debug_idle());
}

TEST(BigReaderMutex, IsTakenAloneAtOnceOrNotAtAll) {
  BigReaderMutex lock(Rank::kSecondary);
  const auto is_taken = [&lock] {
    bool taken = false;
    std::thread([&] { taken = TryBigWriterGuard(lock).locked(); }).join();
    return taken;
  };
  EXPECT_TRUE(is_taken());
  EXPECT_TRUE(lock.debug_idle());
  {
    const BigReaderGuard guard(lock);
    EXPECT_FALSE(is_taken());
    std::thread([&] { const BigReaderGuard other(lock); }).join();
  }
  {
    const BigWriterGuard guard(lock);
    EXPECT_FALSE(is_taken());
  }
  const TryBigWriterGuard guard(lock);
  EXPECT_TRUE(guard.locked());
  EXPECT_FALSE(is_taken());
}

// Who holds the lock as `Held` sees that another thread wants it as `Wanted`, and lets it in.
template <typename Held, typename Wanted>
void expect_contended() {
  BigReaderMutex lock(Rank::kSecondary);
  Atomic<bool> got{false};
  std::thread other;
  {
    Held guard(lock);
    EXPECT_FALSE(lock.contended());
    other = std::thread([&] {
      const Wanted mine(lock);
      got.store(true);
    });
    while (!lock.contended()) yield_thread();
    EXPECT_FALSE(got.load());
    guard.drop();
    while (!got.load()) yield_thread();
    guard.retake();
  }
  other.join();
  EXPECT_FALSE(lock.contended());
}

TEST(BigReaderMutex, SaysThatAWriterWaitsForAReader) {
  expect_contended<BigReaderGuard, BigWriterGuard>();
}

TEST(BigReaderMutex, SaysThatAReaderWaitsForAWriter) {
  expect_contended<BigWriterGuard, BigReaderGuard>();
}

TEST(BigReaderMutex, AGracePeriodWaitsForTheSectionsOfBeforeAndNotForLaterOnes) {
  BigReaderMutex lock(Rank::kSecondary);
  Atomic<int> step{0};
  std::thread before([&] {
    const BigReaderGuard guard(lock);
    step.store(1);
    while (step.load() != 2) yield_thread();
    step.store(3);
  });
  while (step.load() != 1) yield_thread();
  std::thread waiter([&] {
    lock.wait_for_shared();
    EXPECT_EQ(step.load(), 3);
    step.store(4);
  });
  step.store(2);
  before.join();
  waiter.join();
  const BigReaderGuard later(lock);
  EXPECT_EQ(step.load(), 4);
}

}  // namespace
}  // namespace stagetwo::sync

// SPDX-License-Identifier: Apache-2.0
#include "sync/futex.h"

#include <gtest/gtest.h>

#include <thread>

#include "base/sys.h"

namespace stagetwo::sync {
namespace {

TEST(Futex, DoesNotSleepOnAnotherValue) {
  Atomic<u32> word{1};
  futex_wait(word, 0);
}

TEST(Futex, SleepsNoLongerThanItsTimeout) {
  Atomic<u32> word{0};
  const u64 start = now_ns();
  futex_wait(word, 0, 2'000'000);
  EXPECT_GE(now_ns() - start, 1'000'000u);
}

TEST(Futex, AWakeEndsTheSleep) {
  Atomic<u32> word{0};
  std::thread sleeper([&] {
    while (word.load() == 0) futex_wait(word, 0);
  });
  word.store(1);
  futex_wake(word, 1);
  sleeper.join();
}

}  // namespace
}  // namespace stagetwo::sync

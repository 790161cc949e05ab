// SPDX-License-Identifier: Apache-2.0
#include "host/fork_marks.h"

#include <gtest/gtest.h>

#include <atomic>
#include <thread>
#include <vector>

namespace stagetwo::host {
namespace {

TEST(ForkMarks, SayThatAForkIsUnderWayUntilItsSecondEnd) {
  ForkMarks marks;
  EXPECT_FALSE(marks.any());
  marks.enter();
  EXPECT_TRUE(marks.any());
  std::thread([&] {
    marks.leave();  // not this thread's
    EXPECT_TRUE(marks.any());
  }).join();
  marks.leave();
  EXPECT_FALSE(marks.any());
}

TEST(ForkMarks, OfAThreadThatEndedInTheMiddleAreForgotten) {
  ForkMarks marks;
  std::thread([&] { marks.enter(); }).join();
  EXPECT_FALSE(marks.any());
}

TEST(ForkMarks, AThreadHasOne) {
  ForkMarks marks;
  for (unsigned i = 0; i < 2 * ForkMarks::kMost; ++i)
    marks.enter();  // all but the last jumped out of
  EXPECT_TRUE(marks.any());
  marks.leave();
  EXPECT_FALSE(marks.any());
}

TEST(ForkMarks, MoreThanThereIsRoomForWaitForEachOther) {
  ForkMarks marks;
  std::atomic<unsigned> inside{0};
  std::atomic<unsigned> most{0};
  std::vector<std::thread> threads;
  for (unsigned i = 0; i < 3 * ForkMarks::kMost; ++i) {
    threads.emplace_back([&] {
      marks.enter();
      const unsigned now = ++inside;
      unsigned seen = most;
      while (seen < now && !most.compare_exchange_weak(seen, now)) {
      }
      EXPECT_TRUE(marks.any());
      --inside;
      marks.leave();
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_LE(most, ForkMarks::kMost);
  EXPECT_FALSE(marks.any());
}

}  // namespace
}  // namespace stagetwo::host

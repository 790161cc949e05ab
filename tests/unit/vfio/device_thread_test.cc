// SPDX-License-Identifier: Apache-2.0
#include "vfio/device_thread.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include "host/process.h"

namespace stagetwo::vfio {
namespace {

// Takes from `waiting` and puts on `done`.
class Conveyor final : public DeviceThread::Work {
 public:
  bool work() override {
    if (waiting.load(sync::kAcquire) == 0) return false;
    inside.store(1);
    if (!thread.cancelled()) {
      waiting.fetch_sub(1);
      done.fetch_add(1);
    }
    inside.store(0);
    return true;
  }
  void falls_asleep() override { asleep.store(1); }
  void wakes_up() override { asleep.store(0); }
  void in_child() override { done.store(0); }
  void put(u32 pieces) {
    waiting.fetch_add(pieces);
    if (asleep.load() != 0) thread.wake();
  }
  void await(u32 pieces) const {
    while (done.load() != pieces) usleep(10);
  }
  sync::Atomic<u32> waiting{0}, done{0}, inside{0}, asleep{0};
  DeviceThread thread{*this};
};

TEST(DeviceThread, WorksUntilThereIsNothingAndIsWokenByWhatComesWhileItSleeps) {
  Conveyor belt;
  ASSERT_TRUE(belt.thread.start());
  for (u32 round = 1; round <= 300; ++round) {
    belt.put(1);
    belt.await(round);
    if (round % 3 == 0) usleep(40);  // about when it goes to sleep
  }
  while (belt.asleep.load() == 0) usleep(10);
  belt.thread.stop();
}

TEST(DeviceThread, PausedItTouchesNothingHoweverOftenItIsAsked) {
  Conveyor belt;
  ASSERT_TRUE(belt.thread.start());
  for (u32 round = 0; round < 2000; ++round) {
    belt.put(3);
    belt.thread.pause();
    const u32 done = belt.done.load();
    ASSERT_EQ(belt.inside.load(), 0u);
    if (round % 100 == 0) usleep(200);
    ASSERT_EQ(belt.done.load(), done);
    belt.thread.resume();
  }
  belt.await(6000);
  belt.thread.pause();
  belt.thread.stop();  // also while it rests
  belt.thread.stop();
}

TEST(DeviceThread, AChildHasNoneUntilItStartsItsOwn) {
  Conveyor belt;
  ASSERT_TRUE(belt.thread.start());
  belt.put(2);
  belt.await(2);
  const pid_t child = fork();
  if (child == 0) {
    host::after_fork_child();  // as the shim does
    belt.thread.pause();       // nobody is there
    if (!belt.thread.start() || belt.done.load() != 0) _exit(1);
    belt.put(1);
    belt.await(1);
    belt.thread.stop();
    _exit(0);
  }
  int status = 1;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  belt.put(1);
  belt.await(3);
  belt.thread.stop();
}

}  // namespace
}  // namespace stagetwo::vfio

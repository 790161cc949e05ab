// SPDX-License-Identifier: Apache-2.0
#include "sync/fork.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <thread>

#include "sync/ack_line.h"
#include "sync/futex.h"

namespace stagetwo::sync {
namespace {

Mutex inner{Rank::kDescriptors};
Mutex outer{Rank::kSession};

// Another thread takes and lets go the locks all the time; a child must always find them free.
TEST(ForkLocks, AreFreeInTheChildWhateverOtherThreadsDo) {
  ForkLocks::add(inner);
  ForkLocks::add(outer);
  Atomic<u32> stop{0};
  std::thread busy([&] {
    while (stop.load() == 0) {
      const MutexGuard one(outer);
      const MutexGuard two(inner);
    }
  });
  for (int i = 0; i < 50; ++i) {
    ForkLocks::prepare();
    const pid_t child = fork();
    if (child == 0) {
      ForkLocks::child();
      alarm(10);
      const MutexGuard one(outer);
      const MutexGuard two(inner);
      _exit(0);
    }
    ForkLocks::parent();
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    ASSERT_EQ(status, 0);
  }
  stop.store(1);
  busy.join();
}

TEST(ForkLocks, AChildLeavesTheSectionsOfItsParent) {
  AckLine line;
  static_cast<void>(line.enter());
  ForkLocks::prepare();
  const pid_t child = fork();
  if (child == 0) {
    ForkLocks::child();
    _exit(line.running() ? 1 : 0);
  }
  ForkLocks::parent();
  int status = 0;
  waitpid(child, &status, 0);
  EXPECT_EQ(status, 0);
  EXPECT_TRUE(line.running());
  line.leave();
}

}  // namespace
}  // namespace stagetwo::sync

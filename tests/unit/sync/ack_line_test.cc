// SPDX-License-Identifier: Apache-2.0
// Ack lines with real threads: who is waited for, who is not, and what becomes of a thread's line
// when the thread dies. The races are in tests/sched/ack_line_test.cc.

#include "sync/ack_line.h"

#include <gtest/gtest.h>
#include <pthread.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <thread>

#include "base/sys.h"
#include "base/trace.h"
#include "sync/futex.h"
#include "sync/thread_sections.h"

namespace stagetwo::sync {
namespace {

struct World {
  AckSet set;
  AckLine line;
  World() { set.add(line); }
  ~World() { set.remove(line); }
};

TEST(AckLine, ALineOutsideIsNotWaitedFor) {
  World world;
  world.set.barrier();
  EXPECT_FALSE(world.line.running());
}

TEST(AckLine, EnterSaysThatSomethingWasRequestedMeanwhile) {
  World world;
  world.set.barrier();
  EXPECT_TRUE(world.line.enter());
  EXPECT_FALSE(world.line.poll());
  world.line.leave();
  EXPECT_FALSE(world.line.enter());
  world.line.leave();
}

TEST(AckLine, PollAcknowledgesOnce) {
  World world;
  EXPECT_FALSE(world.line.enter());
  world.set.bump_all();
  world.set.bump_all();
  EXPECT_TRUE(world.line.poll());
  EXPECT_FALSE(world.line.poll());
  world.line.leave();
}

TEST(AckLine, ABarrierWaitsForThePollOfARunningLine) {
  World world;
  Atomic<u32> phase{0};
  std::thread owner([&] {
    static_cast<void>(world.line.enter());
    phase.store(1);
    while (!world.line.pending()) yield_thread();
    phase.store(2);
    EXPECT_TRUE(world.line.poll());
    while (phase.load() == 2) yield_thread();
    world.line.leave();
  });
  while (phase.load() == 0) yield_thread();
  world.set.barrier();
  EXPECT_EQ(phase.load(), 2u);
  phase.store(3);
  owner.join();
}

TEST(AckLine, ALineThatLeavesIsNoLongerWaitedFor) {
  World world;
  Atomic<u32> phase{0};
  std::thread owner([&] {
    static_cast<void>(world.line.enter());
    phase.store(1);
    while (!world.line.pending()) yield_thread();
    world.line.leave();
  });
  while (phase.load() == 0) yield_thread();
  world.set.barrier();
  owner.join();
}

TEST(AckLine, TheOwnLineCountsAsOutsideWhileItsThreadWaits) {
  World world;
  static_cast<void>(world.line.enter());
  world.set.barrier();
  EXPECT_TRUE(world.line.running());
  EXPECT_TRUE(world.line.poll());
  world.line.leave();
}

TEST(AckLine, AKickReachesTheNextPoll) {
  World world;
  static_cast<void>(world.line.enter());
  world.set.kick(world.line);
  EXPECT_TRUE(world.line.poll());
  world.line.leave();
}

TEST(AckLine, SectionsOfTwoLinesNest) {
  World outer;
  World inner;
  {
    const RunningSection a(outer.line);
    const RunningSection b(inner.line);
    EXPECT_TRUE(outer.line.running());
    EXPECT_TRUE(inner.line.running());
    EXPECT_EQ(inner.line.debug_owner(), sys::gettid());
  }
  EXPECT_FALSE(outer.line.running());
}

TEST(AckLine, AnEndedThreadFreesItsLine) {
  World world;
  std::thread([&] { static_cast<void>(world.line.enter()); }).join();
  EXPECT_FALSE(world.line.running());
  world.set.barrier();
}

void* exit_inside(void* argument) {
  static_cast<void>(static_cast<World*>(argument)->line.enter());
  pthread_exit(nullptr);
}
TEST(AckLine, AThreadThatExitsInsideFreesItsLine) {
  World world;
  pthread_t thread;
  ASSERT_EQ(pthread_create(&thread, nullptr, exit_inside, &world), 0);
  pthread_join(thread, nullptr);
  EXPECT_FALSE(world.line.running());
}

// The bare system call runs no destructor: the waiter has to look.
struct Gone {
  World world;
  Atomic<u32> entered{0};
};
void* end_without_a_word(void* argument) {
  auto* gone = static_cast<Gone*>(argument);
  static_cast<void>(gone->world.line.enter());
  gone->entered.store(1);
  sys::call(SYS_exit, 0);
  return nullptr;
}
TEST(AckLine, AWaiterFindsAnOwnerThatIsGone) {
  // In a child: the thread's stack and descriptor are lost for good.
  const pid_t child = fork();
  if (child == 0) {
    Gone gone;
    pthread_t thread;
    if (pthread_create(&thread, nullptr, end_without_a_word, &gone) != 0) _exit(2);
    while (gone.entered.load() == 0) yield_thread();
    const u64 start = sys::monotonic_ns();
    gone.world.set.barrier();
    const u64 waited = sys::monotonic_ns() - start;
    _exit(!gone.world.line.running() && waited < 5'000'000'000u ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
}

TEST(AckSet, RemovedLinesAreNotAsked) {
  AckSet set;
  AckLine a, b;
  set.add(a);
  set.add(b);
  EXPECT_EQ(set.debug_line_count(), 2u);
  set.remove(a);
  set.bump_all();
  EXPECT_FALSE(a.pending());
  EXPECT_TRUE(b.pending());
  set.remove(b);
  set.barrier();
}

TEST(AckSet, PassedIsTheSlowestLine) {
  AckSet set;
  AckLine idle, running;
  EXPECT_EQ(set.passed(), 0u);
  const u64 first = set.bump_all();
  EXPECT_EQ(set.passed(), first) << "no line, nobody to wait for";
  set.add(idle);
  set.add(running);
  static_cast<void>(running.enter());
  const u64 second = set.bump_all();
  EXPECT_EQ(set.passed(), first);
  static_cast<void>(running.poll());
  EXPECT_EQ(set.passed(), second);
  EXPECT_GT(set.next_ticket(), second);
  running.leave();
  set.remove(idle);
  set.remove(running);
}

TEST(AckLine, IsOneHotLineAndOneCold) {
  EXPECT_EQ(sizeof(AckLine), 128u);
  EXPECT_EQ(alignof(AckLine), 64u);
}

}  // namespace
}  // namespace stagetwo::sync

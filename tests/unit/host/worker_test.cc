// SPDX-License-Identifier: Apache-2.0
// Goal: the worker's invariants I1 to I4. Method: items that count their turns; /proc/self/task
// says which threads there are.
#include "host/worker.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>

#include "host/access.h"
#include "host/backstop.h"
#include "host/process.h"

namespace stagetwo::host {
namespace {

using namespace std::chrono_literals;

class Counter final : public WorkItem {
 public:
  explicit Counter(u64 period_ms) : period(period_ms * 1'000'000) {}
  void turn() override {
    thread_of_turn = gettid();
    sigset_t mask;
    pthread_sigmask(SIG_SETMASK, nullptr, &mask);
    blocked = sigismember(&mask, SIGTERM) == 1 && sigismember(&mask, SIGSEGV) == 0;
    if (length.count() != 0) std::this_thread::sleep_for(length);
    ++turns;
  }
  u64 period_ns() override { return period; }

  std::atomic<u64> period;
  std::chrono::milliseconds length{0};
  std::atomic<int> turns{0};
  std::atomic<pid_t> thread_of_turn{0};
  std::atomic<bool> blocked{false};
};

// Copies memory that has lost its rights, as what reclaim takes may at any moment.
class Copier final : public WorkItem {
 public:
  void turn() override {
    u8 byte = 0;
    copied = static_cast<int>(copy_from(&byte, Hva(reinterpret_cast<u64>(from)), 1));
    ++turns;
  }
  u64 period_ns() override { return 1'000'000; }

  void* from = nullptr;
  std::atomic<int> copied{-1};
  std::atomic<int> turns{0};
};

size_t threads() {
  const std::filesystem::directory_iterator tasks("/proc/self/task");
  return static_cast<size_t>(std::distance(begin(tasks), end(tasks)));
}

template <typename F>
bool soon(F&& condition) {
  for (int i = 0; i < 500; ++i) {
    if (condition()) return true;
    std::this_thread::sleep_for(10ms);
  }
  return false;
}

TEST(Worker, ExistsOnlyWhileThereIsWork) {
  std::thread([] {}).join();  // a sanitizer makes a thread of its own beside the first
  const size_t before = threads();
  EXPECT_FALSE(worker_runs());
  Counter item(5);
  add_work(&item);
  EXPECT_EQ(before + 1, threads());
  Counter second(5);
  add_work(&second);
  EXPECT_EQ(before + 1, threads()) << "one thread, however many items";
  remove_work(&item);
  EXPECT_TRUE(worker_runs());
  remove_work(&second);
  EXPECT_TRUE(soon([&] { return threads() == before; }));
  EXPECT_FALSE(worker_runs());
}

TEST(Worker, TakesATurnEachPeriodInAThreadOfItsOwn) {
  Counter item(5);
  add_work(&item);
  EXPECT_TRUE(soon([&] { return item.turns >= 3; }));
  EXPECT_NE(gettid(), item.thread_of_turn);
  EXPECT_TRUE(item.blocked) << "no signal of the client may land there, but faults of its own";
  const std::string path = "/proc/self/task/" + std::to_string(item.thread_of_turn) + "/comm";
  std::string name;
  std::ifstream(path) >> name;
  EXPECT_EQ("stagetwo", name);
  remove_work(&item);
}

TEST(Worker, ReadsThePeriodAnewWhenKicked) {
  Counter item(3'600'000);
  add_work(&item);
  std::this_thread::sleep_for(30ms);
  EXPECT_EQ(0, item.turns);
  item.period = 1'000'000;
  kick_worker();
  EXPECT_TRUE(soon([&] { return item.turns >= 2; }));
  item.period = sync::kNoTimeout;
  kick_worker();
  std::this_thread::sleep_for(10ms);
  const int before = item.turns;
  kick_worker(true);
  EXPECT_TRUE(soon([&] { return item.turns == before + 1; }));
  remove_work(&item);
}

TEST(Worker, RunsNoTurnAfterRemoval) {
  for (int i = 0; i < 20; ++i) {
    Counter item(1);
    item.length = 3ms;
    add_work(&item);
    ASSERT_TRUE(soon([&] { return item.thread_of_turn != 0; }));
    remove_work(&item);
    const int turns = item.turns;
    EXPECT_GE(turns, 1) << "the removal waits for the turn that runs";
    std::this_thread::sleep_for(5ms);
    EXPECT_EQ(turns, item.turns);
  }
}

TEST(Worker, OfAChildIsItsOwn) {
  Counter item(1);
  add_work(&item);
  ASSERT_TRUE(soon([&] { return item.turns > 0; }));
  const pid_t child = fork();
  if (child == 0) {
    after_fork_child();
    if (threads() != 1 || worker_runs()) _exit(1);
    remove_work(&item);  // of the parent: left alone
    const int turns = item.turns;
    Counter own(1);
    add_work(&own);
    if (!soon([&] { return own.turns >= 2; })) _exit(2);
    if (item.turns != turns) _exit(3);
    remove_work(&own);
    if (!soon([] { return threads() == 1; })) _exit(4);
    _exit(0);
  }
  int status = -1;
  ASSERT_EQ(child, waitpid(child, &status, 0));
  EXPECT_EQ(0, status);
  remove_work(&item);
}

TEST(Worker, ThatCannotBeMadeLeavesTheWorkToWhoPassesNext) {
  ASSERT_TRUE(soon([] { return !worker_runs(); })) << "of the test before";
  debug_without_worker(true);
  Counter item(20);
  add_work(&item);
  EXPECT_FALSE(worker_runs());
  work_without_thread();
  EXPECT_EQ(0, item.turns) << "not due yet";
  std::this_thread::sleep_for(25ms);
  work_without_thread();
  EXPECT_EQ(1, item.turns);
  EXPECT_EQ(gettid(), item.thread_of_turn);
  debug_without_worker(false);
  Counter second(5);
  add_work(&second);
  EXPECT_TRUE(soon([&] { return item.turns >= 2 && second.turns >= 1; })) << "tried again";
  remove_work(&second);
  remove_work(&item);
}

TEST(Worker, DoesNotKeepTheProcessFromEnding) {
  EXPECT_EXIT(
      {
        static Counter item(1);
        item.length = 50ms;
        add_work(&item);
        std::this_thread::sleep_for(10ms);
        exit(0);
      },
      testing::ExitedWithCode(0), "");
}

TEST(Worker, TouchesWhatHasNoRightsAndGetsAnAnswer) {
  ASSERT_TRUE(backstop::install());
  Copier item;
  item.from = mmap(nullptr, kPageSize, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(item.from, MAP_FAILED);
  add_work(&item);
  EXPECT_TRUE(soon([&] { return item.turns > 1; }));
  remove_work(&item);
  EXPECT_EQ(item.copied, 0);
  munmap(item.from, kPageSize);
}

}  // namespace
}  // namespace stagetwo::host

// SPDX-License-Identifier: Apache-2.0
// Goal: who pays with nothing left makes room himself, or waits for who does, not for long; he is
// never refused for ever; without a limit nobody pays.
#include "host/memory_budget.h"

#include <gtest/gtest.h>

#include <atomic>
#include <thread>
#include <vector>

#include "host/worker.h"
#include "sync/futex.h"

namespace stagetwo::host {
namespace {

// Grants `pages` each turn.
class Relief final : public WorkItem {
 public:
  explicit Relief(s64 pages, s64 reserve = 0) : pages_(pages) {
    add_work(this);
    budget::limit(this, reserve);
  }
  ~Relief() {
    budget::clear();
    remove_work(this);
  }
  void turn() override {
    ++turns;
    budget::grant(pages_);
  }
  u64 period_ns() override { return sync::kNoTimeout; }
  std::atomic<int> turns{0};

 private:
  const s64 pages_;
};

TEST(MemoryBudget, WithoutALimitNobodyPays) {
  budget::grant(5);
  budget::pay(3);
  EXPECT_EQ(5, budget::left());
}

template <typename F>
bool soon(F&& is_so) {
  for (int i = 0; i < 1000 && !is_so(); ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return is_so();
}

TEST(MemoryBudget, WhoFindsNothingLeftMakesRoomHimself) {
  Relief relief(10);
  budget::grant(2);
  budget::pay(1);
  EXPECT_EQ(0, relief.turns);
  EXPECT_EQ(1, budget::left());
  budget::pay(1);
  budget::pay(1);
  EXPECT_GT(relief.turns, 0);
  EXPECT_GT(budget::left(), 0);
}

// A turn may last, and a store is not to.
class SlowRelief final : public WorkItem {
 public:
  SlowRelief() {
    add_work(this);
    budget::limit(this);
  }
  ~SlowRelief() {
    over = true;
    budget::clear();
    remove_work(this);
  }
  void turn() override {
    began = true;
    while (!over) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  u64 period_ns() override { return sync::kNoTimeout; }
  std::atomic<bool> began{false}, over{false};
};

TEST(MemoryBudget, ATurnThatLastsIsNotWaitedFor) {
  SlowRelief relief;
  budget::grant(0);
  kick_worker(true);
  ASSERT_TRUE(soon([&] { return relief.began.load(); }));
  for (int i = 0; i < 20; ++i) budget::pay(1);
  EXPECT_EQ(-20, budget::left());
  EXPECT_FALSE(relief.over);
}

TEST(MemoryBudget, WhoIsDeepInDebtMakesRoomMoreThanOnce) {
  Relief relief(-10'000);
  budget::grant(-10'000);
  budget::pay(1);
  EXPECT_GT(relief.turns, 1);
}

TEST(MemoryBudget, WithoutAWorkerWhoPaysMakesRoomHimself) {
  ASSERT_TRUE(soon([] { return !worker_runs(); })) << "of the test before";
  debug_without_worker(true);
  {
    Relief relief(10);
    budget::grant(0);
    budget::pay(1);
    EXPECT_EQ(1, relief.turns);
  }
  debug_without_worker(false);
}

TEST(MemoryBudget, TheReserveIsForThoseWhoPayFirst) {
  Relief relief(4, 8);
  budget::grant(10);
  EXPECT_EQ(2, budget::spare());
  budget::owe(2);
  EXPECT_TRUE(soon([&] { return relief.turns == 1; })) << "only the reserve is left";
  EXPECT_EQ(-4, budget::spare());
  const int before = relief.turns;
  budget::pay(4);
  EXPECT_EQ(before, relief.turns) << "nobody had to make room";
  EXPECT_EQ(0, budget::left());
}

TEST(MemoryBudget, WhereNoRoomCanBeMadeAPaymentReturnsAllTheSame) {
  Relief relief(0);
  budget::grant(0);
  budget::pay(1);
  EXPECT_TRUE(soon([&] { return relief.turns > 0; }));
}

TEST(MemoryBudget, WhereNobodyCanMakeRoomADebtTakesNoTime) {
  Relief relief(0, 8);
  budget::grant(4);
  const u64 before = budget::waits();
  {
    const budget::NoRoom fork;
    for (int i = 0; i < 1000; ++i) budget::owe(1);
    EXPECT_EQ(before, budget::waits());
  }
  budget::owe(1);
  EXPECT_EQ(before + 1, budget::waits());
}

TEST(MemoryBudget, WhoMustNotWaitLeavesItToTheWorker) {
  Relief relief(10);
  budget::grant(1);
  budget::owe(1);
  EXPECT_TRUE(soon([&] { return relief.turns > 0; }));
}

TEST(MemoryBudget, ManyWhoPayAreAllLetGo) {
  Relief relief(3);
  budget::grant(0);
  std::vector<std::thread> guests;
  for (int t = 0; t < 4; ++t) {
    guests.emplace_back([] {
      for (int i = 0; i < 200; ++i) budget::pay(1);
    });
  }
  for (std::thread& guest : guests) guest.join();
  EXPECT_TRUE(soon([&] { return relief.turns > 0; }));
}

TEST(MemoryBudget, AStoreThatReachesForItsPageIsWaitedFor) {
  std::atomic<bool> reaches{false}, has_it{false}, may_go{false};
  const auto store = [&] {
    const budget::Reach reach(1);
    reaches = true;
    while (!may_go) std::this_thread::yield();
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
    has_it = true;
  };
  {
    std::thread guest(store);
    EXPECT_TRUE(soon([&] { return reaches.load(); }));
    budget::let_stores_land();
    EXPECT_FALSE(has_it) << "nothing is limited, so nothing holds it up";
    may_go = true;
    guest.join();
  }
  Relief relief(10);
  reaches = has_it = false;
  std::thread guest(store);
  EXPECT_TRUE(soon([&] { return reaches.load(); }));
  budget::let_stores_land();
  EXPECT_TRUE(has_it);
  guest.join();
}

TEST(MemoryBudget, AStoreThatNeverGetsItsPageIsNotWaitedForForEver) {
  Relief relief(10);
  const budget::Reach reach(1);
  std::thread([] { budget::let_stores_land(); }).join();
}

// The item may die when clear() and remove_work() have returned.
TEST(MemoryBudget, NoTurnRunsAfterTheLimitIsGone) {
  for (int round = 0; round < 50; ++round) {
    std::atomic<bool> stop{false};
    std::thread guest([&] {
      while (!stop) budget::pay(1);
    });
    {
      Relief relief(0);
    }
    stop = true;
    guest.join();
  }
}

}  // namespace
}  // namespace stagetwo::host

// SPDX-License-Identifier: Apache-2.0
// Goal: who pays with nothing left makes room himself or waits for who does, and is never refused
// for ever; without a limit nobody pays.
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
  explicit Relief(s64 pages) : pages_(pages) {
    add_work(this);
    budget::limit(this);
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

TEST(MemoryBudget, WhereNoRoomCanBeMadeAPaymentReturnsAllTheSame) {
  Relief relief(0);
  budget::grant(0);
  budget::pay(1);
  EXPECT_GT(relief.turns, 0);
}

TEST(MemoryBudget, WhoMustNotWaitLeavesItToTheWorker) {
  Relief relief(10);
  budget::grant(1);
  budget::owe(1);
  for (int i = 0; i < 1000 && relief.turns == 0; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  EXPECT_GT(relief.turns, 0);
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
  EXPECT_GE(relief.turns, 1);
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

// SPDX-License-Identifier: Apache-2.0
// Goal: what comes and goes is counted in each account that has the page, and who reaches for a
// page of one in which nothing is left makes room, or waits, as for the whole.
#include "host/budget_accounts.h"

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <atomic>

#include "host/memory_budget.h"
#include "host/worker.h"

namespace stagetwo::host {
namespace {

HvaRange pages(u64 first, u64 count) {
  return HvaRange(Hva(first << kPageShift), count << kPageShift);
}

void reach(Hva at) {
  const budget::Reach one(1, at);
}

// Each turn gives account 0 room for so many pages.
class AccountRelief final : public WorkItem {
 public:
  explicit AccountRelief(s64 room) : room_(room) {
    add_work(this);
    budget::grant(budget::kNoEnd);
    budget::limit(this);
  }
  ~AccountRelief() {
    budget::clear();
    remove_work(this);
  }
  void turn() override {
    ++turns;
    budget::set_room(0, room_, 0);
    budget::wake();
  }
  u64 period_ns() override { return sync::kNoTimeout; }
  std::atomic<int> turns{0};

 private:
  const s64 room_;
};

class BudgetAccounts : public testing::Test {
 protected:
  ~BudgetAccounts() override { budget::clear_accounts(); }
  static void make(std::initializer_list<budget::AccountRange> wanted, u32 count) {
    Vec<budget::AccountRange> ranges;
    for (const budget::AccountRange& one : wanted) ASSERT_TRUE(ranges.push_back(one));
    ASSERT_TRUE(budget::set_accounts(std::move(ranges), count));
  }
};

TEST_F(BudgetAccounts, APageCountsInAllThatHaveIt) {
  make({{pages(200, 10), 2}, {pages(100, 100), 0}, {pages(150, 10), 1}, {pages(150, 10), 2}}, 3);
  budget::count_in(pages(155, 1), 1);
  budget::count_in(pages(195, 10), 10);
  budget::count_in(pages(99, 1), 1);
  budget::count_in(pages(210, 1), 1);
  EXPECT_EQ(6, budget::pages_of(0)) << "one, and the five of the run that it has";
  EXPECT_EQ(1, budget::pages_of(1));
  EXPECT_EQ(6, budget::pages_of(2));
  budget::count_in(pages(155, 1), -1);
  EXPECT_EQ(5, budget::pages_of(0));
  EXPECT_EQ(0, budget::pages_of(1));
  EXPECT_EQ(5, budget::pages_of(2));
  budget::count_in(pages(150, 10), -10);
  EXPECT_EQ(0, budget::pages_of(1)) << "never less than none";
}

TEST_F(BudgetAccounts, TheShortestOfThoseThatHaveAPageCounts) {
  make({{pages(100, 100), 0}, {pages(150, 10), 1}}, 2);
  EXPECT_EQ(budget::kNoEnd, budget::left_at(Hva(150 << kPageShift)).pages);
  budget::set_room(0, 20, 4);
  budget::set_room(1, 10, 8);
  budget::set_pages(1, 7);
  EXPECT_EQ(3, budget::left_at(Hva(150 << kPageShift)).pages);
  EXPECT_EQ(-5, budget::left_at(Hva(150 << kPageShift)).spare);
  EXPECT_EQ(20, budget::left_at(Hva(149 << kPageShift)).pages);
  EXPECT_EQ(16, budget::left_at(Hva(160 << kPageShift)).spare);
  EXPECT_EQ(budget::kNoEnd, budget::left_at(Hva(200 << kPageShift)).pages);
}

TEST_F(BudgetAccounts, WhoReachesWhereNothingIsLeftMakesRoom) {
  make({{pages(100, 10), 0}}, 1);
  AccountRelief relief(5);
  budget::set_room(0, 0, 0);
  reach(Hva(110 << kPageShift));
  EXPECT_EQ(0, relief.turns) << "nobody's page";
  reach(Hva(109 << kPageShift));
  EXPECT_GT(relief.turns, 0);
  EXPECT_GT(budget::left_at(Hva(109 << kPageShift)).pages, 0);
}

// A page that nobody else tells of.
TEST_F(BudgetAccounts, WhoReachesCountsWhatTheKernelBrings) {
  void* const at =
      ::mmap(nullptr, 2 * kPageSize, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(MAP_FAILED, at);
  const Hva start(reinterpret_cast<u64>(at));
  make({{HvaRange(start, 2 * kPageSize), 0}}, 1);
  AccountRelief relief(5);
  budget::set_room(0, 5, 0);
  static_cast<volatile u8*>(at)[0] = 1;
  reach(start + 8);
  EXPECT_EQ(0, budget::pages_of(0));
  reach(start + kPageSize + 8);
  EXPECT_EQ(1, budget::pages_of(0));
  ::munmap(at, 2 * kPageSize);
}

TEST_F(BudgetAccounts, WhoMustNotWaitForItIsSlowerWhereNothingIsSpare) {
  make({{pages(100, 10), 0}}, 1);
  AccountRelief relief(0);
  budget::set_room(0, 2, 1);
  const u64 before = budget::waits();
  budget::owe_for(pages(100, 1));
  EXPECT_EQ(1, budget::pages_of(0));
  EXPECT_EQ(before, budget::waits());
  budget::owe_for(pages(101, 1));
  budget::owe_for(pages(102, 1));
  EXPECT_EQ(3, budget::pages_of(0));
  EXPECT_GT(budget::waits(), before);
  const u64 then = budget::waits();
  budget::owe_for(pages(110, 1));
  EXPECT_EQ(then, budget::waits()) << "nobody's page";
}

}  // namespace
}  // namespace stagetwo::host

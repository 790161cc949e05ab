// SPDX-License-Identifier: Apache-2.0
// Goal: recovery happens when its period has passed, follows the policy of the moment, and costs a
// VM that splits nothing no thread.
#include "stage2/nx_recovery.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <thread>

#include "tests/support/tdp_world.h"

namespace stagetwo::test {
namespace {

using namespace std::chrono_literals;

std::atomic<bool> enabled{true};
std::atomic<u64> ratio{1};
std::atomic<u64> period_ms{20};

constexpr stage2::NxPolicy kPolicy = {[] { return enabled.load(); }, [] { return ratio.load(); },
                                      [] { return period_ms.load(); }};

struct NxRecovery : ::testing::Test {
  TdpWorld world{stage2::TdpPolicy{.nx_huge_pages = true}};
  MmuContext context{world.mmu};
  stage2::NxRecovery recovery{world.mmu, kPolicy};
  NxRecovery() {
    enabled = true;
    ratio = 1;
    period_ms = 20;
    world.add_slot(0, 512 * 4, kWorldHva);
  }

  void split(u64 page) {
    world.fault(context, page * 512, Access::kExec, 2);
    recovery.start();
  }
  bool recovered() {
    for (int i = 0; i < 300; ++i) {
      if (world.mmu.count_pages().nx_lpage_splits == 0) return true;
      std::this_thread::sleep_for(10ms);
    }
    return false;
  }
};

TEST_F(NxRecovery, HappensWhenThePeriodHasPassed) {
  EXPECT_FALSE(host::worker_runs());
  split(0);
  EXPECT_TRUE(host::worker_runs());
  EXPECT_TRUE(recovered());
  split(1);
  EXPECT_TRUE(recovered()) << "and again";
  recovery.stop();
  for (int i = 0; i < 300 && host::worker_runs(); ++i) std::this_thread::sleep_for(10ms);
  EXPECT_FALSE(host::worker_runs());
}

TEST_F(NxRecovery, WaitsForAnHourDividedByTheRatioWherePeriodIsZero) {
  period_ms = 0;
  ratio = 60;
  split(0);
  recovery.turn();
  EXPECT_EQ(1U, world.mmu.count_pages().nx_lpage_splits);
  EXPECT_GT(recovery.period_ns(), 0U);
}

TEST_F(NxRecovery, FollowsThePolicyOfTheMoment) {
  enabled = false;
  split(0);
  std::this_thread::sleep_for(60ms);
  EXPECT_EQ(1U, world.mmu.count_pages().nx_lpage_splits) << "off";
  enabled = true;
  ratio = 0;
  host::kick_worker();
  std::this_thread::sleep_for(60ms);
  EXPECT_EQ(1U, world.mmu.count_pages().nx_lpage_splits) << "none in a turn";
  ratio = 1;
  EXPECT_TRUE(recovered()) << "without a kick: seen within a second";
}

TEST_F(NxRecovery, IsDoneByWhoPassesWhereThereIsNoThread) {
  host::debug_without_worker(true);
  split(0);
  std::this_thread::sleep_for(25ms);
  host::work_without_thread();
  EXPECT_EQ(0U, world.mmu.count_pages().nx_lpage_splits);
  host::debug_without_worker(false);
}

}  // namespace
}  // namespace stagetwo::test

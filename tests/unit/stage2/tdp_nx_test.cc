// SPDX-License-Identifier: Apache-2.0
// Goal: under the NX policy a fetch makes a huge page small, recovery makes it possible again, and
// nothing else does either. Check 12 of the acceptance list is the last test.
#include <gtest/gtest.h>

#include "tests/support/tdp_world.h"

namespace stagetwo::test {
namespace {

struct TdpNx : ::testing::Test {
  TdpWorld world{stage2::TdpPolicy{.nx_huge_pages = true}};
  MmuContext context{world.mmu};
  TdpNx() { world.add_slot(0, 512 * 16, kWorldHva); }
  ~TdpNx() override { world.mmu.check_world(); }

  FaultOutcome touch(u64 gfn, Access access) { return world.fault(context, gfn, access, 2); }
  u64 splits() { return world.mmu.count_pages().nx_lpage_splits; }
  u64 huge() { return world.mmu.count_pages().pages_2m; }
};

TEST_F(TdpNx, AHugePageIsNotExecutable) {
  ASSERT_EQ(touch(0, Access::kRead), FaultOutcome::kFixed);
  EXPECT_EQ(1U, huge());
  EXPECT_FALSE(world.walk(context, 0).executable);
  EXPECT_EQ(Walk::Kind::kMiss, world.walk(context, 0, Access::kExec).kind);
}

TEST_F(TdpNx, AFetchSplitsItAndItsOtherPagesStayMapped) {
  ASSERT_EQ(touch(0, Access::kRead), FaultOutcome::kFixed);
  touch(3, Access::kExec);
  EXPECT_EQ(Walk::Kind::kHit, world.walk(context, 3, Access::kExec).kind);
  EXPECT_EQ(Walk::Kind::kHit, world.walk(context, 100, Access::kRead).kind);
  EXPECT_EQ(1U, splits());
  EXPECT_EQ(0U, huge());
}

TEST_F(TdpNx, ADataAccessDoesNotMakeItHugeAgain) {
  touch(3, Access::kExec);
  EXPECT_EQ(1U, splits()) << "also where nothing was mapped before";
  touch(4, Access::kRead);
  EXPECT_EQ(0U, huge());
  EXPECT_EQ(1U, splits());
}

TEST_F(TdpNx, RecoveryZapsTheOldestFirstOneInRatio) {
  for (u64 page = 0; page < 10; ++page) touch(page * 512, Access::kExec);
  EXPECT_EQ(10U, splits());
  world.mmu.recover_nx(0);
  EXPECT_EQ(10U, splits()) << "ratio 0: recovery is off";
  world.mmu.recover_nx(60);
  EXPECT_EQ(9U, splits()) << "rounded up";
  world.mmu.recover_nx(3);
  EXPECT_EQ(6U, splits());
  for (u64 page = 0; page < 10; ++page) {
    const bool there = world.walk(context, page * 512).kind == Walk::Kind::kHit;
    EXPECT_EQ(page >= 4, there) << page;
  }
  world.mmu.recover_nx(1);
  EXPECT_EQ(0U, splits());
  touch(0, Access::kRead);
  EXPECT_EQ(1U, huge()) << "huge again at the next data access";
}

TEST_F(TdpNx, RecoveryFlushesBeforeTablesAreReused) {
  touch(0, Access::kExec);
  const u64 before = world.grace_periods.load();
  world.mmu.recover_nx(1);
  EXPECT_EQ(before + 1, world.grace_periods.load());
  world.mmu.recover_nx(1);
  EXPECT_EQ(before + 1, world.grace_periods.load()) << "nothing was taken";
}

TEST_F(TdpNx, TablesOfALoggedSlotAreForgottenNotZapped) {
  touch(0, Access::kExec);
  world.slots[0].flags |= stage2::kLogDirtyPages;
  world.mmu.recover_nx(1);
  EXPECT_EQ(0U, splits());
  EXPECT_EQ(Walk::Kind::kHit, world.walk(context, 0, Access::kExec).kind) << "still mapped";
  world.slots[0].flags = 0;
}

TEST_F(TdpNx, APageThatGoesIsNoSplitAnyMore) {
  touch(0, Access::kExec);
  world.zap(0, 512);
  EXPECT_EQ(0U, splits());
  world.mmu.recover_nx(1);
}

TEST_F(TdpNx, WithoutThePolicyAFetchMapsHuge) {
  EXPECT_TRUE(world.mmu.set_nx_huge_pages(false));
  EXPECT_FALSE(world.mmu.set_nx_huge_pages(false)) << "says whether it changed";
  world.zap_all();
  touch(0, Access::kExec);
  EXPECT_EQ(1U, huge());
  EXPECT_EQ(0U, splits());
  EXPECT_EQ(Walk::Kind::kHit, world.walk(context, 5, Access::kExec).kind);
  EXPECT_TRUE(world.mmu.set_nx_huge_pages(true));
  world.zap_all();
  touch(0, Access::kRead);
  EXPECT_FALSE(world.walk(context, 0).executable);
}

// Reads map two huge pages, fetches make them and a third small, recovery gives all back.
TEST_F(TdpNx, SplitsAndRecoveryAreWhatTheStatisticsSay) {
  const auto expect = [&](u64 pages_2m, u64 nx_splits) {
    EXPECT_EQ(pages_2m, huge());
    EXPECT_EQ(nx_splits, splits());
  };
  touch(0, Access::kRead);
  expect(1, 0);
  touch(512, Access::kRead);
  expect(2, 0);
  touch(0, Access::kExec);
  expect(1, 1);
  touch(1024, Access::kExec);
  expect(1, 2);
  world.walk(context, 0);
  expect(1, 2);
  world.mmu.recover_nx(1);
  expect(1, 0);
  touch(1024, Access::kRead);
  expect(2, 0);
}

}  // namespace
}  // namespace stagetwo::test

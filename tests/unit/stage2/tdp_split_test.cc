// SPDX-License-Identifier: Apache-2.0
// Splitting large entries ahead of need, and letting them come back.
#include <gtest/gtest.h>

#include "base/failpoint.h"
#include "tests/support/tdp_world.h"

namespace stagetwo::test {
namespace {

constexpr u64 kGiB = 262144;  // in frames

struct TdpSplit : ::testing::Test {
  TdpWorld world;
  MmuContext context{world.mmu};
  TdpSplit() { world.add_slot(0, 4 * kGiB, kWorldHva); }
  ~TdpSplit() override { world.mmu.check_world(); }
  void split(u64 gfn, u64 frames, unsigned level) {
    world.mmu.try_split_huge(world.slots[0], GfnRange(Gfn(gfn), frames), level);
  }
};

TEST_F(TdpSplit, AGigabyteBecomesEqualSmallerEntriesWithoutAFlush) {
  ASSERT_EQ(world.fault(context, kGiB + 7, Access::kWrite, 3), FaultOutcome::kFixed);
  const u64 flushes = world.flushes.load();
  split(kGiB, kGiB, 2);
  EXPECT_EQ(world.mmu.count_pages().pages_1g, 0U);
  EXPECT_EQ(world.mmu.count_pages().pages_2m, 512U);
  split(kGiB, 1024, 1);
  EXPECT_EQ(world.mmu.count_pages().pages_2m, 510U);
  EXPECT_EQ(world.mmu.count_pages().pages_4k, 1024U);
  EXPECT_EQ(world.flushes.load(), flushes);
  for (u64 gfn : {kGiB, kGiB + 1023, kGiB + 1024, 2 * kGiB - 1}) {
    const Walk walk = world.walk(context, gfn, Access::kWrite);
    EXPECT_EQ(walk.kind, Walk::Kind::kHit);
    EXPECT_EQ(walk.page.raw(), kWorldHva + gfn * kPageSize);
  }
}

TEST_F(TdpSplit, ChildrenInheritWhatTheLargeEntryRemembered) {
  ASSERT_EQ(world.fault(context, 512, Access::kWrite, 2), FaultOutcome::kFixed);
  const Word large = TdpTestAccess::find(world.mmu, context, Gfn(512), 2).word;
  split(512, 512, 1);
  const Word small = TdpTestAccess::find(world.mmu, context, Gfn(600)).word;
  EXPECT_EQ(Format::attributes(small), Format::attributes(large));
}

TEST_F(TdpSplit, StopsWhereThereIsNoMemory) {
  ASSERT_EQ(world.fault(context, 512, Access::kWrite, 2), FaultOutcome::kFixed);
  failpoint::arm("stage2.table_page", 1, failpoint::kForever);
  split(512, 512, 1);
  failpoint::disarm();
  EXPECT_EQ(world.mmu.count_pages().pages_2m, 1U);
}

TEST_F(TdpSplit, RecoveryLetsTheNextFaultMapLarge) {
  ASSERT_EQ(world.fault(context, 512, Access::kWrite, 2), FaultOutcome::kFixed);
  split(0, 4 * kGiB, 1);
  Gfn at(0);
  EXPECT_TRUE(world.mmu.find_small(world.slots[0], &at, world.slots[0].gfns().end()));
  EXPECT_EQ(at.raw(), 512U);
  const u64 tables = world.mmu.tables().live();
  world.mmu.recover_huge(world.slots[0], GfnRange(Gfn(512), 512), 2);
  EXPECT_EQ(world.mmu.tables().live(), tables - 1);
  EXPECT_EQ(world.walk(context, 600).kind, Walk::Kind::kMiss);
  EXPECT_FALSE(world.mmu.find_small(world.slots[0], &at, world.slots[0].gfns().end()));
  EXPECT_EQ(world.fault(context, 600, Access::kWrite, 2), FaultOutcome::kFixed);
  EXPECT_EQ(world.mmu.count_pages().pages_2m, 1U);
}

TEST_F(TdpSplit, RecoveryLeavesWhatMayNotBeLarge) {
  ASSERT_EQ(world.fault(context, 512, Access::kWrite), FaultOutcome::kFixed);
  world.mixed = true;
  world.mmu.recover_huge(world.slots[0], GfnRange(Gfn(512), 512), 2);
  world.mixed = false;
  world.mmu.recover_huge(world.slots[0], GfnRange(Gfn(512), 512), 1);
  EXPECT_EQ(world.mmu.count_pages().pages_4k, 1U);
}

}  // namespace
}  // namespace stagetwo::test

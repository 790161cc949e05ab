// SPDX-License-Identifier: Apache-2.0
// The world checker finds what it is there to find, and the counts are those of a walk.
#include <gtest/gtest.h>

#include <thread>

#include "base/trace.h"
#include "tests/support/tdp_world.h"

namespace stagetwo::test {
namespace {

constexpr u64 kGiB = 262144;  // in frames

struct TdpAudit : ::testing::Test {
  TdpWorld world;
  MmuContext context{world.mmu};
  TdpAudit() {
    GTEST_FLAG_SET(death_test_style, "threadsafe");
    world.add_slot(0, 4 * kGiB, kWorldHva);
    EXPECT_EQ(world.fault(context, 5, Access::kWrite), FaultOutcome::kFixed);
    EXPECT_EQ(world.fault(context, 512, Access::kWrite, 2), FaultOutcome::kFixed);
    EXPECT_EQ(world.fault(context, kGiB, Access::kWrite, 3), FaultOutcome::kFixed);
  }
  // The world with another word in the entry of `level` that covers gfn.
  template <typename F>
  void with(u64 gfn, unsigned level, F&& change) {
    auto found = TdpTestAccess::find(world.mmu, context, Gfn(gfn), level);
    found.entry->store(change(found.word));
    world.mmu.check_world();
  }
};
using TdpAuditDeathTest = TdpAudit;

TEST_F(TdpAudit, ASoundWorldPassesAndIsCounted) {
  world.mmu.check_world();
  const auto counts = world.mmu.count_pages();
  EXPECT_EQ(counts.pages_4k, 1U);
  EXPECT_EQ(counts.pages_2m, 1U);
  EXPECT_EQ(counts.pages_1g, 1U);
  EXPECT_EQ(counts.tables, 4U);
}
// A statistic of a big VM walks for long; who wants the lock alone need not wait for its end.
TEST_F(TdpAudit, ACountLetsAChangeThrough) {
  world.add_slot(8 * kGiB, 16 * kGiB, kWorldHva + (16 * kGiB << kPageShift));
  for (u64 gfn = 8 * kGiB; gfn < 24 * kGiB; gfn += kGiB) {
    ASSERT_EQ(world.fault(context, gfn, Access::kWrite, 3), FaultOutcome::kFixed);
  }
  world.mmu.try_split_huge(world.slots[1], world.slots[1].gfns(), 1);
  trace::reset_marks();
  sync::Atomic<bool> stop{false};
  std::thread counting([&] {
    while (!stop.load()) EXPECT_GE(world.mmu.count_pages().pages_4k, 16 * kGiB);
  });
  while (trace::mark_count("tdp_count_yields") < 3) {
    const sync::BigWriterGuard alone(TdpTestAccess::mmu_lock(world.mmu));
  }
  stop.store(true);
  counting.join();
}
TEST_F(TdpAuditDeathTest, ALeafOfAnotherPage) {
  EXPECT_DEATH(with(5, 1, [](Word w) { return w + kPageSize; }), "gfn_to_hva");
}
TEST_F(TdpAuditDeathTest, ALeafWithoutASlot) {
  EXPECT_DEATH(
      {
        world.slots.clear();
        world.mmu.check_world();
      },
      "slot != nullptr");
}
TEST_F(TdpAuditDeathTest, ARightTheSlotDoesNotHave) {
  EXPECT_DEATH(
      {
        world.slots[0].flags = stage2::kReadonly;
        world.mmu.check_world();
      },
      "is_host_writable");
}
TEST_F(TdpAuditDeathTest, AnIllegalTriple) {
  EXPECT_DEATH(with(5, 1, [](Word w) { return w & ~Format::kMmuWritable; }), "is_legal");
}
TEST_F(TdpAuditDeathTest, ASmallLeafWhereATableBelongs) {
  EXPECT_DEATH(with(5, 2,
                    [](Word) {
                      return Format::make_leaf(kWorldHva + kPageSize, 1, {.host_writable = true});
                    }),
               "is_legal");
}
TEST_F(TdpAuditDeathTest, AHugeWritableLeafWhileLogging) {
  EXPECT_DEATH(
      {
        world.slots[0].flags = stage2::kLogDirtyPages;
        world.mmu.check_world();
      },
      "slot->dirty");
}
TEST_F(TdpAuditDeathTest, AFrozenEntryThatWasForgotten) {
  EXPECT_DEATH(with(6, 1, [](Word) { return Format::kFrozen; }), "is_frozen");
}
TEST_F(TdpAuditDeathTest, ATableThatTwoEntriesShare) {
  const Word table = TdpTestAccess::find(world.mmu, context, Gfn(5), 2).word;
  EXPECT_DEATH(with(1024, 2, [table](Word) { return table; }), "check failed");
}
TEST_F(TdpAuditDeathTest, ATableThatNobodyLeadsTo) {
  EXPECT_DEATH(with(5, 2, [](Word) { return Format::kNonpresent; }), "marked");
}

}  // namespace
}  // namespace stagetwo::test

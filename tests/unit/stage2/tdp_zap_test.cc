// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <thread>

#include "base/trace.h"
#include "tests/support/tdp_world.h"

namespace stagetwo::test {
namespace {

constexpr u64 kGiB = 262144;  // in frames

struct TdpZap : ::testing::Test {
  TdpWorld world;
  MmuContext context{world.mmu};
  TdpZap() { world.add_slot(0, 8 * kGiB, kWorldHva); }
  ~TdpZap() override { world.mmu.check_world(); }
  void map(u64 first, u64 end, u64 step = 1, unsigned level = 1) {
    for (u64 gfn = first; gfn < end; gfn += step) {
      ASSERT_EQ(world.fault(context, gfn, Access::kWrite, level), FaultOutcome::kFixed);
    }
  }
};

TEST_F(TdpZap, TakesTheRangeAndNothingElse) {
  map(1000, 1100);
  world.zap(1010, 20);
  EXPECT_EQ(world.mmu.count_pages().pages_4k, 80U);
  EXPECT_EQ(world.walk(context, 1009).kind, Walk::Kind::kHit);
  EXPECT_EQ(world.walk(context, 1010).kind, Walk::Kind::kMiss);
  EXPECT_EQ(world.walk(context, 1029).kind, Walk::Kind::kMiss);
  EXPECT_EQ(world.walk(context, 1030).kind, Walk::Kind::kHit);
}

TEST_F(TdpZap, TakesAWholeHugeLeafForOneOfItsFrames) {
  map(512, 513, 1, 2);
  world.zap(700, 1);
  EXPECT_EQ(world.mmu.count_pages().pages_2m, 0U);
}

TEST_F(TdpZap, OwesAFlushOnlyWhereSomethingWas) {
  map(512, 520);
  pt::Gather removed;
  EXPECT_FALSE(world.mmu.zap_leafs(0, GfnRange(Gfn(5000), 10), &removed, false));
  EXPECT_FALSE(world.mmu.zap_leafs(1, GfnRange(Gfn(512), 8), &removed, false));
  EXPECT_TRUE(world.mmu.zap_leafs(0, GfnRange(Gfn(512), 8), &removed, false));
  world.mmu.flush_and_release(&removed);
}

TEST_F(TdpZap, GivesBackTheTablesOfARangeAfterAGracePeriod) {
  map(0, kGiB, 512);
  const u64 tables = world.mmu.count_pages().tables;
  const u64 live = world.mmu.tables().live();
  pt::Gather removed;
  EXPECT_TRUE(world.mmu.zap_leafs(0, GfnRange(Gfn(0), kGiB), &removed, false));
  EXPECT_EQ(removed.table_count(), 513U);
  EXPECT_EQ(world.mmu.count_pages().tables, tables - 513);
  EXPECT_EQ(world.mmu.tables().live(), live);
  world.mmu.flush_and_release(&removed);
  EXPECT_EQ(world.mmu.tables().live(), live - 513);
}

TEST_F(TdpZap, KeepsATableThatIsPartlyInTheRange) {
  map(0, 2048);
  world.zap(100, 1500);
  EXPECT_EQ(world.mmu.count_pages().pages_4k, 548U);
}

TEST_F(TdpZap, ReachesARootThatWasInvalidated) {
  map(5, 6);
  world.mmu.invalidate_all_roots();
  EXPECT_EQ(world.walk(context, 5).kind, Walk::Kind::kHit);  // until its next poll
  world.zap(5, 1);
  EXPECT_EQ(world.walk(context, 5).kind, Walk::Kind::kMiss);
  world.flush_tlbs();
  world.mmu.zap_invalidated_roots();
}

TEST_F(TdpZap, LeavesMmioEntriesToTheirGeneration) {
  EXPECT_EQ(world.fault(context, 9 * kGiB, Access::kRead), FaultOutcome::kMmio);
  world.zap(9 * kGiB, 1);
  EXPECT_EQ(world.walk(context, 9 * kGiB).kind, Walk::Kind::kMmio);
}

TEST_F(TdpZap, FreezesAnEntryUntilItIsFlushed) {
  map(512, 1024);
  const u64 flushes = world.flushes.load();
  pt::Gather removed;
  ASSERT_TRUE(
      TdpTestAccess::zap_frozen(world.mmu, *TdpTestAccess::root(context), Gfn(512), 2, &removed));
  EXPECT_EQ(world.flushes.load(), flushes + 1);
  EXPECT_EQ(removed.table_count(), 1U);
  world.mmu.flush_and_release(&removed);
  EXPECT_EQ(world.mmu.count_pages().pages_4k, 0U);
}

TEST_F(TdpZap, UnlinksOneTableByItsParentOnce) {
  map(512, 1024);
  TablePage* table = TablePage::of(TdpTestAccess::find(world.mmu, context, Gfn(512)).entry);
  pt::Gather removed;
  EXPECT_TRUE(TdpTestAccess::zap_table(world.mmu, *table, &removed));
  EXPECT_FALSE(TdpTestAccess::zap_table(world.mmu, *table, &removed));
  world.mmu.flush_and_release(&removed);
  EXPECT_EQ(world.mmu.count_pages().pages_4k, 0U);
}

// Faults are let in while a long zap runs, and it ends all the same.
TEST_F(TdpZap, YieldsToFaultsAndComesToItsEnd) {
  sync::Atomic<bool> stop{false};
  sync::Atomic<u64> faults{0};
  std::thread storm([&] {
    MmuContext mine(world.mmu);
    while (!stop.load(sync::kRelaxed)) {
      for (u64 gfn = 4 * kGiB; gfn < 4 * kGiB + 64; ++gfn) {
        static_cast<void>(world.fault(mine, gfn, Access::kWrite));
        faults.fetch_add(1, sync::kRelaxed);
      }
    }
  });
  while (faults.load(sync::kRelaxed) == 0) std::this_thread::yield();
  const u64 before = faults.load();
  // On one processor a round may pass without a fault beside it.
  const auto beside = [&] { return faults.load(sync::kRelaxed) != before; };
  for (int round = 0; round < 3 || (!beside() && round < 1000); ++round) {
    map(0, 40'000);
    // Ends in the middle of a table, so that its last entries are taken one by one.
    world.zap(1, 39'990, true);
    EXPECT_LE(world.mmu.count_pages().pages_4k, 75U);
    world.zap(0, 40'000, true);
  }
  stop.store(true);
  storm.join();
  EXPECT_TRUE(beside());
}

// A tebibyte of 2 MiB entries goes in pieces: faults elsewhere come in between them.
TEST_F(TdpZap, OfATebibyteLetsFaultsInAndLeavesNothing) {
  constexpr u64 kTebibyte = 1024 * kGiB;
  world.add_slot(kTebibyte, kTebibyte, kWorldHva + (16 * kGiB << kPageShift));
  sync::Atomic<bool> stop{false};
  sync::Atomic<u64> faults{0};
  std::thread storm([&] {
    MmuContext mine(world.mmu);
    for (u64 gfn = 0; !stop.load(sync::kRelaxed); gfn = (gfn + 1) % 64) {
      EXPECT_NE(world.fault(mine, gfn, Access::kWrite), FaultOutcome::kNoMemory);
      faults.fetch_add(1, sync::kRelaxed);
    }
  });
  while (faults.load(sync::kRelaxed) == 0) std::this_thread::yield();
  const u64 before = trace::mark_count("tdp_zap_yields");
  const auto yielded = [&] { return trace::mark_count("tdp_zap_yields") != before; };
  // A zap is some milliseconds; on a busy machine the storm may sleep through one.
  for (int round = 0; round == 0 || (!yielded() && round < 200); ++round) {
    map(kTebibyte, 2 * kTebibyte, 512, 2);
    EXPECT_EQ(world.mmu.count_pages().pages_2m, kTebibyte / 512);
    world.zap(kTebibyte, kTebibyte, true);
    EXPECT_EQ(world.mmu.count_pages().pages_2m, 0U);
  }
  stop.store(true);
  storm.join();
  EXPECT_TRUE(yielded());
}

// Two threads map the same frames while a third takes them away; whatever is left is sound.
TEST_F(TdpZap, MapAndZapRaceWithoutHarm) {
  ASSERT_TRUE(world.mmu.load_root(context, 0));
  sync::Atomic<bool> stop{false};
  sync::Atomic<u64> faults{0};
  std::thread mappers[2];
  for (int me = 0; me < 2; ++me) {
    mappers[me] = std::thread([&, me] {
      MmuContext mine(world.mmu);
      for (u64 i = 0; !stop.load(sync::kRelaxed); ++i) {
        const u64 gfn = 512 * (i % 5) + i % 11;
        faults.fetch_add(1, sync::kRelaxed);
        static_cast<void>(
            world.fault(mine, gfn, Access::kWrite, (i + static_cast<u64>(me)) % 7 == 0 ? 2 : 1));
      }
    });
  }
  for (int round = 0; round < 2000 || (round < 50'000 && faults.load() < 20'000); ++round) {
    const u64 first = static_cast<u64>(round % 4) * 512;
    if (round % 3 == 0) {
      pt::Gather removed;
      static_cast<void>(TdpTestAccess::zap_frozen(world.mmu, *TdpTestAccess::root(context),
                                                  Gfn(first), 2, &removed));
      world.mmu.flush_and_release(&removed);
    } else {
      world.zap(first + static_cast<u64>(round % 2), 600);
    }
  }
  stop.store(true);
  for (std::thread& mapper : mappers) mapper.join();
}

}  // namespace
}  // namespace stagetwo::test

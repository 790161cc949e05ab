// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <thread>

#include "base/alloc.h"
#include "base/failpoint.h"
#include "sync/futex.h"
#include "tests/support/tdp_world.h"

namespace stagetwo::test {
namespace {

constexpr u64 kGiB = 262144;  // in frames

struct TdpRoots : ::testing::Test {
  TdpWorld world;
  TdpRoots() { world.add_slot(0, 64 * kGiB, kWorldHva); }
};

TEST_F(TdpRoots, TwoContextsShareOneRoot) {
  MmuContext a(world.mmu);
  MmuContext b(world.mmu);
  ASSERT_TRUE(world.mmu.load_root(a, 0) && world.mmu.load_root(b, 0));
  EXPECT_EQ(TdpTestAccess::root(a), TdpTestAccess::root(b));
  EXPECT_EQ(world.mmu.root_count(), 1U);
  EXPECT_EQ(world.fault(a, 5, Access::kWrite), FaultOutcome::kFixed);
  EXPECT_EQ(world.walk(b, 5).kind, Walk::Kind::kHit);
}

TEST_F(TdpRoots, AnAddressSpaceHasARootOfItsOwn) {
  MmuContext a(world.mmu);
  ASSERT_TRUE(world.mmu.load_root(a, 0) && world.mmu.load_root(a, 1));
  EXPECT_NE(TdpTestAccess::root(a, 0), TdpTestAccess::root(a, 1));
  EXPECT_EQ(world.mmu.root_count(), 2U);
}

TEST_F(TdpRoots, AnIdleRootIsFoundAgain) {
  const stage2::TdpRoot* first = nullptr;
  {
    MmuContext a(world.mmu);
    EXPECT_EQ(world.fault(a, 5, Access::kWrite), FaultOutcome::kFixed);
    first = TdpTestAccess::root(a);
    EXPECT_EQ(first->refs.load(), 2U);
  }
  EXPECT_EQ(first->refs.load(), 1U);
  MmuContext b(world.mmu);
  ASSERT_TRUE(world.mmu.load_root(b, 0));
  EXPECT_EQ(TdpTestAccess::root(b), first);
  EXPECT_EQ(world.walk(b, 5).kind, Walk::Kind::kHit);
}

TEST_F(TdpRoots, AnInvalidRootIsNeverFoundAgainAndEndsWithItsLastUser) {
  MmuContext a(world.mmu);
  MmuContext b(world.mmu);
  EXPECT_EQ(world.fault(a, 5, Access::kWrite), FaultOutcome::kFixed);
  const stage2::TdpRoot* old = TdpTestAccess::root(a);
  world.zap_all();
  ASSERT_TRUE(world.mmu.load_root(b, 0));
  EXPECT_NE(TdpTestAccess::root(b), old);
  EXPECT_EQ(world.mmu.root_count(), 2U);  // a has not noticed yet
  world.mmu.drop_obsolete_roots(a);
  EXPECT_FALSE(a.has_root(0));
  EXPECT_EQ(world.walk(a, 5).kind, Walk::Kind::kMiss);
  ASSERT_TRUE(world.mmu.load_root(a, 0));
  EXPECT_EQ(TdpTestAccess::root(a), TdpTestAccess::root(b));
  EXPECT_EQ(world.mmu.root_count(), 1U);
  EXPECT_EQ(world.walk(a, 5).kind, Walk::Kind::kMiss);
  world.mmu.check_world();
}

TEST_F(TdpRoots, InvalidationTakesEveryTableApart) {
  MmuContext a(world.mmu);
  for (u64 gfn = 0; gfn < 64 * kGiB; gfn += kGiB / 2 + 512) {
    EXPECT_EQ(world.fault(a, gfn, Access::kWrite), FaultOutcome::kFixed);
    EXPECT_EQ(world.fault(a, gfn + 512, Access::kWrite, 2), FaultOutcome::kFixed);
  }
  EXPECT_EQ(world.fault(a, 50 * kGiB + 7, Access::kWrite, 3), FaultOutcome::kFixed);
  world.zap_all();
  EXPECT_EQ(world.mmu.tables().live(), 1 + TdpTestAccess::cached(a));  // a's old root
  ASSERT_TRUE(world.mmu.load_root(a, 0));
  EXPECT_EQ(world.mmu.tables().live(), 1 + TdpTestAccess::cached(a));
  world.mmu.check_world();
}

// More tables than one grace period is waited for at once.
TEST_F(TdpRoots, ABigRootIsTakenApartInPieces) {
  MmuContext a(world.mmu);
  for (u64 gfn = 0; gfn < 3 * kGiB; gfn += 512) {
    ASSERT_EQ(world.fault(a, gfn, Access::kWrite), FaultOutcome::kFixed);
  }
  const u64 grace = world.grace_periods.load();
  world.zap_all();
  EXPECT_GE(world.grace_periods.load() - grace, 3U);
  EXPECT_EQ(world.mmu.tables().live(), 1 + TdpTestAccess::cached(a));
}

TEST_F(TdpRoots, RootsComeAndGoWhileOthersWalkThem) {
  sync::Atomic<bool> stop{false};
  sync::Atomic<u64> done{0};
  std::thread others[2];
  for (std::thread& other : others) {
    other = std::thread([&] {
      MmuContext context(world.mmu);
      for (u64 rounds = 0; !stop.load();) {
        world.mmu.drop_obsolete_roots(context);
        EXPECT_NE(world.fault(context, 5, Access::kWrite), FaultOutcome::kNoMemory);
        done.fetch_add(1);
        if (++rounds % 64 == 0) static_cast<void>(world.mmu.count_pages());
      }
    });
  }
  for (int i = 0; i < 50; ++i) {
    const u64 before = done.load();
    while (done.load() < before + 3) sync::yield_thread();
    world.zap_all();
  }
  stop.store(true);
  for (std::thread& other : others) other.join();
  world.mmu.check_world();
  EXPECT_LE(world.mmu.root_count(), 1U);
}

// Eight vCPUs that run: none walks an old root after the flush, all are on the new one at their
// next entry, and of the old tree nothing is left.
TEST_F(TdpRoots, EightRunningVcpusAreOnANewRootAtTheirNextEntry) {
  constexpr unsigned kVcpus = 8;
  sync::AckLine lines[kVcpus];
  sync::Atomic<const stage2::TdpRoot*> walked[kVcpus];
  sync::Atomic<u64> entries[kVcpus];
  sync::Atomic<bool> stop{false};
  std::thread vcpus[kVcpus];
  for (unsigned me = 0; me < kVcpus; ++me) {
    world.lines.add(lines[me]);
    vcpus[me] = std::thread([&, me] {
      MmuContext context(world.mmu);
      while (!stop.load()) {
        static_cast<void>(world.fault(context, me * 512, Access::kWrite));
        if (lines[me].enter()) world.mmu.drop_obsolete_roots(context);
        for (int block = 0; block < 50; ++block) {
          walked[me].store(TdpTestAccess::root(context));
          static_cast<void>(world.walk(context, me * 512));
          if (lines[me].poll()) world.mmu.drop_obsolete_roots(context);
        }
        walked[me].store(nullptr);
        lines[me].leave();
        entries[me].fetch_add(1);
      }
    });
  }
  MmuContext mine(world.mmu);
  for (int round = 0; round < 10; ++round) {
    ASSERT_TRUE(world.mmu.load_root(mine, 0));
    const stage2::TdpRoot* old = TdpTestAccess::root(mine);
    world.mmu.invalidate_all_roots();
    world.mmu.flush();
    for (unsigned me = 0; me < kVcpus; ++me) {
      const u64 now = entries[me].load();
      // It may have been between its store and its walk; the root it loads next is another one.
      while (entries[me].load() < now + 2 && walked[me].load() == old) sync::yield_thread();
      EXPECT_NE(walked[me].load(), old);
    }
    world.mmu.zap_invalidated_roots();
  }
  stop.store(true);
  for (unsigned me = 0; me < kVcpus; ++me) {
    vcpus[me].join();
    world.lines.remove(lines[me]);
  }
  ASSERT_TRUE(world.mmu.load_root(mine, 0));
  EXPECT_EQ(world.mmu.root_count(), 1U);
  world.mmu.check_world();
}

TEST(TdpEnd, NothingIsLeftAfterTheVm) {
  const AllocUse before = alloc_use();
  {
    TdpWorld world;
    world.add_slot(0, kGiB, kWorldHva);
    MmuContext context(world.mmu);
    for (u64 gfn = 0; gfn < kGiB; gfn += 5000) {
      EXPECT_EQ(world.fault(context, gfn, Access::kWrite), FaultOutcome::kFixed);
    }
    world.zap_all();
    EXPECT_EQ(world.fault(context, 7, Access::kRead), FaultOutcome::kFixed);
  }
  EXPECT_EQ(alloc_use().blocks, before.blocks);
  EXPECT_EQ(alloc_use().bytes, before.bytes);
}

// Every allocation of a table, a chunk or a root fails in turn: the fault says so or is made later,
// the tables stay sound, and nothing is lost.
TEST(TdpEnd, EveryAllocationMayFail) {
  const AllocUse before = alloc_use();
  u64 refused = 0;
  const u64 runs = failpoint::sweep([&] {
    TdpWorld world;
    world.add_slot(0, 4 * kGiB, kWorldHva);
    MmuContext context(world.mmu);
    for (u64 gfn : {u64{5}, kGiB + 5, 2 * kGiB + 512, u64{600}}) {
      const FaultOutcome outcome = world.fault(context, gfn, Access::kWrite, gfn == 600 ? 2 : 1);
      if (outcome == FaultOutcome::kNoMemory) ++refused;
      world.mmu.check_world();
    }
    world.zap_all();
    world.mmu.drop_obsolete_roots(context);
    // Memory is back at the second try at the latest: it goes on.
    if (world.fault(context, 5, Access::kWrite) == FaultOutcome::kNoMemory) {
      EXPECT_EQ(world.fault(context, 5, Access::kWrite), FaultOutcome::kFixed);
    }
    EXPECT_EQ(world.walk(context, 5).kind, Walk::Kind::kHit);
    world.mmu.check_world();
  });
  EXPECT_GT(runs, 20U);
  EXPECT_GT(refused, 0U);
  EXPECT_EQ(alloc_use().blocks, before.blocks);
  EXPECT_EQ(alloc_use().bytes, before.bytes);
}

}  // namespace
}  // namespace stagetwo::test

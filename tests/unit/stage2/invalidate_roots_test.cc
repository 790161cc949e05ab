// SPDX-License-Identifier: Apache-2.0
// What the exclusive section of "all roots are invalid" costs, and what running vCPUs see of it.

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <set>
#include <thread>

#include "sync/futex.h"
#include "tests/support/seeds.h"
#include "tests/support/tdp_world.h"

namespace stagetwo::test {
namespace {

constexpr u64 kGiB = 262144;  // in frames

// While it lives, whoever looks at an entry or at a table's header ends the process.
class NoTableMayBeTouched {
 public:
  explicit NoTableMayBeTouched(TdpMmu& mmu) {
    TdpTestAccess::for_each_table(
        mmu, [this](TablePage& page) { tables_.insert(reinterpret_cast<u64>(page.entries)); });
    protect(PROT_NONE);
  }
  ~NoTableMayBeTouched() { protect(PROT_READ | PROT_WRITE); }
  NoTableMayBeTouched(const NoTableMayBeTouched&) = delete;
  NoTableMayBeTouched& operator=(const NoTableMayBeTouched&) = delete;

 private:
  // In order, so that neighbours become one mapping of the kernel's.
  void protect(int prot) {
    for (const u64 table : tables_) {
      if (mprotect(reinterpret_cast<void*>(table), kPageSize, prot) != 0) std::abort();
    }
  }
  std::set<u64> tables_;
};

struct InvalidateRoots : ::testing::TestWithParam<u64> {
  TdpWorld world;
  InvalidateRoots() { world.add_slot(0, 64 * kGiB, kWorldHva); }
  // Every 4 KiB page of the first gibibytes has an entry.
  void map_all(MmuContext& context, u64 gibibytes) {
    for (u64 gfn = 0; gfn < gibibytes * kGiB; gfn += kGiB) {
      ASSERT_EQ(world.fault(context, gfn, Access::kWrite, 3), FaultOutcome::kFixed);
    }
    world.mmu.try_split_huge(world.slots[0], GfnRange(Gfn(0), gibibytes * kGiB), 1);
    ASSERT_EQ(world.mmu.count_pages().pages_4k, gibibytes * kGiB);
  }
};

// F3 9, the section: O(roots), so it looks at no entry, however many there are.
TEST_P(InvalidateRoots, TheExclusiveSectionTouchesNoTable) {
  MmuContext context(world.mmu);
  map_all(context, GetParam());
  {
    const NoTableMayBeTouched guard(world.mmu);
    world.mmu.invalidate_all_roots();
  }
  world.flush_tlbs();
  EXPECT_GT(world.mmu.tables().live(), GetParam() * 512);  // not yet
  world.mmu.zap_invalidated_roots();
  ASSERT_TRUE(world.mmu.load_root(context, 0));
  EXPECT_EQ(world.mmu.tables().live(), 1 + TdpTestAccess::cached(context));
  world.mmu.check_world();
}
INSTANTIATE_TEST_SUITE_P(Gibibytes, InvalidateRoots, ::testing::Values(1, 64));

TEST(InvalidateRootsDeathTest, TheGuardOfThatTestGuards) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  TdpWorld world;
  world.add_slot(0, kGiB, kWorldHva);
  MmuContext context(world.mmu);
  ASSERT_EQ(world.fault(context, 5, Access::kWrite), FaultOutcome::kFixed);
  EXPECT_DEATH(
      {
        const NoTableMayBeTouched guard(world.mmu);
        static_cast<void>(world.mmu.count_pages());
      },
      "");
}

// How many invalidations have begun, and how many of them have flushed.
struct Rounds {
  sync::Atomic<u64> begun{0};
  sync::Atomic<u64> flushed{0};
};

// One vCPU as its run loop is: roots are looked at when something was asked of the line.
struct RunningVcpu {
  TdpWorld& world;
  MmuContext context{world.mmu};
  sync::AckLine line;
  sync::Atomic<u64> entries{0};
  sync::Atomic<u64> stale{0};  // ran on an old root after the flush that told it

  explicit RunningVcpu(TdpWorld& of) : world(of) { world.lines.add(line); }
  ~RunningVcpu() { world.lines.remove(line); }
  void run(const sync::Atomic<bool>& stop, const Rounds& rounds, u64 first) {
    for (u64 n = 0; !stop.load(); ++n) {
      const u64 flushed = rounds.flushed.load();
      if (line.enter()) world.mmu.drop_obsolete_roots(context);
      const u64 gfn = first + n % 64;
      const bool hit = world.walk(context, gfn, Access::kWrite).kind == Walk::Kind::kHit;
      const auto* root = TdpTestAccess::root(context);
      if (root != nullptr && root->invalid.load() && rounds.begun.load() == flushed) {
        stale.fetch_add(1);
      }
      line.leave();
      entries.fetch_add(1);
      if (n % 32 == 0) sync::yield_thread();  // eight are more than there are processors
      if (hit) continue;
      EXPECT_NE(world.fault(context, gfn, Access::kWrite), FaultOutcome::kNoMemory);
    }
  }
};

// F3 9, the vCPUs: eight run; each is on a new root at its next entry, and the old ones' tables are
// given back while they go on.
TEST(InvalidateRootsUnderVcpus, EachIsOnTheNewRootAtItsNextEntry) {
  TdpWorld world;
  world.add_slot(0, 64 * kGiB, kWorldHva);
  sync::Atomic<bool> stop{false};
  Rounds rounds;
  std::vector<std::unique_ptr<RunningVcpu>> vcpus;
  std::vector<std::thread> threads;
  for (u64 i = 0; i < 8; ++i) {
    vcpus.push_back(std::make_unique<RunningVcpu>(world));
    RunningVcpu* const vcpu = vcpus.back().get();  // the vector goes on growing
    threads.emplace_back([&, vcpu, i] { vcpu->run(stop, rounds, i * 8 * kGiB); });
  }
  const Deadline deadline(0.3);
  for (int round = 0; round < 3 || (round < 100 && deadline.running()); ++round) {
    for (auto& vcpu : vcpus) {
      const u64 before = vcpu->entries.load();
      while (vcpu->entries.load() == before) sync::yield_thread();
    }
    rounds.begun.fetch_add(1);
    world.mmu.invalidate_all_roots();
    world.flush_tlbs();
    rounds.flushed.fetch_add(1);
    world.mmu.zap_invalidated_roots();
  }
  stop.store(true);
  for (std::thread& thread : threads) thread.join();
  u64 cached = 0;
  for (auto& vcpu : vcpus) {
    EXPECT_EQ(vcpu->stale.load(), 0U);
    ASSERT_TRUE(world.mmu.load_root(vcpu->context, 0));  // the last invalidation's leftovers
    cached += TdpTestAccess::cached(vcpu->context);
  }
  EXPECT_EQ(world.mmu.root_count(), 1U);
  EXPECT_EQ(world.mmu.tables().live(), world.mmu.count_pages().tables + cached);
  world.mmu.check_world();
}

}  // namespace
}  // namespace stagetwo::test

// SPDX-License-Identifier: Apache-2.0
// The stage-2 table under vCPUs that fault and walk, changes of the address space, slot updates
// that invalidate every root, and removals that freeze: nobody uses a page while its meaning
// changes, and the tables are sound at the end.

#include <gtest/gtest.h>

#include <thread>
#include <vector>

#include "sync/futex.h"
#include "tests/support/random_source.h"
#include "tests/support/tdp_world.h"

namespace stagetwo::test {
namespace {

constexpr u64 kFrames = 4 * 512;
constexpr unsigned kVcpus = 3;

struct TdpStress : ::testing::Test {
  TdpWorld world{stage2::TdpPolicy{.nx_huge_pages = true}};
  sync::AckLine lines[kVcpus];
  sync::Atomic<u32> changing[kFrames];  // raised between a flush and the end of its change
  sync::Atomic<bool> stop{false};
  sync::Atomic<u64> hits{0};

  TdpStress() {
    world.add_slot(0, kFrames, kWorldHva);
    for (sync::AckLine& line : lines) world.lines.add(line);
  }
  ~TdpStress() override {
    for (sync::AckLine& line : lines) world.lines.remove(line);
  }
  static u64 next(u64& state) {
    state = state * 6364136223846793005U + 1442695040888963407U;
    return state >> 33;
  }

  void vcpu(unsigned me) {
    MmuContext context(world.mmu);
    u64 random = seed() + me;
    sync::AckLine& line = lines[me];
    while (!stop.load(sync::kRelaxed)) {
      const u64 dice = next(random);
      const u64 gfn = dice % kFrames;
      const Access access = dice >> 20 & 1   ? Access::kWrite
                            : dice >> 21 & 1 ? Access::kExec
                                             : Access::kRead;
      if (line.enter()) world.mmu.drop_obsolete_roots(context);
      const Walk walk = world.walk(context, gfn, access);
      if (walk.kind == Walk::Kind::kHit) {
        ASSERT_EQ(walk.page.raw(), kWorldHva + gfn * kPageSize);
        ASSERT_TRUE(access != Access::kWrite || walk.writable);
        // The translation is used until a poll says that it is not to be.
        for (int use = 0; use < 8 && !line.pending(); ++use) {
          const u32 now = changing[gfn].load(sync::kAcquire);
          ASSERT_EQ(now, 0U) << "frame " << gfn << " is used while its meaning changes";
        }
        hits.fetch_add(1, sync::kRelaxed);
        line.leave();
        continue;
      }
      line.leave();
      static_cast<void>(world.fault(context, gfn, access, dice >> 22 & 1 ? 2 : 1));
    }
  }

  // What a munmap does. Ranges of different sizes, so that leaves, tables and huge leaves go.
  void change(u64 first, u64 pages) {
    const u64 page = (kWorldHva >> kPageShift) + first;
    world.gate.begin(page, page + pages - 1);
    pt::Gather removed;
    if (world.mmu.zap_leafs(0, GfnRange(Gfn(first), pages), &removed, true)) world.mmu.flush();
    for (u64 i = first; i < first + pages; ++i) changing[i].fetch_add(1, sync::kRelease);
    for (u64 i = first; i < first + pages; ++i) changing[i].fetch_sub(1, sync::kRelease);
    world.gate.end(page, page + pages - 1);
    world.mmu.flush_and_release(&removed);
  }
  void changer() {
    u64 random = seed() + 100;
    while (!stop.load(sync::kRelaxed)) {
      const u64 pages = u64{1} << next(random) % 11;
      change(next(random) % (kFrames - pages + 1), pages);
      sync::yield_thread();
    }
  }
  void updater() {
    MmuContext context(world.mmu);
    u64 random = seed() + 200;
    while (!stop.load(sync::kRelaxed)) {
      const u64 dice = next(random);
      if (dice % 8 == 0) {
        world.mmu.invalidate_all_roots();
        world.mmu.flush();
        world.mmu.zap_invalidated_roots();
      } else if (world.mmu.load_root(context, 0)) {
        pt::Gather removed;
        static_cast<void>(TdpTestAccess::zap_frozen(world.mmu, *TdpTestAccess::root(context),
                                                    Gfn(dice % kFrames), dice >> 12 & 1 ? 2 : 1,
                                                    &removed));
        world.mmu.flush_and_release(&removed);
      }
      sync::yield_thread();
    }
  }
};

TEST_F(TdpStress, NobodyUsesAPageWhileItsMeaningChanges) {
  std::vector<std::thread> threads;
  for (unsigned me = 0; me < kVcpus; ++me) threads.emplace_back([this, me] { vcpu(me); });
  threads.emplace_back([this] { changer(); });
  threads.emplace_back([this] { changer(); });
  threads.emplace_back([this] { updater(); });
  std::this_thread::sleep_for(std::chrono::duration<double>(test_seconds()));
  stop.store(true);
  for (std::thread& thread : threads) thread.join();
  ASSERT_FALSE(HasFailure()) << "STAGETWO_SEED=" << seed();
  EXPECT_GT(hits.load(), 0U);
  world.mmu.check_world();
  world.zap_all();
  EXPECT_EQ(world.mmu.root_count(), 0U);
  EXPECT_EQ(world.mmu.tables().live(), 0U);
}

}  // namespace
}  // namespace stagetwo::test

// SPDX-License-Identifier: Apache-2.0
// Large pages become small under a guest that goes on writing, and large again.
#include <gtest/gtest.h>

#include <atomic>
#include <cstdio>
#include <thread>
#include <vector>

#include "tests/support/random_source.h"
#include "tests/support/stress_time.h"
#include "tests/support/tdp_world.h"

namespace stagetwo::test {
namespace {

constexpr u64 kFrames = 262144;  // 1 GiB
constexpr unsigned kGuests = 2;

// A guest that reads and writes frames of a gigabyte by the table, and counts what it had to fault
// for.
class Guest {
 public:
  Guest(TdpWorld& world, u64 seed)
      : context(world.mmu), world_(world), random_(seed), written_(kFrames) {
    world_.lines.add(line_);
    static_cast<void>(world_.mmu.load_root(context, 0));
  }
  ~Guest() { world_.lines.remove(line_); }
  void run(const std::atomic<bool>& stop) {
    while (!stop.load(std::memory_order_relaxed)) {
      const sync::RunningSection running(line_);
      for (int i = 0; i < 64; ++i) {
        const u64 gfn = random_.next() % kFrames;
        const Access access = random_.next() % 2 == 0 ? Access::kWrite : Access::kRead;
        if (world_.walk(context, gfn, access).kind != Walk::Kind::kHit) {
          ++misses;
        } else if (access == Access::kWrite) {
          written_[gfn] = true;
        }
        ++accesses;
      }
      started = true;
    }
  }
  [[nodiscard]] bool has_written(u64 gfn) const { return written_[gfn]; }

  MmuContext context;
  u64 misses = 0;
  u64 accesses = 0;
  std::atomic<bool> started{false};

 private:
  TdpWorld& world_;
  RandomSource random_;
  sync::AckLine line_;
  std::vector<bool> written_;
};

// F3 10: 512 splits make 262,144 entries, no access faults on account of them, no D is lost.
TEST(EagerSplit, OfAGigabyteUnderAGuestThatWritesCostsItNoFaultAndLosesNoDirtyBit) {
  const u64 seed = announced_seed("EagerSplit");
  u64 accesses = 0;
  const u64 rounds = stress_rounds(1000);
  for (u64 round = 0; round < rounds; ++round) {
    TdpWorld world;
    world.add_slot(0, kFrames, kWorldHva);
    Guest guest[kGuests] = {Guest(world, seed + round), Guest(world, ~seed + round)};
    for (u64 gfn = 0; gfn < kFrames; gfn += 512) {
      ASSERT_EQ(world.fault(guest[0].context, gfn, Access::kRead, 2), FaultOutcome::kFixed);
    }
    std::atomic<bool> stop{false};
    std::vector<std::thread> threads;
    for (Guest& g : guest) threads.emplace_back([&] { g.run(stop); });
    while (!guest[0].started || !guest[1].started) std::this_thread::yield();
    world.mmu.try_split_huge(world.slots[0], world.slots[0].gfns(), 1);
    const auto pages = world.mmu.count_pages();
    stop = true;
    for (std::thread& thread : threads) thread.join();
    ASSERT_EQ(pages.pages_2m, 0U);
    ASSERT_EQ(pages.pages_4k, kFrames);
    for (const Guest& g : guest) ASSERT_EQ(g.misses, 0U);
    for (u64 gfn = 0; gfn < kFrames; ++gfn) {
      const auto found = TdpTestAccess::find(world.mmu, guest[0].context, Gfn(gfn));
      if (!guest[0].has_written(gfn) && !guest[1].has_written(gfn)) continue;
      ASSERT_TRUE(Format::is_dirty(found.word)) << gfn;
    }
    accesses += guest[0].accesses + guest[1].accesses;
    world.mmu.check_world();
  }
  std::printf("%llu splits of 1 GiB under %llu accesses\n", static_cast<unsigned long long>(rounds),
              static_cast<unsigned long long>(accesses));
}

}  // namespace
}  // namespace stagetwo::test

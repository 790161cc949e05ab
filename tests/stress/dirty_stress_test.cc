// SPDX-License-Identifier: Apache-2.0
// Large pages become small under a guest that goes on writing; what guests store is in the log,
// whichever way it is read.
#include <gtest/gtest.h>

#include <atomic>
#include <cstdio>
#include <memory>
#include <thread>
#include <vector>

#include "host/access.h"
#include "host/backstop.h"
#include "stage2/address_space.h"
#include "tests/support/pages.h"
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

// --- a VM whose stores are harvested while they go on ---

constexpr u64 kLoggedPages = 512;
constexpr u64 kGpa = u64{1} << 32;
constexpr u32 kRingBytes = 4096;
constexpr u32 kRingEntries = kRingBytes / sizeof(stage2::DirtyGfn);

// A vCPU that adds to the first word of pages at random, with a ring where the VM has them.
class Writer {
 public:
  Writer(stage2::GuestMemory& memory, u32 id, u64 seed, bool with_ring)
      : memory_(memory), context_(std::move(*memory.new_context())), random_(seed) {
    memory_.lines().add(line_);
    if (!with_ring) return;
    entries_.reset(new stage2::DirtyGfn[kRingEntries]());
    ring_ = std::make_unique<stage2::DirtyRing>(id, entries_.get(), kRingBytes);
    memory_.slots().add_ring(*ring_);
    context_->ring = ring_.get();
  }
  ~Writer() {
    if (ring_) memory_.slots().remove_ring(*ring_);
    memory_.lines().remove(line_);
  }
  void run(const std::atomic<bool>& stop) {
    while (!stop.load(std::memory_order_relaxed)) {
      if (ring_ && ring_->soft_full()) {  // KVM_EXIT_DIRTY_RING_FULL
        ++full;
        std::this_thread::yield();
        continue;
      }
      block();
    }
  }
  // The client's side of the ring: visit(page) for each entry, which it gives back.
  template <typename F>
  u32 collect(F&& visit) {
    u32 count = 0;
    for (;; ++count, ++next_) {
      stage2::DirtyGfn& entry = entries_[next_ % kRingEntries];
      if (entry.flags.load(sync::kAcquire) != stage2::kGfnDirtied) return count;
      visit(entry.offset.load(sync::kRelaxed));
      entry.flags.store(stage2::kGfnReset, sync::kRelease);
    }
  }
  std::atomic<u64> stores{0};
  std::atomic<u64> full{0};

 private:
  // Some stores by translations that live until the next flush, as vcpu's do.
  void block() {
    if (line_.enter()) forget();
    for (int i = 0; i < 32; ++i) {
      if (line_.poll()) forget();
      if (ring_ && ring_->soft_full()) break;
      const u64 page = random_.below(kLoggedPages);
      if (cached_[page] == 0 && !fault(page)) continue;
      u64 old = 0;
      if (host::fetch_add(Hva(cached_[page]), u64{1}, &old)) ++stores;
    }
    line_.leave();
  }
  void forget() {
    memory_.flushed(*context_);
    std::fill(std::begin(cached_), std::end(cached_), 0);
  }
  bool fault(u64 page) {
    Fault f{};
    f.gpa = Gpa(kGpa + page * kPageSize);
    f.access = Access::kWrite;
    f.ring = ring_.get();
    if (memory_.translate(*context_, f) != Walk::Kind::kHit) {
      line_.leave();
      static_cast<void>(memory_.handle_fault(*context_, f));
      if (line_.enter()) forget();
      if (memory_.translate(*context_, f) != Walk::Kind::kHit) return false;
    }
    cached_[page] = f.page.raw();
    return true;
  }

  stage2::GuestMemory& memory_;
  Box<MmuContext> context_;
  RandomSource random_;
  sync::AckLine line_;
  std::unique_ptr<stage2::DirtyGfn[]> entries_;
  std::unique_ptr<stage2::DirtyRing> ring_;
  u32 next_ = 0;
  u64 cached_[kLoggedPages] = {};
};

class HarvestedVm : public ::testing::Test {
 protected:
  void start(bool rings) {
    ASSERT_TRUE(host::backstop::install());
    memory_ = std::move(*stage2::GuestMemory::create(stage2::SlotPolicy{}));
    if (rings) memory_->slots().use_dirty_rings();
    log(true);
    const u64 seed = announced_seed("HarvestedVm");
    for (u32 i = 0; i < kGuests; ++i) {
      writers_.push_back(std::make_unique<Writer>(*memory_, i, seed + i, rings));
    }
    for (auto& writer : writers_) threads_.emplace_back([&writer, this] { writer->run(stop_); });
    for (const auto& writer : writers_) {
      while (writer->stores == 0) std::this_thread::yield();
    }
  }
  void log(bool on) {
    stage2::Region region;
    region.flags = on ? stage2::kLogDirtyPages : 0;
    region.gpa = kGpa;
    region.size = kLoggedPages * kPageSize;
    region.hva = pages_.address();
    ASSERT_TRUE(memory_->slots().set_region(region));
  }
  void rest() {
    stop_ = true;
    for (std::thread& thread : threads_) thread.join();
    threads_.clear();
  }
  void finish(u64 harvests) {
    u64 lost = 0;
    for (u64 page = 0; page < kLoggedPages; ++page) lost += copy_[page] != word(page);
    EXPECT_EQ(0U, lost) << "pages with a store that is in no harvest";
    u64 stores = 0;
    u64 full = 0;
    for (const auto& writer : writers_) {
      stores += writer->stores;
      full += writer->full;
    }
    std::printf("%llu harvests, %llu stores, full %llu times\n",
                static_cast<unsigned long long>(harvests), static_cast<unsigned long long>(stores),
                static_cast<unsigned long long>(full));
    memory_->check_world();
    writers_.clear();
  }
  u64 word(u64 page) const {
    return __atomic_load_n(reinterpret_cast<u64*>(pages_.bytes_at(page * kPageSize)),
                           __ATOMIC_RELAXED);
  }
  void see(u64 page) { copy_[page] = word(page); }
  void harvest_bitmap() {
    ASSERT_TRUE(memory_->slots().get_dirty_log(0, Hva(bitmap_.address())));
    const auto* words = reinterpret_cast<const u64*>(bitmap_.pointer());
    for (u64 page = 0; page < kLoggedPages; ++page) {
      if ((words[page / 64] >> page % 64 & 1) != 0) see(page);
    }
  }

  GuardedPages pages_{kLoggedPages};
  GuardedPages bitmap_{1};
  Box<stage2::GuestMemory> memory_;
  std::vector<std::unique_ptr<Writer>> writers_;
  std::vector<std::thread> threads_;
  std::atomic<bool> stop_{false};
  std::vector<u64> copy_ = std::vector<u64>(kLoggedPages);
};

constexpr u64 kHarvests = 10'000;

// F3 20: 10,000 harvests, and one with the vCPUs at rest.
TEST_F(HarvestedVm, EveryStoreIsInAHarvestOfTheBitmap) {
  start(false);
  u64 rounds = 0;
  for (const Deadline deadline; rounds < kHarvests && deadline.running(); ++rounds)
    harvest_bitmap();
  tell_cut("harvests", rounds, kHarvests);
  rest();
  harvest_bitmap();
  finish(rounds);
}

TEST_F(HarvestedVm, EveryStoreIsInAnEntryOfARing) {
  start(true);
  std::vector<u64> collected;
  u64 rounds = 0;  // that took something
  const auto harvest = [&] {
    collected.clear();
    u32 count = 0;
    for (auto& writer : writers_) {
      count += writer->collect([&](u64 page) { collected.push_back(page); });
    }
    ASSERT_EQ(count, memory_->slots().reset_dirty_rings());
    for (const u64 page : collected) see(page);  // after the reset, as the rules say
    if (count != 0) ++rounds;
  };
  for (const Deadline deadline; rounds < kHarvests && deadline.running();) harvest();
  tell_cut("harvests", rounds, kHarvests);
  rest();
  harvest();
  finish(rounds);
}

// Logs that come and go: what was stored between two of them is nobody's, and is seen when the
// next begins.
constexpr u64 kLogs = 4'000;
TEST_F(HarvestedVm, EveryStoreUnderALogIsInAHarvestThoughLogsComeAndGo) {
  start(false);
  u64 rounds = 0;
  for (const Deadline deadline; rounds < kLogs && deadline.running(); ++rounds) {
    log(false);
    log(true);
    for (u64 page = 0; page < kLoggedPages; ++page) see(page);
    harvest_bitmap();
    harvest_bitmap();
  }
  tell_cut("logs", rounds, kLogs);
  rest();
  harvest_bitmap();
  finish(rounds);
}

}  // namespace
}  // namespace stagetwo::test

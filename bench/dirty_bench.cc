// SPDX-License-Identifier: Apache-2.0
// What the dirty log asks of the tables: a pass of write protection, the pages of a harvest, the
// splitting of large pages. Each is held against the memory operations it cannot do without.

#include <time.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "bench/report.h"
#include "bench/timing.h"
#include "tests/support/tdp_world.h"

namespace stagetwo::stage2 {
namespace {

using bench::median;
using test::TdpWorld;
// The processor's time of this thread: each pass is long, and nobody else's work is in it.
struct Clock {
  using time_point = double;
  static double now() {
    timespec at{};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &at);
    return static_cast<double>(at.tv_sec) * 1e9 + static_cast<double>(at.tv_nsec);
  }
};
constexpr u64 kFrames = 262144;  // 1 GiB

double since_ns(Clock::time_point start) {
  return Clock::now() - start;
}

// One gigabyte mapped with entries of one level, all written.
struct Gigabyte {
  TdpWorld world;
  MmuContext context{world.mmu};

  explicit Gigabyte(unsigned level) {
    world.add_slot(0, kFrames, test::kWorldHva);
    map(level);
  }
  Slot& slot() { return world.slots[0]; }
  void map(unsigned level) {
    for (u64 gfn = 0; gfn < kFrames; gfn += pt::span_of<Format>(level)) {
      static_cast<void>(world.fault(context, gfn, Access::kWrite, level));
    }
  }
  void restore() {
    for (u64 gfn = 0; gfn < kFrames; ++gfn) {
      Fault fault = world.found(gfn, Access::kWrite);
      FaultOutcome outcome = FaultOutcome::kRetry;
      static_cast<void>(world.mmu.fast_page_fault(context, fault, &outcome));
    }
  }
};

// The limit: a locked operation on each of as many words.
double locked_pass_ns() {
  const std::unique_ptr<sync::Atomic<u64>[]> words(new sync::Atomic<u64>[kFrames]());
  for (u64 i = 0; i < kFrames; ++i) words[i].store(3, sync::kRelaxed);
  const auto start = Clock::now();
  for (u64 i = 0; i < kFrames; ++i) words[i].fetch_and(~Format::kWrite, sync::kAcqRel);
  return since_ns(start);
}

template <typename Pass>
void protect_pass(benchmark::State& state, Pass&& pass) {
  Gigabyte vm(1);
  std::vector<double> taken;
  std::vector<double> limit;
  for (auto _ : state) {
    limit.push_back(locked_pass_ns());
    vm.restore();
    const auto start = Clock::now();
    pass(vm);
    taken.push_back(since_ns(start));
  }
  bench::report(state, {.unit = "ns an entry, median",
                        .value = median(taken) / kFrames,
                        .yardstick = "2 x a locked operation on a word of its own",
                        .yardstick_value = 2 * median(limit) / kFrames,
                        .at_most = 1});
}

void WriteProtectASlot(benchmark::State& state) {
  protect_pass(state, [](Gigabyte& vm) { vm.world.mmu.write_protect_slot(vm.slot(), 1); });
}
BENCHMARK(WriteProtectASlot)->Iterations(20);

void WriteProtectAHarvest(benchmark::State& state) {
  const std::vector<u64> masks(kFrames / 64, ~u64{0});
  protect_pass(state, [&](Gigabyte& vm) {
    vm.world.mmu.write_protect_masked(vm.slot(), 0, masks.data(), masks.size());
  });
}
BENCHMARK(WriteProtectAHarvest)->Iterations(20);

// One page in 64: what a harvest of a guest that writes here and there costs a page.
void WriteProtectASparseHarvest(benchmark::State& state) {
  Gigabyte vm(1);
  const std::vector<u64> masks(kFrames / 64, u64{1} << 17);
  std::vector<double> taken;
  for (auto _ : state) {
    vm.restore();
    const auto start = Clock::now();
    vm.world.mmu.write_protect_masked(vm.slot(), 0, masks.data(), masks.size());
    taken.push_back(since_ns(start));
  }
  bench::report(
      state,
      {.unit = "ns a page, median", .value = median(taken) / (kFrames / 64.0), .at_most = 40});
}
BENCHMARK(WriteProtectASparseHarvest)->Iterations(20);

// A store to a page that was protected: the fault that restores the right, and the mark.
void RestoreTheRightToStore(benchmark::State& state) {
  Gigabyte vm(1);
  std::vector<double> taken;
  for (auto _ : state) {
    vm.world.mmu.write_protect_slot(vm.slot(), 1);
    const auto start = Clock::now();
    vm.restore();
    taken.push_back(since_ns(start));
  }
  bench::report(state,
                {.unit = "ns a fault, median", .value = median(taken) / kFrames, .at_most = 50});
}
BENCHMARK(RestoreTheRightToStore)->Iterations(20);

void EagerSplit(benchmark::State& state) {
  constexpr u64 kLarge = kFrames / 512;
  std::vector<double> taken;
  std::vector<double> limit;
  for (auto _ : state) {
    Gigabyte vm(2);
    auto start = Clock::now();
    vm.world.mmu.try_split_huge(vm.slot(), vm.slot().gfns(), 1);
    taken.push_back(since_ns(start));
    // The limit: as many pages the kernel has to give, each filled once.
    const size_t bytes = kLarge * kPageSize;
    void* pages = *map_pages(bytes, "bench.pages");
    start = Clock::now();
    auto* words = static_cast<u64*>(pages);
    for (u64 i = 0; i < bytes / 8; ++i) words[i] = i << kPageShift | 0xff;
    benchmark::DoNotOptimize(words);
    limit.push_back(since_ns(start));
    unmap_pages(pages, bytes);
  }
  bench::report(state, {.unit = "us a 2 MiB entry, median",
                        .value = median(taken) / kLarge / 1000,
                        .yardstick = "1.5 x 512 stores to a page of a fresh mapping",
                        .yardstick_value = 1.5 * median(limit) / kLarge / 1000,
                        .at_most = 1});
}
BENCHMARK(EagerSplit)->Iterations(40);

}  // namespace
}  // namespace stagetwo::stage2

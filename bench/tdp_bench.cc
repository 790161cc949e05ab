// SPDX-License-Identifier: Apache-2.0
// The stage-2 table alone, without a host below and a vCPU above: what an install, a walk and a
// removal cost, and how long the exclusive lock is held. The limits are locked instructions and
// cache lines, so the yardsticks are those.

#include <time.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <thread>
#include <vector>

#include "bench/report.h"
#include "bench/timing.h"
#include "tests/support/tdp_world.h"

namespace stagetwo::test {
namespace {

using bench::Clock;
using bench::median;
using bench::since_ns;
constexpr u64 kGiB = 262144;  // in frames

double compare_exchange_ns() {
  constexpr u64 kTimes = 1'000'000;
  sync::Atomic<u64> word{0};
  const auto start = Clock::now();
  for (u64 i = 0; i < kTimes; ++i) {
    u64 seen = i;
    benchmark::DoNotOptimize(word.compare_exchange(seen, i + 1));
  }
  return since_ns(start) / static_cast<double>(kTimes);
}

struct Table {
  TdpWorld world;
  MmuContext context{world.mmu};
  explicit Table(u64 gigabytes = 1) { world.add_slot(0, gigabytes * kGiB, kWorldHva); }
  void map(u64 first, u64 end, u64 step = 1) {
    for (u64 gfn = first; gfn < end; gfn += step) {
      if (world.fault(context, gfn, Access::kWrite) != FaultOutcome::kFixed) std::abort();
    }
  }
};

// Prolog, map, epilog for neighbouring frames; a table page for every 512th.
void MapOfAFreshFrame(benchmark::State& state) {
  std::vector<double> rounds;
  const double cas = compare_exchange_ns();
  for (auto _ : state) {
    Table table;
    table.map(0, 1);
    const auto start = Clock::now();
    table.map(1, kGiB);
    rounds.push_back(since_ns(start) / static_cast<double>(kGiB - 1));
  }
  bench::report(state, {.unit = "ns",
                        .value = median(rounds),
                        .yardstick = "compare-and-exchange",
                        .yardstick_value = cas});
}
BENCHMARK(MapOfAFreshFrame)->Iterations(9);

// Two threads in different gigabytes: what they share is the lock and the upper tables. Processor
// time of each, so that it holds on a machine that does something else as well.
double thread_ns() {
  timespec t{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) * 1e9 + static_cast<double>(t.tv_nsec);
}
void TwoThreadsMapping(benchmark::State& state) {
  std::vector<double> ratios;
  constexpr u64 kFrames = kGiB / 2;
  for (auto _ : state) {
    Table table(2);
    MmuContext other(table.world.mmu);
    table.map(0, 1);
    double start = thread_ns();
    table.map(1, kFrames);
    const double alone = thread_ns() - start;
    sync::Atomic<int> here{0};
    double beside = 0;
    std::thread second([&] {
      here.fetch_add(1);
      while (here.load() != 2) {
      }
      const double began = thread_ns();
      for (u64 gfn = kGiB; gfn < kGiB + kFrames; ++gfn) {
        if (table.world.fault(other, gfn, Access::kWrite) != FaultOutcome::kFixed) std::abort();
      }
      beside = thread_ns() - began;
    });
    here.fetch_add(1);
    while (here.load() != 2) {
    }
    start = thread_ns();
    table.map(kFrames, 2 * kFrames);
    const double mine = thread_ns() - start;
    second.join();
    ratios.push_back(2 * alone / std::max(mine, beside));
  }
  bench::report(state, {.unit = "times one thread", .value = median(ratios), .at_least = 1.7});
}
BENCHMARK(TwoThreadsMapping)->Iterations(9)->UseRealTime();

void WalkOfAMappedFrame(benchmark::State& state) {
  Table table;
  table.map(0, 4096);
  u64 gfn = 0;
  for (auto _ : state) {
    benchmark::DoNotOptimize(table.world.walk(table.context, gfn));
    gfn = (gfn + 1) % 4096;
  }
  bench::report(state, {.unit = "ns"});
}
BENCHMARK(WalkOfAMappedFrame);

void ZapOfAGigabyteAlone(benchmark::State& state) {
  std::vector<double> whole;
  const bool leaf_by_leaf = state.range(0) != 0;
  for (auto _ : state) {
    Table table;
    table.map(0, kGiB);
    const auto start = Clock::now();
    if (leaf_by_leaf) {
      // No table is in the range as a whole, so that every entry is taken by itself.
      for (u64 gfn = 0; gfn < kGiB; gfn += 256) table.world.zap(gfn, 256);
    } else {
      table.world.zap(0, kGiB);
    }
    whole.push_back(since_ns(start) * 1e-6);
  }
  bench::report(state, {.unit = "ms", .value = median(whole), .at_most = 3});
}
BENCHMARK(ZapOfAGigabyteAlone)->Arg(0)->Arg(1)->Iterations(9);

// The exclusive section of a slot's deletion, whatever is mapped.
void InvalidationOfAllRoots(benchmark::State& state) {
  std::vector<double> holds;
  const u64 gigabytes = static_cast<u64>(state.range(0));
  Table table(gigabytes);
  for (auto _ : state) {
    table.map(0, gigabytes * kGiB, 512);
    const auto start = Clock::now();
    table.world.mmu.invalidate_all_roots();
    holds.push_back(since_ns(start) * 1e-3);
    table.world.flush_tlbs();
    table.world.mmu.zap_invalidated_roots();
    table.world.mmu.drop_obsolete_roots(table.context);
  }
  bench::report(state, {.unit = "us", .value = median(holds), .at_most = 10});
}
BENCHMARK(InvalidationOfAllRoots)->Arg(1)->Arg(64)->Iterations(9);

// What faults beside one zap that yields waited, in nanoseconds.
std::vector<double> waits_beside_a_zap() {
  Table table(2);
  MmuContext other(table.world.mmu);
  table.map(0, kGiB);
  sync::Atomic<bool> zapping{false};
  sync::Atomic<bool> stop{false};
  std::vector<double> waits;
  waits.reserve(1'000'000);
  sync::Atomic<bool> storming{false};
  std::thread storm([&] {
    for (u64 i = 0; !stop.load(sync::kRelaxed) && waits.size() < waits.capacity(); ++i) {
      const bool counts = zapping.load(sync::kRelaxed);
      const auto start = Clock::now();
      static_cast<void>(table.world.fault(other, kGiB + i % kGiB, Access::kWrite));
      if (counts) waits.push_back(since_ns(start));
      storming.store(true, sync::kRelaxed);
    }
  });
  while (!storming.load(sync::kRelaxed)) std::this_thread::yield();
  zapping.store(true);
  for (u64 gfn = 0; gfn < kGiB; gfn += 256 * 64) {
    pt::Gather removed;
    static_cast<void>(
        table.world.mmu.zap_leafs(0, GfnRange(Gfn(gfn + 1), 256 * 64 - 2), &removed, true));
    table.world.mmu.flush_and_release(&removed);
  }
  stop.store(true);
  storm.join();
  return waits;
}

// The longest of 99 in 100 waits. A zap that nobody ran beside says nothing: on a busy machine the
// other thread may not be scheduled for as long as it takes.
void FaultBesideAZap(benchmark::State& state) {
  std::vector<double> p99;
  for (auto _ : state) {
    std::vector<double> waits;
    for (int tries = 0; waits.size() < 100 && tries < 20; ++tries) waits = waits_beside_a_zap();
    if (waits.size() < 100) continue;
    const auto at = waits.begin() + static_cast<std::ptrdiff_t>(waits.size() * 99 / 100);
    std::nth_element(waits.begin(), at, waits.end());
    p99.push_back(*at * 1e-3);
  }
  if (p99.empty()) return state.SkipWithError("no fault ran beside a zap");
  bench::report(state, {.unit = "us, 99 of 100 faults", .value = median(p99), .at_most = 1000});
}
BENCHMARK(FaultBesideAZap)->Iterations(5)->UseRealTime();

}  // namespace
}  // namespace stagetwo::test

// SPDX-License-Identifier: Apache-2.0
// What the client pays for being watched, and what an access through the only door costs.

#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <vector>

#include "bench/report.h"
#include "bench/timing.h"
#include "host/access.h"
#include "host/backstop.h"
#include "host/change.h"
#include "host/faultin.h"

namespace stagetwo::host {
namespace {

using bench::Clock;
using bench::median;

// Nanoseconds of one call of `f`, the mean of `rounds`.
template <typename F>
double mean_ns(int rounds, F&& f) {
  const auto start = Clock::now();
  for (int i = 0; i < rounds; ++i) f();
  const std::chrono::duration<double, std::nano> took = Clock::now() - start;
  return took.count() / rounds;
}

void* map(size_t bytes) {
  return mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}
u64 number(const void* at) {
  return reinterpret_cast<u64>(at);
}

class Listener final : public MmuNotifier {
 public:
  bool invalidate_range_start(const InvalidateEvent& event) override {
    return event.range.contains(Hva(0x1000));
  }
  void invalidate_range_end(const InvalidateEvent&) override {}
};

void bell(benchmark::State& state) {
  u64 at = 0x100000;
  for (auto _ : state) {
    change(at, kPageSize, EventKind::kUnmap, [&] { benchmark::DoNotOptimize(at); });
  }
  bench::report(state, {.unit = "ns", .at_most = 50});
}
void BellWithoutSubscriber(benchmark::State& state) {
  bell(state);
}
BENCHMARK(BellWithoutSubscriber);

void BellWithAForeignSubscriber(benchmark::State& state) {
  Listener listener;
  if (!register_notifier(&listener)) return;
  bell(state);
  unregister_notifier(&listener);
}
BENCHMARK(BellWithAForeignSubscriber);

// One page mapped, touched, unmapped, as a small allocation is. The two turn about: one after the
// other they differ by several percent for reasons of their own.
void MunmapTaxOfForeignMemory(benchmark::State& state) {
  Listener listener;
  if (!register_notifier(&listener)) return;
  const auto one = [](bool announced) {
    void* page = map(kPageSize);
    *static_cast<volatile char*>(page) = 1;
    if (!announced) return static_cast<void>(munmap(page, kPageSize));
    change(number(page), kPageSize, EventKind::kUnmap, [&] { munmap(page, kPageSize); });
  };
  std::vector<double> alone;
  std::vector<double> taxed;
  for (auto _ : state) {
    alone.push_back(mean_ns(1, [&] { one(false); }));
    taxed.push_back(mean_ns(1, [&] { one(true); }));
  }
  unregister_notifier(&listener);
  bench::report(state, {.unit = "ns, median",
                        .value = median(taxed),
                        .yardstick = "mmap, touch, munmap alone",
                        .yardstick_value = median(alone),
                        .at_most = 1.05});
}
BENCHMARK(MunmapTaxOfForeignMemory)->Iterations(20'000);

void GuardedLoads(benchmark::State& state) {
  static u64 words[512];
  const double plain = mean_ns(20'000, [] {
    u64 sum = 0;
    for (const volatile u64& word : words) sum += word;
    benchmark::DoNotOptimize(sum);
  });
  for (auto _ : state) {
    u64 sum = 0;
    for (u64 offset = 0; offset < sizeof(words); offset += 8) {
      u64 word = 0;
      if (!load(Hva(number(words) + offset), &word)) break;
      sum += word;
    }
    benchmark::DoNotOptimize(sum);
  }
  bench::report(state, {.unit = "ns of 512",
                        .yardstick = "512 plain loads",
                        .yardstick_value = plain,
                        .at_most = 1.2});
}
BENCHMARK(GuardedLoads);

void CopyOfOnePage(benchmark::State& state) {
  void* page = map(kPageSize);
  static char buffer[kPageSize];
  std::memset(page, 1, kPageSize);
  const double plain = mean_ns(100'000, [&] {
    std::memcpy(buffer, page, kPageSize);
    benchmark::ClobberMemory();
  });
  for (auto _ : state) benchmark::DoNotOptimize(copy_from(buffer, Hva(number(page)), kPageSize));
  munmap(page, kPageSize);
  bench::report(
      state,
      {.unit = "ns", .yardstick = "memcpy of 4 KiB", .yardstick_value = plain, .at_most = 1.5});
}
BENCHMARK(CopyOfOnePage);

// What the backstop costs when it is needed.
void GuardedLoadOfNothing(benchmark::State& state) {
  if (!backstop::install()) return;
  u64 word = 0;
  for (auto _ : state) benchmark::DoNotOptimize(load(Hva(0x10000), &word));
  bench::report(state, {.unit = "ns"});
}
BENCHMARK(GuardedLoadOfNothing);

void FaultinOfAPresentPage(benchmark::State& state) {
  void* page = map(kPageSize);
  std::memset(page, 1, kPageSize);
  const double alone = mean_ns(20'000, [&] { madvise(page, kPageSize, 22); });
  for (auto _ : state) benchmark::DoNotOptimize(faultin(Hva(number(page)), Access::kRead));
  munmap(page, kPageSize);
  bench::report(state, {.unit = "ns",
                        .yardstick = "MADV_POPULATE_READ alone",
                        .yardstick_value = alone,
                        .at_most = 1.1});
}
BENCHMARK(FaultinOfAPresentPage);

}  // namespace
}  // namespace stagetwo::host

// SPDX-License-Identifier: Apache-2.0
// What a pin costs, per page of a range that is there: beside MADV_POPULATE_WRITE, which makes sure
// of the page and keeps nothing, and beside mlock and munlock.

#include <sys/mman.h>

#include <chrono>
#include <cstring>

#include "bench/report.h"
#include "host/backstop.h"
#include "host/change.h"
#include "host/pin.h"

namespace stagetwo::host {
namespace {

using Clock = std::chrono::steady_clock;

// Nanoseconds a page of one call of `f`, the mean of `rounds`.
template <typename F>
double per_page(int rounds, u64 pages, F&& f) {
  const auto start = Clock::now();
  for (int i = 0; i < rounds; ++i) f();
  const std::chrono::duration<double, std::nano> took = Clock::now() - start;
  return took.count() / rounds / static_cast<double>(pages);
}

void pin_and_unpin(benchmark::State& state, u64 pages) {
  if (!backstop::install()) return;
  const u64 bytes = pages * kPageSize;
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  std::memset(memory, 1, bytes);
  const HvaRange range(Hva(reinterpret_cast<u64>(memory)), bytes);
  const int rounds = pages > 64 ? 200 : 20'000;
  const double populated = per_page(rounds, pages, [&] { madvise(memory, bytes, 23); });
  double took = 0;
  for (auto _ : state) {
    took = per_page(rounds, pages, [&] {
      FrameRun runs[4];
      const auto pinned = pin_pages(range, {.write = true}, runs, 4);
      for (unsigned i = 0; pinned && i < pinned->runs; ++i) unpin_pages(runs[i]);
    });
  }
  const double locked = per_page(rounds, pages, [&] {
    static_cast<void>(mlock(memory, bytes));
    static_cast<void>(munlock(memory, bytes));
  });
  munmap(memory, bytes);
  bench::report(state, {.unit = "ns a page",
                        .value = took,
                        .yardstick = "MADV_POPULATE_WRITE of them",
                        .yardstick_value = populated});
  state.counters["mlock_munlock"] = locked;
}

void PinOfOnePage(benchmark::State& state) {
  pin_and_unpin(state, 1);
}
BENCHMARK(PinOfOnePage)->Iterations(1);

void PinOf2MiB(benchmark::State& state) {
  pin_and_unpin(state, 512);
}
BENCHMARK(PinOf2MiB)->Iterations(1);

}  // namespace
}  // namespace stagetwo::host

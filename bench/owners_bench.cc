// SPDX-License-Identifier: Apache-2.0
// What taking a page away and bringing it back costs, one by one and in runs, beside the bare
// system calls that move it. (host: absent pages.)

#include <sys/mman.h>

#include <chrono>
#include <cstring>

#include "bench/report.h"
#include "host/backstop.h"
#include "host/page_owner.h"
#include "host/shared_objects.h"
#include "host/userfault.h"

namespace stagetwo::host {
namespace {

using Clock = std::chrono::steady_clock;
constexpr size_t kPages = 4096;

u8* map(int flags) {
  void* at =
      mmap(nullptr, kPages * kPageSize, PROT_READ | PROT_WRITE, flags | MAP_ANONYMOUS, -1, 0);
  return static_cast<u8*>(at);
}
Hva address(const u8* at) {
  return Hva(reinterpret_cast<u64>(at));
}

// A place for each page, kept apart from what the kernel may merge.
class Keeper final : public PageOwner {
 public:
  Keeper(Hva first, bool runs) : first_(first), runs_(runs), places_(address(map(MAP_PRIVATE))) {
    prepare_places(HvaRange(places_, kPages * kPageSize));
  }
  ~Keeper() { munmap(reinterpret_cast<void*>(places_.raw()), kPages * kPageSize); }
  bool take(const AbsentPage& page, PageExit& exit) override { return exit.to(place(page)); }
  BringBack bring_back(const AbsentPage& page, PageEntry& entry) override {
    return entry.from(place(page)) ? BringBack::kBack : BringBack::kRetry;
  }
  void discard(const AbsentPage&) override {}
  unsigned take_run(const AbsentPage& first, unsigned, PageExit& exit) override {
    return runs_ ? exit.run_to(place(first)) : 0;
  }
  unsigned bring_back_run(const AbsentPage& first, unsigned, PageEntry& entry) override {
    return runs_ ? entry.run_from(place(first)) : 0;
  }

 private:
  Hva place(const AbsentPage& page) const { return places_ + (page.at - first_); }
  Hva first_;
  bool runs_;
  Hva places_;
};

struct Prices {
  double take = 0;
  double back = 0;
};

// Per page, of taking and bringing back everything `batch` pages at a time.
Prices prices(benchmark::State& state, int flags, unsigned batch, bool runs) {
  using Nanoseconds = std::chrono::duration<double, std::nano>;
  Nanoseconds taking{}, bringing{};
  double pages = 0;
  u8* memory = map(flags);
  if (flags == MAP_SHARED) shared_memory_mapped(address(memory));
  std::memset(memory, 1, kPages * kPageSize);
  {
    Keeper keeper(address(memory), runs);
    const Which which = flags == MAP_SHARED ? Which::kAll : Which::kPresent;
    for (auto _ : state) {
      const auto start = Clock::now();
      u64 taken = 0;
      for (size_t i = 0; i < kPages; i += batch) {
        const HvaRange part(address(memory + i * kPageSize), batch * kPageSize);
        const auto now = take_away(part, &keeper, nullptr, which);
        taken += now ? *now : 0;
      }
      const auto half = Clock::now();
      for (size_t i = 0; i < kPages; i += batch) {
        bring_back_range(HvaRange(address(memory + i * kPageSize), batch * kPageSize));
      }
      taking += half - start;
      bringing += Clock::now() - half;
      pages += static_cast<double>(taken);
      if (taken != kPages) state.SkipWithError("pages stayed");
    }
  }
  munmap(memory, kPages * kPageSize);
  return {taking.count() / pages, bringing.count() / pages};
}

// The bare move of `batch` pages there and back, per page.
double bare_move(unsigned batch) {
  u8* memory = map(MAP_PRIVATE);
  u8* places = map(MAP_PRIVATE);
  std::memset(memory, 1, kPages * kPageSize);
  double took = 0;
  if (userfault::open() && userfault::watch(HvaRange(address(memory), kPages * kPageSize)) &&
      userfault::watch_protection(HvaRange(address(places), kPages * kPageSize))) {
    const auto start = Clock::now();
    u64 moved = 0;
    for (size_t i = 0; i < kPages * kPageSize; i += batch * kPageSize) {
      moved += userfault::move_run(address(places + i), address(memory + i), batch);
    }
    for (size_t i = 0; i < kPages * kPageSize; i += batch * kPageSize) {
      moved += userfault::move_run(address(memory + i), address(places + i), batch);
    }
    benchmark::DoNotOptimize(moved);
    const std::chrono::duration<double, std::nano> all = Clock::now() - start;
    took = all.count() / kPages;
  }
  munmap(memory, kPages * kPageSize);
  munmap(places, kPages * kPageSize);
  return took;
}

void there_and_back(benchmark::State& state, int flags, unsigned batch, bool runs) {
  if (!backstop::install()) return state.SkipWithError("no backstop");
  const double bare = bare_move(batch);
  const Prices price = prices(state, flags, batch, runs);
  state.counters["take_ns"] = price.take;
  state.counters["back_ns"] = price.back;
  bench::report(state, {.unit = "ns",
                        .value = price.take + price.back,
                        .yardstick = "bare UFFDIO_MOVE there and back",
                        .yardstick_value = bare});
}

void PageTakenAndBackOneByOne(benchmark::State& state) {
  there_and_back(state, MAP_PRIVATE, 1, false);
}
BENCHMARK(PageTakenAndBackOneByOne)->Iterations(5);
void PageTakenAndBackOfABatchOf256(benchmark::State& state) {
  there_and_back(state, MAP_PRIVATE, 256, false);
}
BENCHMARK(PageTakenAndBackOfABatchOf256)->Iterations(5);
void PageTakenAndBackOfRunsOf64(benchmark::State& state) {
  there_and_back(state, MAP_PRIVATE, 256, true);
}
BENCHMARK(PageTakenAndBackOfRunsOf64)->Iterations(5);
void SharedPageTakenAndBackOneByOne(benchmark::State& state) {
  there_and_back(state, MAP_SHARED, 1, false);
}
BENCHMARK(SharedPageTakenAndBackOneByOne)->Iterations(5);
void SharedPageTakenAndBackOfABatchOf256(benchmark::State& state) {
  there_and_back(state, MAP_SHARED, 256, false);
}
BENCHMARK(SharedPageTakenAndBackOfABatchOf256)->Iterations(5);

}  // namespace
}  // namespace stagetwo::host

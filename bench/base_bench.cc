// SPDX-License-Identifier: Apache-2.0
// The arena against the C library's allocator, the containers against the standard ones, and what a
// trace event and a failpoint cost when they are off.

#include <chrono>
#include <cstdlib>
#include <unordered_map>

#include "base/alloc.h"
#include "base/hash_map.h"
#include "base/interval_map.h"
#include "base/sys.h"
#include "base/trace.h"
#include "bench/report.h"

namespace stagetwo {
namespace {

template <typename F>
double time_of(int rounds, F&& body) {
  const auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < rounds; ++i) body(i);
  const std::chrono::duration<double, std::nano> took = std::chrono::steady_clock::now() - start;
  return took.count() / rounds;
}

void ArenaAllocFree(benchmark::State& state) {
  const auto bytes = static_cast<size_t>(state.range(0));
  for (auto _ : state) {
    void* block = alloc(bytes, 16, "bench");
    benchmark::DoNotOptimize(block);
    dealloc(block, bytes);
  }
  const double libc = time_of(1'000'000, [bytes](int) {
    void* block = std::malloc(bytes);
    benchmark::DoNotOptimize(block);
    std::free(block);
  });
  bench::report(
      state,
      {.unit = "ns", .yardstick = "malloc and free", .yardstick_value = libc, .at_most = 10});
}
BENCHMARK(ArenaAllocFree)->Arg(64)->Arg(1024);

void HashMapFind(benchmark::State& state) {
  HashMap<u64, u64> map;
  std::unordered_map<u64, u64> standard;
  for (u64 i = 0; i < 10'000; ++i) {
    if (!map.insert(i * 4096, i)) state.SkipWithError("no memory");
    standard.emplace(i * 4096, i);
  }
  u64 key = 0;
  for (auto _ : state) {
    key = (key + 7919) % 10'000;
    benchmark::DoNotOptimize(map.find(key * 4096));
  }
  const double other = time_of(1'000'000, [&](int) {
    key = (key + 7919) % 10'000;
    benchmark::DoNotOptimize(standard.find(key * 4096));
  });
  bench::report(
      state,
      {.unit = "ns", .yardstick = "std::unordered_map", .yardstick_value = other, .at_most = 1.5});
}
BENCHMARK(HashMapFind);

void IntervalMapFind(benchmark::State& state) {
  IntervalMap<u64, int> map;
  for (u64 i = 0; i < 32'764; ++i) {
    if (!map.insert(i * 2, i * 2 + 1, 1)) state.SkipWithError("no memory");
  }
  u64 key = 0;
  for (auto _ : state) {
    key = (key + 7919) % 32'764;
    benchmark::DoNotOptimize(map.find(key * 2));
  }
  bench::report(state, {.unit = "ns", .at_most = 1000});
}
BENCHMARK(IntervalMapFind);

void TraceOff(benchmark::State& state) {
  for (auto _ : state) {
    trace::emit(trace::Event::kvm_exit, trace::Room::vcpu, 1, 2, 3, 4);
    benchmark::ClobberMemory();
  }
  bench::report(state, {.unit = "ns", .at_most = 2});
}
BENCHMARK(TraceOff);

void TraceOn(benchmark::State& state) {
  if (!trace::start()) state.SkipWithError("no memory");
  for (auto _ : state) trace::emit(trace::Event::kvm_exit, trace::Room::vcpu, 1, 2, 3, 4);
  trace::stop();
  bench::report(state, {.unit = "ns", .at_most = 200});
}
BENCHMARK(TraceOn);

void OwnSystemCall(benchmark::State& state) {
  for (auto _ : state) benchmark::DoNotOptimize(sys::getpid());
  bench::report(state, {.unit = "ns"});
}
BENCHMARK(OwnSystemCall);

}  // namespace
}  // namespace stagetwo

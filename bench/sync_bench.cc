// SPDX-License-Identifier: Apache-2.0
// What the protocols cost when nobody is in the way; the yardstick is one locked instruction.

#include <chrono>

#include "bench/report.h"
#include "sync/ack_line.h"
#include "sync/asymmetric.h"
#include "sync/epoch.h"
#include "sync/invalidation_gate.h"

namespace stagetwo::sync {
namespace {

// Nanoseconds of one uncontended read-modify-write on this machine.
double locked_instruction() {
  static const double ns = [] {
    Atomic<u64> word{0};
    constexpr int kRounds = 2'000'000;
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < kRounds; ++i) word.fetch_add(1);
    const std::chrono::duration<double, std::nano> took = std::chrono::steady_clock::now() - start;
    return took.count() / kRounds;
  }();
  return ns;
}

void report_against_lock(benchmark::State& state, double at_most) {
  bench::report(state, {.unit = "ns",
                        .yardstick = "one locked instruction",
                        .yardstick_value = locked_instruction(),
                        .at_most = at_most});
}

void MutexLockUnlock(benchmark::State& state) {
  Mutex lock(Rank::kLeaf);
  for (auto _ : state) {
    const MutexGuard guard(lock);
    benchmark::ClobberMemory();
  }
  report_against_lock(state, 4);
}
BENCHMARK(MutexLockUnlock);

void SharedLockUnlock(benchmark::State& state) {
  SharedMutex lock(Rank::kLeaf);
  for (auto _ : state) {
    const SharedGuard guard(lock);
    benchmark::ClobberMemory();
  }
  report_against_lock(state, 4);
}
BENCHMARK(SharedLockUnlock);

void AckPoll(benchmark::State& state) {
  AckSet set;
  AckLine line;
  set.add(line);
  static_cast<void>(line.enter());
  for (auto _ : state) {
    bool asked = line.poll();
    benchmark::DoNotOptimize(asked);
    benchmark::ClobberMemory();
  }
  line.leave();
  set.remove(line);
  report_against_lock(state, 1);
}
BENCHMARK(AckPoll);

void AckEnterLeave(benchmark::State& state) {
  AckSet set;
  AckLine line;
  set.add(line);
  for (auto _ : state) {
    bool asked = line.enter();
    benchmark::DoNotOptimize(asked);
    line.leave();
  }
  set.remove(line);
  report_against_lock(state, 4);
}
BENCHMARK(AckEnterLeave);

// A barrier over `lines` lines that are outside.
void BarrierNobodyRuns(benchmark::State& state) {
  AckSet set;
  AckLine line[16];
  const auto lines = static_cast<size_t>(state.range(0));
  for (size_t i = 0; i < lines; ++i) set.add(line[i]);
  for (auto _ : state) set.barrier();
  for (size_t i = 0; i < lines; ++i) set.remove(line[i]);
  report_against_lock(state, 8 + 3 * static_cast<double>(lines));
}
BENCHMARK(BarrierNobodyRuns)->Arg(1)->Arg(4)->Arg(16);

void GateBeginEnd(benchmark::State& state) {
  InvalidationGate gate;
  for (auto _ : state) {
    gate.begin(1, 2);
    gate.end();
  }
  report_against_lock(state, 12);
}
BENCHMARK(GateBeginEnd);

void GateCheck(benchmark::State& state) {
  InvalidationGate gate;
  const auto snapshot = gate.snapshot();
  for (auto _ : state) {
    bool retry = gate.must_retry(snapshot, 1);
    benchmark::DoNotOptimize(retry);
    benchmark::ClobberMemory();
  }
  report_against_lock(state, 1);
}
BENCHMARK(GateCheck);

void RetireAndFlush(benchmark::State& state) {
  AckSet set;
  EpochDomain domain(set);
  AckLine line;
  set.add(line);
  u64 retired = 0;
  for (auto _ : state) {
    domain.retire(&retired, [](void*) {});
    if (++retired % 64 == 0) domain.synchronize();
  }
  domain.synchronize();
  set.remove(line);
  report_against_lock(state, 8);
}
BENCHMARK(RetireAndFlush);

}  // namespace
}  // namespace stagetwo::sync

// SPDX-License-Identifier: Apache-2.0
// Faults, invalidations and slot calls; the yardsticks are what the host itself charges for the
// same.

#include <sched.h>
#include <sys/mman.h>
#include <time.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#include "bench/report.h"
#include "bench/timing.h"
#include "host/backstop.h"
#include "host/change.h"
#include "stage2/address_space.h"

namespace stagetwo::stage2 {
namespace {

using bench::Clock;
using bench::median;
using bench::since_ns;
constexpr u64 kGpa = 0x100000;
constexpr int kPopulateRead = 22;
constexpr int kPopulateWrite = 23;

void* map(size_t bytes) {
  return mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
              -1, 0);
}

// One vCPU of a VM; everything that asks the fault path of this file goes through here.
struct Seat {
  GuestMemory& memory;
  Box<MmuContext> context;
  sync::AckLine line;

  explicit Seat(GuestMemory& of) : memory(of), context(std::move(*of.new_context())) {
    memory.lines().add(line);
  }
  ~Seat() { memory.lines().remove(line); }
  // One access as vcpu makes it, from a TLB miss on.
  void access(u64 offset, Access kind) {
    Fault fault{};
    fault.gpa = Gpa(kGpa + offset);
    fault.access = kind;
    for (;;) {
      {
        const sync::RunningSection running(line);
        if (running.must_flush()) memory.flushed(*context);
        if (memory.translate(*context, fault) == Walk::Kind::kHit) return;
      }
      const FaultOutcome outcome = memory.handle_fault(*context, fault);
      if (outcome != FaultOutcome::kFixed && outcome != FaultOutcome::kSpurious &&
          outcome != FaultOutcome::kRetry) {
        std::abort();
      }
    }
  }
  void access_all(u64 from, u64 to, Access kind) {
    for (u64 offset = from; offset < to; offset += kPageSize) access(offset, kind);
  }
};

// A VM with one slot and one vCPU.
struct Vm {
  size_t bytes;
  void* at;
  Box<GuestMemory> memory;
  Box<Seat> seat;

  explicit Vm(size_t size, u32 flags = 0) : bytes(size), at(map(size)) {
    static_cast<void>(host::backstop::install());
    memory = std::move(*GuestMemory::create(SlotPolicy{}));
    set(0, kGpa, size, flags);
    seat = std::move(*make_box<Seat>("bench.seat", *memory));
  }
  ~Vm() {
    seat.reset();
    memory.reset();
    munmap(at, bytes);
  }
  void set(u32 id, u64 gpa, u64 size, u32 flags = 0) {
    Region region;
    region.slot = id;
    region.gpa = gpa;
    region.size = size;
    region.flags = flags;
    region.hva = reinterpret_cast<u64>(at);
    if (!memory->slots().set_region(region)) std::abort();
  }
  void access(u64 offset, Access kind) { seat->access(offset, kind); }
  void forget() {
    host::change(reinterpret_cast<u64>(at), kPageSize, host::EventKind::kProtection, [] {});
  }
  [[nodiscard]] host::InvalidateEvent event_of_all() const {
    return {{Hva(reinterpret_cast<u64>(at)), bytes}, host::EventKind::kUnmap};
  }
};

// A TLB miss whose entry stands in stage 2: the host is not asked.
void RefaultOfAPageKnownResident(benchmark::State& state) {
  Vm vm(64 * kPageSize);
  vm.access(0, Access::kWrite);
  for (auto _ : state) vm.access(0, Access::kWrite);
  bench::report(state, {.unit = "ns", .at_most = 150});
}
BENCHMARK(RefaultOfAPageKnownResident);

// After an invalidation that left the page where it was. The two are measured turn about.
void RefaultOfAPageNotKnown(benchmark::State& state) {
  Vm vm(64 * kPageSize);
  vm.access(0, Access::kWrite);
  std::vector<double> populate;
  std::vector<double> refault;
  for (auto _ : state) {
    auto start = Clock::now();
    madvise(vm.at, kPageSize, kPopulateRead);
    populate.push_back(since_ns(start));
    vm.forget();
    start = Clock::now();
    vm.access(0, Access::kRead);
    refault.push_back(since_ns(start));
  }
  bench::report(state, {.unit = "ns, median",
                        .value = median(refault),
                        .yardstick = "1.2 x MADV_POPULATE_READ + 150 ns",
                        .yardstick_value = 1.2 * median(populate) + 150,
                        .at_most = 1});
}
BENCHMARK(RefaultOfAPageNotKnown)->Iterations(20'000);

// Processor time of this thread, so that a figure holds on a machine that does something else as
// well.
double thread_ns() {
  timespec at{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &at);
  return static_cast<double>(at.tv_sec) * 1e9 + static_cast<double>(at.tv_nsec);
}

// Puts the calling thread on the `index`-th processor that it may use.
void stay_on(unsigned index) {
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof(allowed), &allowed) != 0) std::abort();
  for (unsigned cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &allowed) || index-- != 0) continue;
    cpu_set_t own;
    CPU_ZERO(&own);
    CPU_SET(cpu, &own);
    if (sched_setaffinity(0, sizeof(own), &own) != 0) std::abort();
    return;
  }
  std::abort();
}

// Times `work(thread)` of each thread on a processor of its own, from the beginning of the first
// one to the end of the last one: what one of them did before another got its processor is not
// free. Where they run is not left to the scheduler: a placement that it mends after a few
// milliseconds is most of such a run.
template <typename F>
double together_ns(unsigned threads, F&& work) {
  std::atomic<unsigned> missing{threads};
  std::vector<Clock::time_point> begun(threads);
  std::vector<Clock::time_point> ended(threads);
  std::vector<std::thread> workers;
  for (unsigned i = 0; i < threads; ++i) {
    workers.emplace_back([&, i] {
      stay_on(i);
      missing.fetch_sub(1);
      while (missing.load() != 0) {
      }
      begun[i] = Clock::now();
      work(i);
      ended[i] = Clock::now();
    });
  }
  for (std::thread& worker : workers) worker.join();
  const auto last = *std::max_element(ended.begin(), ended.end());
  const auto first = *std::min_element(begun.begin(), begun.end());
  return std::chrono::duration<double, std::nano>(last - first).count();
}

// Faults a second of `threads` vCPUs that have run before, each over its own part of memory the
// host has already.
double faults_per_second(unsigned threads) {
  constexpr u64 kShare = 64 << 20;
  Vm vm(2 * kShare);
  madvise(vm.at, vm.bytes, kPopulateWrite);
  std::vector<Box<Seat>> seats;
  for (unsigned i = 0; i < threads; ++i) {
    seats.push_back(std::move(*make_box<Seat>("bench.seat", *vm.memory)));
    seats[i]->access(i * kShare, Access::kWrite);
  }
  const double took = together_ns(threads, [&](unsigned i) {
    seats[i]->access_all(i * kShare + kPageSize, (i + 1) * kShare, Access::kWrite);
  });
  return threads * static_cast<double>(kShare / kPageSize - 1) / took * 1e9;
}

// The same with a VM for each thread: two of these share nothing of ours, so what they lose they
// lose to the machine. Virtual processors that are two threads of one core lose a third here and
// nothing in additions, which wait for each other more than for the core.
double faults_per_second_of_vms(unsigned threads) {
  constexpr u64 kShare = 64 << 20;
  std::vector<std::unique_ptr<Vm>> vms;
  for (unsigned i = 0; i < threads; ++i) {
    vms.push_back(std::make_unique<Vm>(kShare));
    madvise(vms[i]->at, vms[i]->bytes, kPopulateWrite);
    vms[i]->access(0, Access::kWrite);
  }
  const double took = together_ns(
      threads, [&](unsigned i) { vms[i]->seat->access_all(kPageSize, kShare, Access::kWrite); });
  return threads * static_cast<double>(kShare / kPageSize - 1) / took * 1e9;
}

// Additions a second, of registers alone: what a second processor can add at all, where both share
// a budget of power or are not processors of their own.
double additions_per_second(unsigned threads) {
  constexpr u64 kRounds = 1'000'000;
  const double took = together_ns(threads, [](unsigned) {
    u64 sums[4] = {};
    for (u64 round = 0; round < kRounds; ++round) {
      for (u64& sum : sums) benchmark::DoNotOptimize(sum += round);
    }
  });
  return threads * 4 * static_cast<double>(kRounds) / took * 1e9;
}

template <typename F>
void compare_two_with_one(benchmark::State& state, const char* unit, double at_least, F&& rate) {
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof(allowed), &allowed) != 0 || CPU_COUNT(&allowed) < 2) {
    return state.SkipWithError("wants two processors");
  }
  std::vector<double> one;
  std::vector<double> two;
  for (auto _ : state) {  // turn about
    one.push_back(rate(1));
    two.push_back(rate(2));
  }
  bench::report(state, {.unit = unit,
                        .value = median(two),
                        .yardstick = "one thread",
                        .yardstick_value = median(one),
                        .at_least = at_least});
}

void TwoThreadsFaultingDisjointRanges(benchmark::State& state) {
  compare_two_with_one(state, "faults/s", 1.7, faults_per_second);
}
BENCHMARK(TwoThreadsFaultingDisjointRanges)->Iterations(15)->UseRealTime();

void TwoThreadsOfTwoVms(benchmark::State& state) {
  compare_two_with_one(state, "faults/s", bench::kNone, faults_per_second_of_vms);
}
BENCHMARK(TwoThreadsOfTwoVms)->Iterations(15)->UseRealTime();

void TwoThreadsAdding(benchmark::State& state) {
  compare_two_with_one(state, "additions/s", bench::kNone, additions_per_second);
}
BENCHMARK(TwoThreadsAdding)->Iterations(15)->UseRealTime();

// Read faults of memory that was never written: the host's page of zeros, so that the gigabyte
// takes none.
void ZapOfAGigabyteOf4KiBEntries(benchmark::State& state) {
  std::vector<double> times;
  for (auto _ : state) {
    Vm vm(1 << 30);
    madvise(vm.at, vm.bytes, MADV_NOHUGEPAGE);
    vm.seat->access_all(0, vm.bytes, Access::kRead);
    const auto start = Clock::now();
    const bool engaged = vm.memory->invalidate_range_start(vm.event_of_all());
    if (engaged) vm.memory->invalidate_range_end(vm.event_of_all());
    times.push_back(since_ns(start) / 1e6);
    if (!engaged) std::abort();
  }
  bench::report(state, {.unit = "ms", .value = median(times), .at_most = 3});
}
BENCHMARK(ZapOfAGigabyteOf4KiBEntries)->Iterations(3);

// Tables and their headers while a gigabyte is mapped page by page, those in a vCPU's hand
// included. What the pool has reserved beyond them is address space, and memory only when it is
// used.
void TableMemoryOfAGigabyteOf4KiBEntries(benchmark::State& state) {
  double percent = 0;
  for (auto _ : state) {
    Vm vm(1 << 30);
    madvise(vm.at, vm.bytes, MADV_NOHUGEPAGE);
    vm.seat->access_all(0, vm.bytes, Access::kRead);
    const u64 grown = vm.memory->tdp().tables().live() * (kPageSize + sizeof(TablePage));
    percent = 100 * static_cast<double>(grown) / static_cast<double>(vm.bytes);
  }
  bench::report(state, {.unit = "% of what is mapped", .value = percent, .at_most = 0.25});
}
BENCHMARK(TableMemoryOfAGigabyteOf4KiBEntries)->Iterations(1);

void FaultOfAFreshPage(benchmark::State& state) {
  constexpr u64 kPages = 16'384;
  std::vector<double> host_cost;
  std::vector<double> guest_cost;
  for (auto _ : state) {
    auto* plain = static_cast<volatile char*>(map(kPages * kPageSize));
    double start = thread_ns();
    for (u64 page = 0; page < kPages; ++page) plain[page * kPageSize] = 1;
    host_cost.push_back((thread_ns() - start) / kPages);
    munmap(const_cast<char*>(plain), kPages * kPageSize);
    Vm vm(kPages * kPageSize);
    start = thread_ns();
    for (u64 page = 0; page < kPages; ++page) vm.access(page * kPageSize, Access::kWrite);
    guest_cost.push_back((thread_ns() - start) / kPages);
  }
  bench::report(state, {.unit = "ns of its processor a page",
                        .value = median(guest_cost),
                        .yardstick = "the host's own first touch",
                        .yardstick_value = median(host_cost),
                        .at_most = 1.5});
}
BENCHMARK(FaultOfAFreshPage)->Iterations(7);

// The time one word takes from this thread to another and back.
double line_round_trip() {
  std::atomic<u64> ping{0};
  std::atomic<u64> pong{0};
  constexpr u64 kRounds = 20'000;
  std::thread other([&] {
    for (u64 i = 1; i <= kRounds; ++i) {
      while (ping.load() != i) {
      }
      pong.store(i);
    }
  });
  std::vector<double> times;
  for (u64 i = 1; i <= kRounds; ++i) {
    const auto start = Clock::now();
    ping.store(i);
    while (pong.load() != i) {
    }
    times.push_back(since_ns(start));
  }
  other.join();
  return median(times);
}

// Runs on one page as vcpu does: translates it, uses it 64 times between two polls, and faults it
// in again after each flush. `uses` tells that a translation is held.
void run_on_one_page(Seat& seat, std::atomic<u64>& uses, const std::atomic<bool>& stop) {
  Fault fault{};
  fault.gpa = Gpa(kGpa);
  fault.access = Access::kRead;
  u64 word = 0;
  while (!stop.load(std::memory_order_relaxed)) {
    {
      const sync::RunningSection running(seat.line);
      if (running.must_flush()) seat.memory.flushed(*seat.context);
      bool held = seat.memory.translate(*seat.context, fault) == Walk::Kind::kHit;
      while (held && !stop.load(std::memory_order_relaxed)) {
        uses.fetch_add(1);
        for (u64 i = 0; i < 64; ++i) static_cast<void>(host::load(fault.page + 8 * i, &word));
        held = !seat.line.poll();
      }
      seat.memory.flushed(*seat.context);
    }
    static_cast<void>(seat.memory.handle_fault(*seat.context, fault));
  }
}

// A start that takes a page from a vCPU that runs on it, holds its translation, and polls every 64
// accesses.
void InvalidationUnderARunningLine(benchmark::State& state) {
  Vm vm(64 * kPageSize);
  const double round_trip = line_round_trip();
  std::atomic<bool> stop{false};
  std::atomic<u64> uses{0};
  std::thread vcpu([&] { run_on_one_page(*vm.seat, uses, stop); });
  const host::InvalidateEvent event{{Hva(reinterpret_cast<u64>(vm.at)), kPageSize},
                                    host::EventKind::kUnmap};
  std::vector<double> times;
  for (auto _ : state) {
    const u64 before = uses.load();
    while (uses.load() == before) std::this_thread::yield();  // it has refaulted
    const auto start = Clock::now();
    const bool engaged = vm.memory->invalidate_range_start(event);
    times.push_back(since_ns(start));
    if (!engaged) std::abort();
    vm.memory->invalidate_range_end(event);
  }
  stop = true;
  vcpu.join();
  // Who found nothing mapped waited for nobody.
  const stage2::GuestMemory::Counts counts = vm.memory->counts();
  if (counts.flushes_saved * 10 > counts.invalidations) std::abort();
  bench::report(state, {.unit = "ns, median of a start",
                        .value = median(times),
                        .yardstick = "one word there and back",
                        .yardstick_value = round_trip,
                        .at_most = 4});
}
BENCHMARK(InvalidationUnderARunningLine)->Iterations(20'000)->UseRealTime();

void MunmapTaxWithAnIdleVm(benchmark::State& state) {
  Vm vm(64 * kPageSize);
  const auto one = [](bool announced) {
    void* page = map(kPageSize);
    *static_cast<volatile char*>(page) = 1;
    if (!announced) return static_cast<void>(munmap(page, kPageSize));
    host::change(reinterpret_cast<u64>(page), kPageSize, host::EventKind::kUnmap,
                 [&] { munmap(page, kPageSize); });
  };
  std::vector<double> alone;
  std::vector<double> taxed;
  for (auto _ : state) {  // paired, so that the machine's moods hit both
    auto start = Clock::now();
    one(false);
    alone.push_back(since_ns(start));
    start = Clock::now();
    one(true);
    taxed.push_back(since_ns(start));
  }
  bench::report(state, {.unit = "ns, median",
                        .value = median(taxed),
                        .yardstick = "mmap, touch, munmap alone",
                        .yardstick_value = median(alone),
                        .at_most = 1.05});
}
BENCHMARK(MunmapTaxWithAnIdleVm)->Iterations(20'000);

constexpr u32 kManySlots = 32'763;

void SetUpOf32763Slots(benchmark::State& state) {
  std::vector<double> times;
  for (auto _ : state) {
    Vm vm(u64{kManySlots} * kPageSize + kPageSize);
    const auto start = Clock::now();
    for (u32 i = 1; i < kManySlots; ++i) {
      vm.set(i, (u64{1} << 32) + u64{i} * kPageSize, kPageSize);
    }
    times.push_back(since_ns(start) / 1e6);
  }
  bench::report(state, {.unit = "ms", .value = median(times), .at_most = 1000});
}
BENCHMARK(SetUpOf32763Slots)->Iterations(3)->Unit(benchmark::kMillisecond);

void LookupAmong32763Slots(benchmark::State& state) {
  Vm vm(u64{kManySlots} * kPageSize + kPageSize);
  for (u32 i = 1; i < kManySlots; ++i) vm.set(i, (u64{1} << 32) + u64{i} * kPageSize, kPageSize);
  u64 x = 1;
  for (auto _ : state) {
    x = x * 6364136223846793005U + 1442695040888963407U;
    const Memslots::Reader reader(vm.memory->slots());
    benchmark::DoNotOptimize(
        reader.find(0, Gfn((u64{1} << 20) + 1 + (x >> 33) % (kManySlots - 1))));
  }
  bench::report(state, {.unit = "ns"});
}
BENCHMARK(LookupAmong32763Slots);

void SlotCreateAndDelete(benchmark::State& state) {
  Vm vm(64 * kPageSize);
  for (auto _ : state) {
    vm.set(1, u64{1} << 32, kPageSize);
    vm.set(1, 0, 0);
  }
  bench::report(state, {.unit = "ns a pair"});
}
BENCHMARK(SlotCreateAndDelete);

// 1 GiB, nothing dirty: 32 KiB of bitmap.
void DirtyLogOfACleanGigabyte(benchmark::State& state) {
  constexpr size_t kBitmap = 32 << 10;
  Vm vm(1 << 30, kLogDirtyPages);
  void* bitmap = map(kBitmap);
  std::memset(bitmap, 1, kBitmap);
  static char other[kBitmap];
  const auto start = Clock::now();
  for (int i = 0; i < 20'000; ++i) {
    std::memcpy(other, bitmap, kBitmap);
    benchmark::DoNotOptimize(static_cast<char*>(other));
    benchmark::ClobberMemory();
  }
  const double copy = since_ns(start) / 20'000;
  for (auto _ : state) {
    benchmark::DoNotOptimize(
        vm.memory->slots().get_dirty_log(0, Hva(reinterpret_cast<u64>(bitmap))));
  }
  munmap(bitmap, kBitmap);
  bench::report(
      state,
      {.unit = "ns", .yardstick = "memcpy of the bitmap", .yardstick_value = copy, .at_most = 10});
}
BENCHMARK(DirtyLogOfACleanGigabyte);

}  // namespace
}  // namespace stagetwo::stage2

// SPDX-License-Identifier: Apache-2.0
// The dma-engine as a client drives it, by its ring: descriptors a second, and bytes a second
// beside memcpy of the same sizes between the same buffers; what it reaches being mapped, or the
// process's own addresses.
//
// A turn keeps so many moves outstanding all the time: two halves of the ring, of which one is
// filled again when all of it is done, as a client does who wants its copies made and not its
// processor spent on waiting for one. memcpy makes the same moves in the same order on the client's
// thread, turn about with the device: neither finds the buffers in its own first cache. The median
// of the rounds is told. What would otherwise be measured instead:
//
//   waking the device       it sleeps while memcpy has its turn, and its processor forgets where
//                           the pages are: about 0.1 ms a turn whatever the size. So a turn moves
//                           as many bytes of each size, and many; what waking costs is a row of its
//                           own.
//   which processor it is   one may be a quarter slower than the other for a second (that of a
//                           virtual machine shares its core with somebody). A round has client and
//                           device on either.
#include <sched.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <string>
#include <thread>
#include <vector>

#include "bench/report.h"
#include "bench/timing.h"
#include "host/backstop.h"
#include "host/session.h"
#include "sync/futex.h"
#include "vfio/bus.h"
#include "vfio/container.h"
#include "vfio/device.h"
#include "vfio/dsa_format.h"
#include "vfio/queue_device.h"
#include "vfio/registry.h"

namespace stagetwo::vfio {
namespace {

using bench::Clock;
using bench::since_ns;

constexpr u64 kLarge = u64{2} << 20, kIova = u64{1} << 32;
constexpr u64 kRecords = 0, kFrom = kLarge, kTo = 2 * kLarge, kBytes = 3 * kLarge;
constexpr u64 kTurnBytes = u64{512} << 20;
constexpr unsigned kMostTurns = 512, kRounds = 11;

u64 reserve(u64 bytes) {
  void* const at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  return reinterpret_cast<u64>(at);
}

// The processors that this process may use, one after the other, for the thread that asks. Others
// go where the system puts them: not where this one waits.
class Processors {
 public:
  Processors() { static_cast<void>(sched_getaffinity(0, sizeof(all_), &all_)); }
  ~Processors() { static_cast<void>(sched_setaffinity(0, sizeof(all_), &all_)); }
  Processors(const Processors&) = delete;
  Processors& operator=(const Processors&) = delete;
  void next() {
    do {
      now_ = (now_ + 1) % CPU_SETSIZE;
    } while (!CPU_ISSET(now_, &all_));
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(now_, &one);
    static_cast<void>(sched_setaffinity(0, sizeof(one), &one));
  }

 private:
  cpu_set_t all_{};
  unsigned now_ = CPU_SETSIZE - 1;
};

// A bus with one device, a container, memory, and the ring as a client maps it.
class Client {
 public:
  explicit Client(bool shares_addresses) : shares_addresses_(shares_addresses) {
    char name[] = "/tmp/stagetwo-bench-XXXXXX";
    if (mkdtemp(name) == nullptr || !host::backstop::install()) return;
    directory_ = name;
    if (!host::join_session(directory_) || !start_bus()) return;
    const Uuid uuid{{0xbe, 0x9c}};
    const char* const type = shares_addresses ? "dma-engine-sva" : "dma-engine-1";
    if (!create_device(find_type(type), uuid)) return;
    which_ = *find_device(uuid);
    backing_.emplace(*Container::make_file("bench-engine"));
    container_ = *Container::attach(backing_->fd());
    if (!container_->add_group(which_) || !container_->set_type(3)) return;
    device_ = std::move(*Device::open(which_));
    if (!device_->connect(container_.clone())) return;
    memory_ = (reserve(kBytes + kLarge) + kLarge - 1) & ~(kLarge - 1);
    std::memset(bytes(0), 1, kBytes);
    ring_ = reserve(kRingBytes);
    const int both = PROT_READ | PROT_WRITE;
    if (!device_->show(4, 0, kRingBytes, both, Hva(ring_))) return;
    works_ = shares_addresses || container_->map({kIova, kBytes, memory_, 3});
  }
  ~Client() {
    device_.reset();
    if (container_) {
      container_->remove_group(which_);
      container_->closed();
    }
    debug_leave_registry();
    host::debug_leave_session();
    std::filesystem::remove_all(directory_);
  }
  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;

  [[nodiscard]] bool works() const { return works_; }
  [[nodiscard]] u8* bytes(u64 at) const { return reinterpret_cast<u8*>(memory_ + at); }

  // ns of a move while at least `deep` are outstanding. Negative: one failed.
  double device(u64 size, unsigned deep, unsigned turns) {
    bool good = true;
    const auto start = Clock::now();
    for (unsigned turn = 0; turn < turns + 2; ++turn) {
      const u64 half = turn % 2 * deep;
      for (u64 i = deep; turn >= 2 && i-- > 0;) good = await(half + i) && good;
      if (turn < turns) submit(size, half, deep);
    }
    const double each = since_ns(start) / (double{1} * deep * turns);
    return good ? each : -1;
  }
  // ns from submitting one move to a device that sleeps until it is known to be done.
  double wake() {
    const timespec rest{0, 2'000'000};
    nanosleep(&rest, nullptr);
    const auto start = Clock::now();
    submit(64, 0, 1);
    return await(0) ? since_ns(start) : -1;
  }
  [[nodiscard]] double memcpy(u64 size, unsigned deep, unsigned turns) const {
    const auto start = Clock::now();
    for (unsigned turn = 0; turn < turns; ++turn) {
      for (u64 i = 0; i < deep; ++i) {
        const u64 at = place(size, turn % 2 * deep + i);
        std::memcpy(bytes(kTo + at), bytes(kFrom + at), size);
        asm volatile("" ::: "memory");
      }
    }
    return since_ns(start) / (double{1} * deep * turns);
  }

 private:
  static u64 place(u64 size, u64 number) { return number * size % kLarge; }
  [[nodiscard]] Completion* record(u64 number) const {
    return reinterpret_cast<Completion*>(bytes(kRecords)) + number;
  }
  void submit(u64 size, u64 first, u64 count) {
    auto* const head = reinterpret_cast<RingHead*>(ring_);
    auto* const slots = reinterpret_cast<Descriptor*>(ring_ + kRingAt);
    const u64 base = shares_addresses_ ? memory_ : kIova;
    constexpr u32 kMoves = u32{static_cast<u8>(Opcode::kMove)} << 24;
    std::memset(static_cast<void*>(record(first)), 0, count * sizeof(Completion));
    for (u64 i = first; i < first + count; ++i) {
      Descriptor& d = slots[tail_++ % kRingSlots];
      d = {};
      d.flags_opcode = kMoves | kCompletionValid | kRequestCompletion | kBlockOnFault;
      d.completion = base + kRecords + i * sizeof(Completion);
      d.source = base + kFrom + place(size, i);
      d.destination = base + kTo + place(size, i);
      d.size = static_cast<u32>(size);
    }
    __atomic_store_n(&head->tail, tail_, __ATOMIC_SEQ_CST);
    const u8 one[4] = {1};
    const bool asleep = __atomic_load_n(&head->asleep, __ATOMIC_SEQ_CST) != 0;
    if (asleep) device_->write(0, QueueDevice::kDoorbell, one);
  }
  bool await(u64 number) {
    const u8* const status = &record(number)->status;
    u8 now = 0;
    for (unsigned i = 1; (now = __atomic_load_n(status, __ATOMIC_ACQUIRE)) == 0; ++i) {
      if (i % 128 == 0) sched_yield();  // the device may want this processor
    }
    return now == static_cast<u8>(Status::kSuccess);
  }

  const bool shares_addresses_;
  bool works_ = false;
  std::string directory_;
  Listed which_;
  std::optional<host::Backing> backing_;
  sync::Ref<Container> container_;
  sync::Ref<Device> device_;
  u64 memory_ = 0, ring_ = 0;
  u32 tail_ = 0;
};

struct Took {
  double device = 0, memcpy = 0;  // ns of a move
};

Took measure(benchmark::State& state, bool shares_addresses) {
  const u64 size = static_cast<u64>(state.range(0));
  const unsigned deep = size <= kPageSize ? 256 : 32;
  const auto turns = static_cast<unsigned>(std::min<u64>(kTurnBytes / (size * deep), kMostTurns));
  Client client(shares_addresses);
  std::vector<double> device, plain;
  for (auto _ : state) {
    bool works = client.works() && client.device(size, deep, 2) > 0;  // its thread is made here
    Processors processors;
    for (unsigned i = 0; works && i < kRounds; ++i) {
      Took took;
      for (unsigned place = 0; works && place < 2; ++place) {
        processors.next();
        const double each = client.device(size, deep, turns);
        works = each > 0;
        took.device += each / 2;
        took.memcpy += client.memcpy(size, deep, turns) / 2;
      }
      device.push_back(took.device);
      plain.push_back(took.memcpy);
    }
    if (!works) state.SkipWithError("the device does not work");
  }
  return device.empty() ? Took{1, 1} : Took{bench::median(device), bench::median(plain)};
}

void bandwidth(benchmark::State& state, bool shares_addresses) {
  const Took took = measure(state, shares_addresses);
  const auto size = static_cast<double>(state.range(0));
  bench::report(state, {.unit = "GB/s, 32 outstanding",
                        .value = size / took.device,
                        .yardstick = "memcpy",
                        .yardstick_value = size / took.memcpy,
                        .at_least = size >= 65536 ? 0.9 : bench::kNone});
}
void descriptors(benchmark::State& state, bool shares_addresses) {
  const Took took = measure(state, shares_addresses);
  bench::report(state, {.unit = "M descriptors/s", .value = 1000 / took.device, .at_least = 2.0});
}

// A thread that sleeps on a word, is woken and says so: the least that the like can cost.
double wake_a_thread() {
  sync::Atomic<u32> bell{0}, heard{0};
  std::thread sleeper([&] {
    while (bell.load(sync::kAcquire) == 0) sync::futex_wait(bell, 0);
    heard.store(1, sync::kRelease);
  });
  const timespec rest{0, 2'000'000};
  nanosleep(&rest, nullptr);
  const auto start = Clock::now();
  bell.store(1, sync::kRelease);
  sync::futex_wake(bell, 1);
  for (unsigned i = 1; heard.load(sync::kAcquire) == 0; ++i) {
    if (i % 128 == 0) sched_yield();
  }
  const double took = since_ns(start);
  sleeper.join();
  return took;
}

void MoveOfASleepingDevice(benchmark::State& state) {
  Client client(false);
  std::vector<double> device, thread;
  for (auto _ : state) {
    for (unsigned i = 0; client.works() && i < 101; ++i) {
      device.push_back(client.wake());
      thread.push_back(wake_a_thread());
    }
    if (device.empty() || *std::ranges::min_element(device) < 0) {
      return state.SkipWithError("the device does not work");
    }
  }
  bench::report(state, {.unit = "us to its record",
                        .value = bench::median(device) / 1000,
                        .yardstick = "waking a thread",
                        .yardstick_value = bench::median(thread) / 1000});
}

void sizes(benchmark::internal::Benchmark* bench) {
  for (const s64 size : {64, 512, 4096, 65536, 524288, 2 << 20}) bench->Arg(size);
  bench->Iterations(1);
}

void MoveInADomain(benchmark::State& state) {
  bandwidth(state, false);
}
void MoveInSharedAddresses(benchmark::State& state) {
  bandwidth(state, true);
}
void SmallMovesInADomain(benchmark::State& state) {
  descriptors(state, false);
}
void SmallMovesInSharedAddresses(benchmark::State& state) {
  descriptors(state, true);
}
BENCHMARK(SmallMovesInADomain)->Arg(64)->Iterations(1);
BENCHMARK(SmallMovesInSharedAddresses)->Arg(64)->Iterations(1);
BENCHMARK(MoveOfASleepingDevice)->Iterations(1);
BENCHMARK(MoveInADomain)->Apply(sizes);
BENCHMARK(MoveInSharedAddresses)->Apply(sizes);

}  // namespace
}  // namespace stagetwo::vfio

// SPDX-License-Identifier: Apache-2.0
// Private memory: a conversion there and back with a touch on either side, a punch, and what one
// call over a tebibyte costs. The yardsticks are the host's own calls on the same pages.

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>

#include "base/sys.h"
#include "bench/report.h"
#include "host/access.h"
#include "host/backstop.h"
#include "mem/guest_memfd.h"
#include "stage2/address_space.h"

namespace stagetwo::stage2 {
namespace {

constexpr u64 kGpa = u64{1} << 30;
constexpr u64 kTwo = 2 << 20;
constexpr int kPunch = FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE;

// A VM with one slot of both halves, and a vCPU.
struct PrivateVm {
  void* client = nullptr;
  int fd = -1;
  sync::KeptNumber number{sync::KeptNumber::kNone};
  mem::GuestMemfd object{kTwo, number};
  Box<GuestMemory> memory;
  Box<MmuContext> context;
  sync::AckLine line;

  PrivateVm() {
    static_cast<void>(host::backstop::install());
    client = mmap(nullptr, kTwo, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    static_cast<void>(madvise(client, kTwo, MADV_NOHUGEPAGE));
    fd = *sys::memfd_create("bench", MFD_CLOEXEC);
    number.exchange(fd);
    static_cast<void>(sys::ftruncate(fd, kTwo));
    SlotPolicy policy;
    policy.private_memory = policy.guest_memfd = true;
    memory = std::move(*GuestMemory::create(policy));
    Region region;
    region.flags = kGuestMemfd;
    region.gpa = kGpa;
    region.size = kTwo;
    region.hva = reinterpret_cast<u64>(client);
    region.file = &object;
    if (!memory->slots().set_region(region)) std::abort();
    context = std::move(*memory->new_context());
    memory->lines().add(line);
  }
  ~PrivateVm() {
    memory->lines().remove(line);
    context.reset();
    object.release();
    memory.reset();
    static_cast<void>(sys::close(fd));
    munmap(client, kTwo);
  }
  void touch(u64 bytes) {
    for (u64 offset = 0; offset < bytes; offset += kPageSize) {
      Fault fault;
      fault.gpa = Gpa(kGpa + offset);
      fault.access = Access::kWrite;
      for (;;) {
        if (line.enter()) memory->flushed(*context);
        const bool hit = memory->translate(*context, fault) == Walk::Kind::kHit;
        if (hit) static_cast<void>(host::store(fault.page, u64{1}));
        line.leave();
        if (hit) break;
        const FaultOutcome outcome = memory->handle_fault(*context, fault);
        if (outcome == FaultOutcome::kMemoryFault || outcome == FaultOutcome::kToUser) std::abort();
      }
    }
  }
  void convert(u64 bytes, bool to_private) {
    const GfnRange frames(gpa_to_gfn(Gpa(kGpa)), bytes / kPageSize);
    if (!memory->private_memory().set_attributes(frames, to_private)) std::abort();
  }
  void punch(u64 bytes) {
    if (!object.fallocate(kPunch, 0, bytes)) std::abort();
  }
};

// What the host itself takes to give the pages of either half away and touch them again.
double host_round_trip(u64 bytes) {
  const int fd = *sys::memfd_create("yardstick", MFD_CLOEXEC);
  static_cast<void>(sys::ftruncate(fd, kTwo));
  auto* const shared =
      static_cast<volatile char*>(mmap(nullptr, kTwo, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
  constexpr int kRounds = 50;
  const u64 start = sys::monotonic_ns();
  for (int i = 0; i < kRounds; ++i) {
    for (u64 offset = 0; offset < bytes; offset += kPageSize) shared[offset] = 1;
    static_cast<void>(sys::fallocate(fd, kPunch, 0, static_cast<off_t>(bytes)));
  }
  const double each = static_cast<double>(sys::monotonic_ns() - start) / kRounds;
  munmap(const_cast<char*>(shared), kTwo);
  static_cast<void>(sys::close(fd));
  return each;
}

// To private, touch all of it; back, give the private backing away, touch all of it.
void ConvertAndTouch(benchmark::State& state) {
  const auto bytes = static_cast<u64>(state.range(0));
  PrivateVm vm;
  vm.touch(bytes);
  const double yardstick = host_round_trip(bytes);
  for (auto _ : state) {
    vm.convert(bytes, true);
    vm.touch(bytes);
    vm.convert(bytes, false);
    vm.punch(bytes);
    vm.touch(bytes);
  }
  bench::report(state,
                {.unit = "ns", .yardstick = "touch and punch alone", .yardstick_value = yardstick});
}
BENCHMARK(ConvertAndTouch)->Arg(4096)->Arg(2 << 20);

void ConvertATebibyteWithoutSlots(benchmark::State& state) {
  PrivateVm vm;
  const GfnRange frames(Gfn(u64{1} << 30), u64{1} << 28);
  bool to_private = true;
  for (auto _ : state) {
    static_cast<void>(vm.memory->private_memory().set_attributes(frames, to_private));
    to_private = !to_private;
  }
  bench::report(state, {.unit = "ns", .at_most = 10'000});
}
BENCHMARK(ConvertATebibyteWithoutSlots);

void PunchABoundPage(benchmark::State& state) {
  PrivateVm vm;
  vm.convert(kPageSize, true);
  const double yardstick = host_round_trip(kPageSize);
  for (auto _ : state) {
    vm.touch(kPageSize);
    vm.punch(kPageSize);
  }
  bench::report(state,
                {.unit = "ns", .yardstick = "touch and punch alone", .yardstick_value = yardstick});
}
BENCHMARK(PunchABoundPage);

}  // namespace
}  // namespace stagetwo::stage2

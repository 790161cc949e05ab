// SPDX-License-Identifier: Apache-2.0
// What it costs that memory has a limit: a page out, a page back for a vCPU and for the process,
// and finding out which of a gigabyte were used. The yardsticks are lz4, memcpy and userfaultfd
// bare, of the same pages in the same run.

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <lz4.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

#include "bench/kernel_swap.h"
#include "bench/report.h"
#include "bench/timing.h"
#include "host/backstop.h"
#include "host/faultin.h"
#include "host/mmu_notifier.h"
#include "host/page_owner.h"
#include "host/userfault.h"
#include "reclaim/reclaim.h"
#include "reclaim/swapper.h"
#include "stage2/address_space.h"
#include "tests/support/region.h"

namespace stagetwo::reclaim {
namespace {

using bench::Clock;
using bench::median;
using bench::since_ns;
constexpr size_t kPages = 4096;
constexpr size_t kBytes = kPages * kPageSize;

u8* map(size_t bytes) {
  return static_cast<u8*>(mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                               MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
}
Hva address(const u8* at) {
  return Hva(reinterpret_cast<u64>(at));
}

// A quarter of each page is random, so it becomes a third of its size or so.
void fill(u8* at, size_t pages) {
  std::mt19937_64 random(7);
  for (size_t i = 0; i < pages * kPageSize; i += 8) {
    const u64 word = i % 64 < 16 ? random() : i / kPageSize;
    std::memcpy(at + i, &word, 8);
  }
}
std::vector<size_t> here_and_there(size_t pages) {
  std::vector<size_t> order(pages);
  for (size_t i = 0; i < pages; ++i) order[i] = i;
  std::shuffle(order.begin(), order.end(), std::mt19937_64(11));
  return order;
}

// ---- bare ---------------------------------------------------------------------------------------

struct Squeezed {
  std::vector<char> bytes = std::vector<char>(kPages * LZ4_COMPRESSBOUND(kPageSize));
  std::vector<int> sizes = std::vector<int>(kPages);
  char* of(size_t page) { return bytes.data() + page * LZ4_COMPRESSBOUND(kPageSize); }

  explicit Squeezed(const u8* pages) {
    for (size_t i = 0; i < kPages; ++i) {
      sizes[i] = LZ4_compress_default(reinterpret_cast<const char*>(pages) + i * kPageSize, of(i),
                                      kPageSize, LZ4_COMPRESSBOUND(kPageSize));
    }
  }
  void expand(size_t page, char* to) {
    if (LZ4_decompress_safe(of(page), to, sizes[page], kPageSize) != kPageSize) std::abort();
  }
};

// lz4 and memcpy of what it makes, and the drop: 64 pages of the range in one call.
double bare_out(const u8* pages) {
  u8* copy = map(kBytes);
  std::memcpy(copy, pages, kBytes);
  std::vector<char> state(static_cast<size_t>(LZ4_sizeofState()));
  std::vector<char> out(LZ4_COMPRESSBOUND(kPageSize)), kept(kBytes);
  size_t used = 0;
  const auto start = Clock::now();
  for (size_t i = 0; i < kPages; ++i) {
    const int size = LZ4_compress_fast_extState(
        state.data(), reinterpret_cast<const char*>(copy) + i * kPageSize, out.data(), kPageSize,
        static_cast<int>(out.size()), 1);
    std::memcpy(kept.data() + used, out.data(), static_cast<size_t>(size));
    used += static_cast<size_t>(size);
    if (i % 64 == 63) madvise(copy + (i - 63) * kPageSize, 64 * kPageSize, MADV_DONTNEED);
  }
  const double took = since_ns(start);
  benchmark::DoNotOptimize(kept.data());
  munmap(copy, kBytes);
  return took / kPages;
}

// UFFDIO_COPY of what lz4 expands, by the thread that wants it.
double bare_back(Squeezed& squeezed) {
  u8* memory = map(kBytes);
  if (!host::userfault::watch(HvaRange(address(memory), kBytes))) std::abort();
  alignas(64) char page[kPageSize];
  std::vector<double> each;
  for (const size_t i : here_and_there(kPages)) {
    const auto start = Clock::now();
    squeezed.expand(i, page);
    if (!host::userfault::copy(address(memory + i * kPageSize), page)) std::abort();
    each.push_back(since_ns(start));
  }
  munmap(memory, kBytes);
  return median(each);
}

// A touch that a thread answers, as small as can be: a userfaultfd of its own, a read, lz4, a copy.
class BareHandler {
 public:
  BareHandler(Squeezed& squeezed, size_t pages) : squeezed_(squeezed) {
    fd_ = static_cast<int>(syscall(SYS_userfaultfd, O_CLOEXEC));
    uffdio_api api{UFFD_API, 0, 0};
    uffdio_register all{{reinterpret_cast<u64>(memory_), kBytes}, UFFDIO_REGISTER_MODE_MISSING, 0};
    works_ =
        fd_ >= 0 && ioctl(fd_, UFFDIO_API, &api) == 0 && ioctl(fd_, UFFDIO_REGISTER, &all) == 0;
    if (works_) thread_ = std::thread([this, pages] { serve(pages); });
  }
  ~BareHandler() {
    if (works_) thread_.join();
    close(fd_);
    munmap(memory_, kBytes);
  }
  [[nodiscard]] bool works() const { return works_; }
  [[nodiscard]] u8* page(size_t i) const { return memory_ + i * kPageSize; }

 private:
  void serve(size_t pages) {
    alignas(64) char page[kPageSize];
    for (size_t served = 0; served < pages; ++served) {
      uffd_msg message;
      if (read(fd_, &message, sizeof(message)) != sizeof(message)) std::abort();
      const u64 at = message.arg.pagefault.address & ~u64{kPageSize - 1};
      squeezed_.expand((at - reinterpret_cast<u64>(memory_)) / kPageSize, page);
      uffdio_copy copy{at, reinterpret_cast<u64>(page), kPageSize, 0, 0};
      if (ioctl(fd_, UFFDIO_COPY, &copy) != 0) std::abort();
    }
  }
  Squeezed& squeezed_;
  u8* memory_ = map(kBytes);
  int fd_ = -1;
  bool works_ = false;
  std::thread thread_;
};

double touched_ns(const u8* at) {
  const auto start = Clock::now();
  benchmark::DoNotOptimize(*static_cast<const volatile u8*>(at));
  return since_ns(start);
}

// ---- ours ---------------------------------------------------------------------------------------

struct Swapped {
  u8* memory = map(kBytes);
  SpanTable spans;
  Swapper swapper{spans, nullptr};

  Swapped() {
    fill(memory, kPages);
    if (!host::backstop::install() || !host::userfault::open() || !swapper.init() ||
        !spans.add(range())) {
      std::abort();
    }
  }
  ~Swapped() {
    host::bring_back_range(range());
    munmap(memory, kBytes);
  }
  [[nodiscard]] HvaRange range() const { return HvaRange(address(memory), kBytes); }
  void take_all() {
    const HvaRange span = range();
    for (size_t i = 0; i < kPages; i += kMostAtOnce) {
      const HvaRange run(address(memory + i * kPageSize), kMostAtOnce * kPageSize);
      const auto taken = host::take_away(run, &swapper, nullptr, host::Which::kReclaim, &span);
      if (!taken || *taken != kMostAtOnce) std::abort();
      if (!swapper.has_room() && swapper.settle() != 0) std::abort();
    }
    if (swapper.settle() != 0) std::abort();
  }
};

void PageOut(benchmark::State& state) {
  if (!host::userfault::open()) return state.SkipWithError("userfaultfd is denied here");
  Swapped guest;
  std::vector<double> ours, bare;
  for (auto _ : state) {
    bare.push_back(bare_out(guest.memory));
    const auto start = Clock::now();
    guest.take_all();
    ours.push_back(since_ns(start) / kPages);
    host::bring_back_range(guest.range());
  }
  bench::report(state, {.unit = "ns",
                        .value = median(ours),
                        .yardstick = "lz4, memcpy, MADV_DONTNEED of 64",
                        .yardstick_value = median(bare)});
}
BENCHMARK(PageOut)->Iterations(5);

void RefaultOfAVcpu(benchmark::State& state) {
  if (!host::userfault::open()) return state.SkipWithError("userfaultfd is denied here");
  Swapped guest;
  Squeezed squeezed(guest.memory);
  std::vector<double> ours, bare;
  for (auto _ : state) {
    bare.push_back(bare_back(squeezed));
    guest.take_all();
    std::vector<double> each;
    for (const size_t i : here_and_there(kPages)) {
      const auto start = Clock::now();
      const auto there =
          host::faultin(address(guest.memory + i * kPageSize), Access::kWrite, host::Ask::kTouch);
      each.push_back(since_ns(start));
      if (!there) std::abort();
    }
    ours.push_back(median(each));
  }
  bench::report(state, {.unit = "ns",
                        .value = median(ours),
                        .yardstick = "lz4 and UFFDIO_COPY",
                        .yardstick_value = median(bare),
                        .at_most = 1.25});
}
BENCHMARK(RefaultOfAVcpu)->Iterations(7);

void RefaultOfTheProcess(benchmark::State& state) {
  if (!host::userfault::open()) return state.SkipWithError("userfaultfd is denied here");
  constexpr size_t kTouches = 1024;
  Swapped guest;
  Squeezed squeezed(guest.memory);
  // One of each in turn: what both wait for is mostly the scheduler, which changes from one moment
  // to the next and with what else runs.
  std::vector<double> ours, bare;
  for (auto _ : state) {
    BareHandler handler(squeezed, kTouches);
    if (!handler.works()) return state.SkipWithError("userfaultfd serves user mode only here");
    guest.take_all();
    std::vector<size_t> order = here_and_there(kPages);
    order.resize(kTouches);
    for (const size_t i : order) {
      bare.push_back(touched_ns(handler.page(i)));
      ours.push_back(touched_ns(guest.memory + i * kPageSize));
    }
    host::bring_back_range(guest.range());
  }
  bench::report(state, {.unit = "ns",
                        .value = median(ours),
                        .yardstick = "userfaultfd, a thread, lz4, by turns",
                        .yardstick_value = median(bare),
                        .at_most = 1.25});
}
BENCHMARK(RefaultOfTheProcess)->Iterations(7);

// The kernel's own swapping of the same pages, both ways (bench/kernel_swap.h).
void OutAndBackAgainstTheKernel(benchmark::State& state) {
  if (!host::userfault::open()) return state.SkipWithError("userfaultfd is denied here");
  const bench::KernelSwap swap;
  if (!swap.why().empty()) return state.SkipWithError(swap.why().c_str());
  Swapped guest;
  u8* const kernels = map(kBytes);
  std::vector<double> ours, bare;
  for (auto _ : state) {
    fill(kernels, kPages);
    auto start = Clock::now();
    if (madvise(kernels, kBytes, MADV_PAGEOUT) != 0) return state.SkipWithError("no MADV_PAGEOUT");
    std::vector<unsigned char> there(kPages);
    if (mincore(kernels, kBytes, there.data()) != 0) std::abort();
    const auto left =
        std::count_if(there.begin(), there.end(), [](u8 bit) { return (bit & 1) != 0; });
    if (left > static_cast<long>(kPages / 8)) {
      state.SkipWithError("the swap that is on takes no pages: is it full?");
      break;
    }
    for (const size_t i : here_and_there(kPages))
      static_cast<void>(touched_ns(kernels + i * kPageSize));
    bare.push_back(since_ns(start) / kPages);
    start = Clock::now();
    guest.take_all();
    for (const size_t i : here_and_there(kPages)) {
      if (!host::faultin(address(guest.memory + i * kPageSize), Access::kWrite,
                         host::Ask::kTouch)) {
        std::abort();
      }
    }
    ours.push_back(since_ns(start) / kPages);
  }
  munmap(kernels, kBytes);
  if (ours.empty()) return;
  bench::report(state, {.unit = "ns",
                        .value = median(ours),
                        .yardstick = "MADV_PAGEOUT and a touch, the kernel's swap",
                        .yardstick_value = median(bare)});
}
BENCHMARK(OutAndBackAgainstTheKernel)->Iterations(5);

// ---- a guest that has half of its memory --------------------------------------------------------

// A store to each page, here and there, twice; nanoseconds a store. `reach` comes before it.
template <typename F>
double stores_here_and_there(u8* memory, size_t pages, F reach) {
  const std::vector<size_t> order = here_and_there(pages);
  const auto start = Clock::now();
  for (int round = 0; round < 2; ++round) {
    for (const size_t i : order) {
      reach(i);
      auto* const word = reinterpret_cast<volatile u64*>(memory + i * kPageSize);
      *word = *word + 1;
    }
  }
  return since_ns(start) / static_cast<double>(2 * pages);
}

double stores_of_a_guest(u8* memory, size_t pages) {
  constexpr u64 kGpa = 0x100000;
  Box<stage2::GuestMemory> guest = std::move(*stage2::GuestMemory::create(stage2::SlotPolicy{}));
  stage2::Region region =
      test::region_of(0, kGpa, pages * kPageSize, reinterpret_cast<u64>(memory));
  if (!guest->slots().set_region(region)) std::abort();
  Box<stage2::MmuContext> context = std::move(*guest->new_context());
  return stores_here_and_there(memory, pages, [&](size_t i) {
    stage2::Fault fault{};
    fault.gpa = Gpa(kGpa + i * kPageSize);
    fault.access = Access::kWrite;
    while (guest->translate(*context, fault) != stage2::Walk::Kind::kHit) {
      if (guest->handle_fault(*context, fault) == stage2::FaultOutcome::kToUser) std::abort();
    }
  });
}

// The kernel does not count what zram has of a group's pages, and we do: so our limit is that much
// more than its.
void HalfOfItsMemoryAgainstAMemoryCgroup(benchmark::State& state) {
  if (!host::userfault::open()) return state.SkipWithError("userfaultfd is denied here");
  constexpr size_t kAll = 4 * kPages;
  constexpr size_t kAllBytes = kAll * kPageSize;
  const bench::KernelSwap swap;
  if (!swap.why().empty()) return state.SkipWithError(swap.why().c_str());
  bench::MemoryCgroup group(kAllBytes / 2);
  if (!group.why().empty()) return state.SkipWithError(group.why().c_str());
  if (!host::backstop::install()) return state.SkipWithError("no backstop");
  u8* const memory = map(kAllBytes);
  madvise(memory, kAllBytes, MADV_NOHUGEPAGE);
  const auto filled = [memory] {
    for (size_t i = 0; i < kAll; i += kPages) fill(memory + i * kPageSize, kPages);
  };
  std::vector<double> ours, bare;
  for (auto _ : state) {
    bare.push_back(group.run([&] {
      filled();
      return stores_here_and_there(memory, kAll, [](size_t) {});
    }));
    if (bare.back() < 0) {
      state.SkipWithError("no process of ours gets into the group, or lives there");
      break;
    }
    filled();
    const Squeezed sample(memory);
    size_t squeezed = 0;
    for (const int size : sample.sizes) squeezed += static_cast<size_t>(size);
    Guest guest;
    if (!guest.use(0, HvaRange(address(memory), kAllBytes)) ||
        !start({.memory_limit = kAllBytes / 2 + squeezed * (kAll / kPages / 2)})) {
      std::abort();
    }
    ours.push_back(stores_of_a_guest(memory, kAll));
    if (statistics().refaults < kAll / 4) state.SkipWithError("nearly nothing was away");
    stop();
  }
  munmap(memory, kAllBytes);
  if (ours.empty()) return;
  bench::report(state, {.unit = "ns",
                        .value = median(ours),
                        .yardstick = "the same in a memory cgroup, the kernel's swap",
                        .yardstick_value = median(bare)});
}
BENCHMARK(HalfOfItsMemoryAgainstAMemoryCgroup)->Iterations(3);

// The bell's question about a gigabyte that a guest has used all of, in pages of 4 KiB: marked old.
void AgeingOfAGigabyte(benchmark::State& state) {
  constexpr size_t kGiB = size_t{1} << 30;
  constexpr u64 kGpa = 0x100000;
  constexpr u64 kChunk = 4096;
  if (!host::backstop::install()) return state.SkipWithError("no backstop");
  u8* at = map(kGiB);
  madvise(at, kGiB, MADV_NOHUGEPAGE);
  {
    Box<stage2::GuestMemory> memory = std::move(*stage2::GuestMemory::create(stage2::SlotPolicy{}));
    stage2::Region region = test::region_of(0, kGpa, kGiB, reinterpret_cast<u64>(at));
    if (!memory->slots().set_region(region)) std::abort();
    Box<stage2::MmuContext> context = std::move(*memory->new_context());
    std::vector<double> rounds;
    for (auto _ : state) {
      for (u64 offset = 0; offset < kGiB; offset += kPageSize) {
        stage2::Fault fault{};
        fault.gpa = Gpa(kGpa + offset);
        fault.access = Access::kRead;
        if (memory->translate(*context, fault) == stage2::Walk::Kind::kHit) continue;
        if (memory->handle_fault(*context, fault) == stage2::FaultOutcome::kToUser) std::abort();
      }
      u64 young = 0;
      const auto start = Clock::now();
      for (u64 first = 0; first < kGiB / kPageSize; first += kChunk) {
        u64 bits[kChunk / 64] = {};
        host::collect_young(HvaRange(address(at + first * kPageSize), kChunk * kPageSize), bits);
        for (const u64 word : bits) young += static_cast<u64>(__builtin_popcountll(word));
      }
      rounds.push_back(since_ns(start) / 1e6);
      if (young != kGiB / kPageSize) state.SkipWithError("not all were young");
    }
    bench::report(state, {.unit = "ms", .value = median(rounds), .at_most = 2});
  }
  munmap(at, kGiB);
}
BENCHMARK(AgeingOfAGigabyte)->Iterations(7);

}  // namespace
}  // namespace stagetwo::reclaim

// SPDX-License-Identifier: Apache-2.0
// Secure pages of a guest in this process's memory: page-out and page-in in bulk by one and by two
// threads, a touch by the VMM, and the conversion of a guest, beside what the parts cost alone:
// AES-256-GCM of the bytes, the host's first touch of a page and a hole punched for one.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#include "bench/report.h"
#include "host/backstop.h"
#include "host/userfault.h"
#include "mem/cipher_library.h"
#include "uv/hypervisor.h"
#include "uv/process_pages.h"
#include "uv/ultravisor.h"

namespace stagetwo {
namespace {

using Clock = std::chrono::steady_clock;
constexpr u64 kMemory = u64{256} << 20;
constexpr u64 kPages = kMemory / kPageSize;
constexpr u32 kLpid = 1;

double ns_since(Clock::time_point start) {
  return std::chrono::duration<double, std::nano>(Clock::now() - start).count();
}

u8* map(u64 pages, int fd = -1) {
  const int flags = fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED;
  return static_cast<u8*>(::mmap(nullptr, pages * kPageSize, PROT_READ | PROT_WRITE, flags, fd, 0));
}

// A page: sealing it, touching a fresh one, punching one out of a file.
double parts_alone() {
  constexpr u64 kSome = 8192;
  const auto cipher = mem::cipher_library();
  if (!cipher) return 0;
  const u8 key[32] = {1};
  void* const context = (*cipher)->new_key(key);
  u8* const from = map(kSome);
  std::memset(from, 7, kSome * kPageSize);
  std::vector<u8> to(kPageSize);
  u8 nonce[12] = {}, tag[16], associated[48] = {};
  const auto sealing = Clock::now();
  for (u64 page = 0; page < kSome; ++page) {
    std::memcpy(nonce, &page, sizeof(page));
    const stagetwo_cipher_run run{
        nonce, associated, sizeof(associated), from + page * kPageSize, to.data(), kPageSize, tag};
    if ((*cipher)->seal(context, &run) != 0) return 0;
  }
  const double sealed = ns_since(sealing) / kSome;
  u8* const fresh = map(kSome);
  ::madvise(fresh, kSome * kPageSize, MADV_NOHUGEPAGE);
  const auto touching = Clock::now();
  for (u64 page = 0; page < kSome; ++page) fresh[page * kPageSize] = 1;
  const double touched = ns_since(touching) / kSome;
  const int fd = ::memfd_create("bench", MFD_CLOEXEC);
  double punched = 0;
  if (fd >= 0 && ::ftruncate(fd, static_cast<off_t>(kSome * kPageSize)) == 0) {
    u8* const file = map(kSome, fd);
    std::memset(file, 1, kSome * kPageSize);
    const auto punching = Clock::now();
    for (u64 page = 0; page < kSome; ++page) {
      static_cast<void>(::fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                                    static_cast<off_t>(page * kPageSize), kPageSize));
    }
    punched = ns_since(punching) / kSome;
    ::munmap(file, kSome * kPageSize);
  }
  ::close(fd);
  ::munmap(from, kSome * kPageSize);
  ::munmap(fresh, kSome * kPageSize);
  (*cipher)->free_key(context);
  return sealed + touched + punched;
}

class World {
 public:
  World() {
    memory_ = map(kPages);
    ::madvise(memory_, kPages * kPageSize, MADV_NOHUGEPAGE);
    std::memset(memory_, 5, kPages * kPageSize);
    uv::UltravisorOptions options;
    options.pool_pages = static_cast<u32>(kPages) + 64;
    options.memory = mem::SecureMemory::Want::kWhatThereIs;
    good_ = host::backstop::install() && host::userfault::open() &&
            ultravisor.open(options, &hypervisor_, &real_);
    guest = std::make_unique<uv::SecureGuest>(kLpid, kPageSize, &pages_, &ultravisor);
    pages_.set_guest(guest.get());
    guest->enable();
    const HvaRange range(Hva(reinterpret_cast<std::uintptr_t>(memory_)), kPages * kPageSize);
    good_ = good_ && hypervisor_.add(guest.get()) && pages_.map(Gpa(0), range) &&
            guest->add_slot(0, Gpa(0), kPages * kPageSize);
    const auto start = Clock::now();
    good_ = good_ && ultravisor.call({uv::Call::kUvEsm, kLpid, {1, 1}}, uv::Caller::kGuest) ==
                         uv::Status::kSuccess;
    conversion_ns = ns_since(start);
  }
  ~World() {
    static_cast<void>(guest->svm_off());
    pages_.forget(Gpa(0));
    hypervisor_.remove(guest.get());
    ::munmap(memory_, kPages * kPageSize);
  }
  [[nodiscard]] bool good() const { return good_; }
  [[nodiscard]] volatile u8* at(u64 page) const { return memory_ + page * kPageSize; }

  // One way for all pages, by `threads`; ns for a page of one thread.
  double move_all(unsigned threads, bool out) {
    const auto start = Clock::now();
    std::vector<std::thread> workers;
    for (unsigned t = 0; t < threads; ++t) {
      workers.emplace_back([&, t] {
        for (u64 page = t; page < kPages; page += threads) {
          const Gpa gpa(page * kPageSize);
          const auto ask = [&] {
            return out ? ultravisor.ask_page_out(kLpid, gpa) : ultravisor.ask_page_in(kLpid, gpa);
          };
          // Busy: it is on its way with its neighbours, which the other thread wants.
          uv::Status done = ask();
          while (uv::is_transient(done)) done = ask();
          if (done != uv::Status::kSuccess) good_ = false;
        }
      });
    }
    for (std::thread& worker : workers) worker.join();
    return ns_since(start) / kPages * threads;
  }

  uv::Ultravisor ultravisor;
  std::unique_ptr<uv::SecureGuest> guest;
  double conversion_ns = 0;

 private:
  u8* memory_ = nullptr;
  uv::ProcessMemory real_;
  uv::ProcessPages pages_;
  uv::Hypervisor hypervisor_;
  bool good_ = false;
};

void BulkMove(benchmark::State& state, bool out) {
  World world;
  const auto threads = static_cast<unsigned>(state.range(0));
  double ns = 0;
  for (auto _ : state) {
    const double there = world.move_all(threads, true);
    const double back = world.move_all(threads, false);
    ns = out ? there : back;
    state.SetIterationTime(ns * 1e-9);
  }
  if (!world.good()) state.SkipWithError("no userfaultfd, or a page was refused");
  bench::report(state, {.unit = "ns",
                        .yardstick = "AES-256-GCM, first touch and punch of a page",
                        .yardstick_value = parts_alone(),
                        .at_most = 1.5});
}
void PageOut(benchmark::State& state) {
  BulkMove(state, true);
}
void PageIn(benchmark::State& state) {
  BulkMove(state, false);
}
BENCHMARK(PageOut)->Arg(1)->Arg(2)->UseManualTime()->Iterations(1);
BENCHMARK(PageIn)->Arg(1)->Arg(2)->UseManualTime()->Iterations(1);

// A load of the VMM's, which waits for the page's sealed bytes.
void TouchByVmm(benchmark::State& state) {
  World world;
  std::vector<double> took;
  for (auto _ : state) {
    for (u64 page = 0; page < kPages; page += 16) {
      const auto start = Clock::now();
      static_cast<void>(*world.at(page));
      took.push_back(ns_since(start));
    }
    std::sort(took.begin(), took.end());
    const double percent = static_cast<double>(state.range(0)) / 100;
    state.SetIterationTime(took[static_cast<size_t>(static_cast<double>(took.size()) * percent)] *
                           1e-9);
  }
  if (!world.good()) state.SkipWithError("no userfaultfd, or a page was refused");
  bench::report(state, {.unit = "ns"});
}
BENCHMARK(TouchByVmm)->Arg(50)->Arg(99)->UseManualTime()->Iterations(1);

// UV_ESM of a guest with contents everywhere, for a GiB.
void ConversionOfAGiB(benchmark::State& state) {
  constexpr double kShare = static_cast<double>(u64{1} << 30) / static_cast<double>(kMemory);
  double seconds = 0;
  for (auto _ : state) {
    const World world;
    if (!world.good()) state.SkipWithError("no userfaultfd, or a page was refused");
    seconds = world.conversion_ns * 1e-9 * kShare;
    state.SetIterationTime(seconds);
  }
  bench::report(state, {.unit = "s", .value = seconds});
}
BENCHMARK(ConversionOfAGiB)->UseManualTime()->Iterations(1);

}  // namespace
}  // namespace stagetwo

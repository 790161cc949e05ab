// SPDX-License-Identifier: Apache-2.0
// Secure pages of a guest in this process's memory, of 4 and of 64 KiB: page-out and page-in of 256
// MiB by one and by two threads, a touch by the VMM, and the conversion of a guest. Page-out and
// page-in stand beside what their parts cost alone: AES-256-GCM of as many bytes, one first touch
// of each page, and one hole punched for it. Both sides are all of the 256 MiB, by as many threads,
// and what is told is the whole time of each: no piece is left out. They are measured turn about, a
// piece of each at a time, so that what others do on the machine meets both.
//
// One first touch of a page: a store, where the page is one of the kernel's. Of 64 KiB the kernel
// makes sixteen pages here; a store into each would be sixteen faults, and one store a sixteenth of
// the page's memory, so it is one MADV_POPULATE_WRITE of it: one call, after which all is there.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <thread>
#include <vector>

#include "base/kernel_numbers.h"
#include "bench/report.h"
#include "bench/timing.h"
#include "host/backstop.h"
#include "host/userfault.h"
#include "mem/cipher_library.h"
#include "uv/hypervisor.h"
#include "uv/process_pages.h"
#include "uv/ultravisor.h"

namespace stagetwo {
namespace {

using bench::Clock;
using bench::since_ns;
constexpr u64 kMemory = u64{256} << 20;
constexpr u64 kPiece = u64{2} << 20;
constexpr u32 kLpid = 1;

u8* map(u64 bytes, int fd = -1) {
  const int flags = fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED;
  return static_cast<u8*>(::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, flags, fd, 0));
}

// f(page) for the pages of [first, end), one of `threads` each; ns for a page of one thread.
double in_turn(unsigned threads, u64 first, u64 end, const std::function<void(u64, unsigned)>& f) {
  const auto work = [&](unsigned me) {
    for (u64 page = first + me; page < end; page += threads) f(page, me);
  };
  const auto start = Clock::now();
  std::vector<std::thread> others;
  for (unsigned me = 1; me < threads; ++me) others.emplace_back(work, me);
  work(0);
  for (std::thread& other : others) other.join();
  return since_ns(start) / static_cast<double>(end - first) * threads;
}

// A piece of memory: sealed, touched afresh, punched out of a file, each by itself.
class PartsAlone {
 public:
  PartsAlone(u64 page_bytes, unsigned threads) : page_(page_bytes), threads_(threads) {
    const auto cipher = mem::cipher_library();
    good_ = cipher.has_value();
    if (!good_) return;
    cipher_ = *cipher;
    const u8 key[32] = {1};
    for (unsigned i = 0; i < threads; ++i) {
      keys_.push_back(cipher_->new_key(key));
      to_.emplace_back(page_bytes);
    }
    from_ = map(kPiece);
    std::memset(from_, 7, kPiece);
    fresh_ = map(kPiece);
    ::madvise(fresh_, kPiece, MADV_NOHUGEPAGE);
    fd_ = ::memfd_create("bench", MFD_CLOEXEC);
    good_ = fd_ >= 0 && ::ftruncate(fd_, static_cast<off_t>(kPiece)) == 0;
    file_ = map(kPiece, fd_);
  }
  ~PartsAlone() {
    for (void* key : keys_) cipher_->free_key(key);
    ::munmap(from_, kPiece);
    ::munmap(fresh_, kPiece);
    ::munmap(file_, kPiece);
    ::close(fd_);
  }
  PartsAlone(const PartsAlone&) = delete;
  PartsAlone& operator=(const PartsAlone&) = delete;

  void run() {
    if (!good_) return;
    const u64 pages = kPiece / page_;
    sum_ += in_turn(threads_, 0, pages, [&](u64 page, unsigned me) {
      u8 nonce[12] = {}, tag[16], associated[48] = {};
      const u64 version = ++versions_;
      std::memcpy(nonce, &version, sizeof(version));
      const stagetwo_cipher_run run{
          nonce, associated, sizeof(associated), from_ + page * page_, to_[me].data(), page_, tag};
      if (cipher_->seal(keys_[me], &run) != 0) good_ = false;
    });
    ::madvise(fresh_, kPiece, MADV_DONTNEED);
    sum_ += in_turn(threads_, 0, pages, [&](u64 page, unsigned) { touch(page); });
    std::memset(file_, 1, kPiece);
    sum_ += in_turn(threads_, 0, pages, [&](u64 page, unsigned) {
      static_cast<void>(::fallocate(fd_, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                                    static_cast<off_t>(page * page_), static_cast<off_t>(page_)));
    });
    ++pieces_;
  }
  // ns for a page; 0: it cannot be measured.
  [[nodiscard]] double mean() const { return good_ ? sum_ / pieces_ : 0; }

 private:
  void touch(u64 page) {
    u8* const at = fresh_ + page * page_;
    if (page_ == kPageSize) {
      *static_cast<volatile u8*>(at) = 1;
    } else if (::madvise(at, page_, MADV_POPULATE_WRITE) != 0) {
      good_ = false;
    }
  }

  const u64 page_;
  const unsigned threads_;
  const stagetwo_cipher_calls* cipher_ = nullptr;
  std::vector<void*> keys_;
  std::vector<std::vector<u8>> to_;
  std::atomic<u64> versions_{0};
  u8* from_ = nullptr;
  u8* fresh_ = nullptr;
  u8* file_ = nullptr;
  int fd_ = -1;
  double sum_ = 0;  // of the pieces, ns for a page of one thread
  double pieces_ = 0;
  std::atomic<bool> good_{false};
};

class World {
 public:
  explicit World(u64 page_bytes) : page(page_bytes), pages_(page_bytes) {
    memory_ = map(kMemory);
    ::madvise(memory_, kMemory, MADV_NOHUGEPAGE);
    std::memset(memory_, 5, kMemory);
    uv::UltravisorOptions options;
    options.page_bytes = page;
    options.pool_pages = static_cast<u32>(kMemory / page) + 64;
    options.memory = mem::SecureMemory::Want::kWhatThereIs;
    good_ = host::backstop::install() && host::userfault::open() &&
            ultravisor.open(options, &hypervisor_, &real_);
    guest = std::make_unique<uv::SecureGuest>(kLpid, page, &pages_, &ultravisor);
    pages_.set_guest(guest.get());
    guest->enable();
    const HvaRange range(Hva(reinterpret_cast<std::uintptr_t>(memory_)), kMemory);
    good_ = good_ && hypervisor_.add(guest.get()) && pages_.map(Gpa(0), range) &&
            guest->add_slot(0, Gpa(0), kMemory);
    const auto start = Clock::now();
    good_ = good_ && ultravisor.call({uv::Call::kUvEsm, kLpid, {1, 1}}, uv::Caller::kGuest) ==
                         uv::Status::kSuccess;
    conversion_ns = since_ns(start);
  }
  ~World() {
    static_cast<void>(guest->svm_off());
    pages_.forget(Gpa(0));
    hypervisor_.remove(guest.get());
    ::munmap(memory_, kMemory);
  }
  World(const World&) = delete;
  World& operator=(const World&) = delete;
  [[nodiscard]] bool good() const { return good_; }
  [[nodiscard]] volatile u8* at(u64 number) const { return memory_ + number * page; }

  // One way for a piece of its pages; ns for a page of one thread.
  double move(unsigned threads, u64 first, bool out) {
    return in_turn(threads, first, first + kPiece / page, [&](u64 number, unsigned) {
      const Gpa gpa(number * page);
      const auto ask = [&] {
        return out ? ultravisor.ask_page_out(kLpid, gpa) : ultravisor.ask_page_in(kLpid, gpa);
      };
      // Busy: it is on its way with its neighbours, which the other thread wants.
      uv::Status done = ask();
      while (uv::is_transient(done)) done = ask();
      if (done != uv::Status::kSuccess) good_ = false;
    });
  }

  const u64 page;
  uv::Ultravisor ultravisor;
  std::unique_ptr<uv::SecureGuest> guest;
  double conversion_ns = 0;

 private:
  u8* memory_ = nullptr;
  uv::ProcessMemory real_;
  uv::ProcessPages pages_;
  uv::Hypervisor hypervisor_;
  std::atomic<bool> good_{false};
};

struct Moved {
  bool good = false;
  double out = 0, out_parts = 0, in = 0, in_parts = 0;
};

Moved move_all(unsigned threads, u64 page_bytes) {
  World world(page_bytes);
  const auto pass = [&](bool out, double* ours, double* parts) {
    PartsAlone alone(page_bytes, threads);
    double sum = 0;
    for (u64 first = 0; first < kMemory / page_bytes; first += kPiece / page_bytes) {
      alone.run();
      sum += world.move(threads, first, out);
    }
    *ours = sum / (kMemory / kPiece);
    *parts = alone.mean();
  };
  Moved result;
  pass(true, &result.out, &result.out_parts);
  pass(false, &result.in, &result.in_parts);
  result.good = world.good() && result.out_parts > 0;
  return result;
}

void BulkMove(benchmark::State& state, bool out) {
  // Out and in are one run.
  static std::map<std::pair<s64, s64>, Moved> runs;
  const std::pair key(state.range(0), state.range(1));
  for (auto _ : state) {
    if (!runs.contains(key)) {
      runs[key] = move_all(static_cast<unsigned>(key.first), static_cast<u64>(key.second) << 10);
    }
    state.SetIterationTime((out ? runs[key].out : runs[key].in) * 1e-9);
  }
  const Moved& run = runs[key];
  if (!run.good) state.SkipWithError("no userfaultfd, or a page was refused");
  bench::report(state, {.unit = "ns",
                        .yardstick = "AES-256-GCM, first touch and hole punch of a page",
                        .yardstick_value = out ? run.out_parts : run.in_parts,
                        .at_most = 1.5});
}
void PageOut(benchmark::State& state) {
  BulkMove(state, true);
}
void PageIn(benchmark::State& state) {
  BulkMove(state, false);
}
void sizes(benchmark::internal::Benchmark* b) {
  for (const int kib : {4, 64}) {
    for (const int threads : {1, 2}) b->Args({threads, kib});
  }
  b->ArgNames({"threads", "KiB"})->UseManualTime()->Iterations(1);
}
BENCHMARK(PageOut)->Apply(sizes);
BENCHMARK(PageIn)->Apply(sizes);

// A load of the VMM's, which waits for the page's sealed bytes.
void TouchByVmm(benchmark::State& state) {
  static std::map<s64, std::vector<double>> runs;
  std::vector<double>& took = runs[state.range(0)];
  for (auto _ : state) {
    if (took.empty()) {
      World world(static_cast<u64>(state.range(0)) << 10);
      if (!world.good()) state.SkipWithError("no userfaultfd, or a page was refused");
      const u64 pages = kMemory / world.page;
      for (u64 page = 0; page < pages; page += pages / 4096) {
        const auto start = Clock::now();
        static_cast<void>(*world.at(page));
        took.push_back(since_ns(start));
      }
      std::sort(took.begin(), took.end());
    }
    const double percent = static_cast<double>(state.range(1)) / 100;
    state.SetIterationTime(took[static_cast<size_t>(static_cast<double>(took.size()) * percent)] *
                           1e-9);
  }
  bench::report(state, {.unit = "ns"});
}
BENCHMARK(TouchByVmm)
    ->ArgsProduct({{4, 64}, {50, 99}})
    ->ArgNames({"KiB", "p"})
    ->UseManualTime()
    ->Iterations(1);

// UV_ESM of a guest with contents everywhere, for a GiB.
void ConversionOfAGiB(benchmark::State& state) {
  constexpr double kShare = static_cast<double>(u64{1} << 30) / static_cast<double>(kMemory);
  double seconds = 0;
  for (auto _ : state) {
    const World world(static_cast<u64>(state.range(0)) << 10);
    if (!world.good()) state.SkipWithError("no userfaultfd, or a page was refused");
    seconds = world.conversion_ns * 1e-9 * kShare;
    state.SetIterationTime(seconds);
  }
  bench::report(state, {.unit = "s", .value = seconds});
}
BENCHMARK(ConversionOfAGiB)->Arg(4)->Arg(64)->ArgName("KiB")->UseManualTime()->Iterations(1);

}  // namespace
}  // namespace stagetwo

// SPDX-License-Identifier: Apache-2.0
// What a client's munmap costs when guests use the memory: the whole road of
// docs/journeys/munmap.md, from libc's name to the acknowledgement of every vCPU, beside the system
// call alone in the same run, turn about.
//
// A round maps the range, lets the program and one vCPU of each machine touch its first page, and
// measures the munmap. "Idle": no vCPU is in guest code meanwhile. "Running": two other vCPUs of
// the machine run guest code on another page all the time.

#include <fcntl.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <memory>
#include <vector>

#include "base/sys.h"
#include "bench/preloaded.h"
#include "bench/report.h"

namespace stagetwo {
namespace {

constexpr u64 kPageBytes = 4096;
constexpr u64 kCode = 0x1000;
constexpr u64 kRunning = 0x8000;
constexpr u64 kWindow = 0x10000;

u8* map_at(void* at, u64 size, int flags) {
  void* const made = mmap(at, size, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | flags, -1, 0);
  return static_cast<u8*>(made);
}

// A place with a page of no rights on either side: a mapping that the kernel could join to its
// neighbour would be cut from it again, at a price that depends on the neighbour.
u8* place(u64 size) {
  u8* const around = static_cast<u8*>(mmap(nullptr, size + 2 * kPageBytes, PROT_NONE,
                                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  return map_at(around + kPageBytes, size, MAP_FIXED);
}
void give_back(u8* placed, u64 size) {
  munmap(placed - kPageBytes, size + 2 * kPageBytes);
}

class Vcpu {
 public:
  Vcpu(int kvm, int vm, int id, u64 code, u64 data)
      : fd_(ioctl(vm, KVM_CREATE_VCPU, id)), code_(code) {
    size_ = static_cast<size_t>(ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0));
    run_ = static_cast<kvm_run*>(mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_SHARED, fd_, 0));
    kvm_sregs special{};
    ioctl(fd_, KVM_GET_SREGS, &special);
    special.cs.base = special.cs.selector = 0;
    special.ds.base = data;
    special.ds.selector = static_cast<u16>(data >> 4);
    ioctl(fd_, KVM_SET_SREGS, &special);
  }
  ~Vcpu() {
    munmap(run_, size_);
    close(fd_);
  }
  Vcpu(const Vcpu&) = delete;
  Vcpu& operator=(const Vcpu&) = delete;

  // To the first exit that is none of a signal.
  bool run() {
    kvm_regs plain{};
    plain.rip = code_;
    plain.rflags = 2;
    ioctl(fd_, KVM_SET_REGS, &plain);
    return ioctl(fd_, KVM_RUN, 0) == 0;
  }
  void stop() { __atomic_store_n(&run_->immediate_exit, u8{1}, __ATOMIC_RELAXED); }

 private:
  int fd_;
  u64 code_;
  size_t size_ = 0;
  kvm_run* run_ = nullptr;
};

// One VM: a vCPU that touches the window and stops, and perhaps some that run all the time.
class Machine {
 public:
  Machine(u8* window, u64 size) : kvm_(open("/dev/kvm", O_RDWR | O_CLOEXEC)) {
    static constexpr u8 kTouch[] = {0xff, 0x05, 0xf4};                  // inc word [di]; hlt
    static constexpr u8 kRun[] = {0xff, 0x05, 0x3c, 0x00, 0x74, 0xfa};  // inc; cmp al, 0; je back
    vm_ = ioctl(kvm_, KVM_CREATE_VM, 0);
    memory_ = map_at(nullptr, 2 * kPageBytes, 0);
    std::memcpy(memory_, kTouch, sizeof(kTouch));
    std::memcpy(memory_ + 0x100, kRun, sizeof(kRun));
    slot(0, kCode, kPageBytes, memory_);
    slot(1, kRunning, kPageBytes, memory_ + kPageBytes);
    slot(2, kWindow, size, window);
    toucher_ = std::make_unique<Vcpu>(kvm_, vm_, 0, kCode, kWindow);
  }
  ~Machine() {
    stop_ = true;
    memory_[0x100 + 2] = 0xf4;  // hlt
    for (const auto& runner : runners_) runner->stop();
    for (const pthread_t thread : threads_) pthread_join(thread, nullptr);
    runners_.clear();
    toucher_.reset();
    close(vm_);
    close(kvm_);
    munmap(memory_, 2 * kPageBytes);
  }
  Machine(const Machine&) = delete;
  Machine& operator=(const Machine&) = delete;

  bool touch() { return toucher_->run(); }
  void start_runner() {
    const int id = static_cast<int>(runners_.size()) + 1;
    runners_.push_back(std::make_unique<Vcpu>(kvm_, vm_, id, kCode + 0x100, kRunning));
    struct Job {
      Machine* machine;
      Vcpu* vcpu;
    };
    pthread_t thread{};
    pthread_create(
        &thread, nullptr,
        [](void* given) -> void* {
          const std::unique_ptr<Job> job(static_cast<Job*>(given));
          while (!job->machine->stop_) job->vcpu->run();
          return nullptr;
        },
        new Job{this, runners_.back().get()});
    threads_.push_back(thread);
    // It is in guest code.
    volatile u16* const word = reinterpret_cast<volatile u16*>(memory_ + kPageBytes);
    const u16 before = *word;
    while (*word == before) sched_yield();
  }

 private:
  void slot(u32 id, u64 gpa, u64 size, u8* at) const {
    kvm_userspace_memory_region region{id, 0, gpa, size, reinterpret_cast<u64>(at)};
    ioctl(vm_, KVM_SET_USER_MEMORY_REGION, &region);
  }

  int kvm_;
  int vm_ = -1;
  u8* memory_ = nullptr;
  std::atomic<bool> stop_{false};
  std::unique_ptr<Vcpu> toucher_;
  std::vector<std::unique_ptr<Vcpu>> runners_;
  std::vector<pthread_t> threads_;
};

struct Case {
  const char* name;
  u64 size;
  unsigned machines;
  unsigned running;
  int rounds;
  double at_most;  // µs added at the median
  bool foreign = false;
};

struct Times {
  double bare_p50 = 0;
  double p50 = 0;
  double p99 = 0;
};

double quantile(std::vector<double>& values, double part) {
  const auto at =
      values.begin() + static_cast<std::ptrdiff_t>(part * static_cast<double>(values.size() - 1));
  std::nth_element(values.begin(), at, values.end());
  return *at;
}

template <typename F>
double microseconds(F&& call) {
  const auto start = std::chrono::steady_clock::now();
  call();
  const std::chrono::duration<double, std::micro> took = std::chrono::steady_clock::now() - start;
  return took.count();
}

// The machines' slot is the range, or memory elsewhere. Null when a guest did not touch its memory:
// then there is nothing to measure.
const Times* measure(const Case& what, Times* times) {
  // Two places, so that the yardstick's is nobody's.
  u8* const lent = place(what.size);
  u8* const own = place(what.size);
  std::vector<std::unique_ptr<Machine>> machines;
  u8* const elsewhere = place(kPageBytes);
  for (unsigned i = 0; i < what.machines; ++i) {
    machines.push_back(what.foreign ? std::make_unique<Machine>(elsewhere, kPageBytes)
                                    : std::make_unique<Machine>(lent, what.size));
  }
  for (unsigned i = 0; i < what.running; ++i) machines[0]->start_runner();
  std::vector<double> taxed;
  std::vector<double> bare;
  bool touched = true;
  // Where vCPUs share processors a round takes as long as the scheduler pleases.
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(4);
  for (int round = 0; round < what.rounds && std::chrono::steady_clock::now() < end; ++round) {
    *lent = *own = 1;
    for (const auto& machine : machines) touched = machine->touch() && touched;
    const auto tax = [&] { taxed.push_back(microseconds([&] { munmap(lent, what.size); })); };
    if (round % 2 == 0) tax();
    bare.push_back(microseconds([&] { static_cast<void>(sys::munmap(own, what.size)); }));
    if (round % 2 != 0) tax();
    map_at(lent, what.size, MAP_FIXED_NOREPLACE);
    map_at(own, what.size, MAP_FIXED_NOREPLACE);
  }
  machines.clear();
  give_back(lent, what.size);
  give_back(own, what.size);
  give_back(elsewhere, kPageBytes);
  *times = {quantile(bare, 0.5), quantile(taxed, 0.5), quantile(taxed, 0.99)};
  return touched ? times : nullptr;
}

constexpr u64 kGigabyte = u64{1} << 30;
constexpr Case kCases[] = {
    {"4KiB/NoSubscriber", kPageBytes, 0, 0, 4000, 2},
    {"4KiB/1Idle", kPageBytes, 1, 0, 4000, 2},
    {"4KiB/8Idle", kPageBytes, 8, 0, 2000, 2},
    {"4KiB/8Foreign", kPageBytes, 8, 0, 2000, 2, true},
    {"4KiB/2Running", kPageBytes, 1, 2, 2000, 20},
    {"4KiB/8And2Running", kPageBytes, 8, 2, 1000, 20},
    {"4KiB/2RunningForeign", kPageBytes, 1, 2, 1000, 20, true},
    {"1GiB/NoSubscriber", kGigabyte, 0, 0, 2000, 2},
    {"1GiB/1Idle", kGigabyte, 1, 0, 2000, 2},
    {"1GiB/8Idle", kGigabyte, 8, 0, 1000, 2},
    {"1GiB/8Foreign", kGigabyte, 8, 0, 1000, 2, true},
    {"1GiB/2Running", kGigabyte, 1, 2, 1000, 20},
    {"1GiB/8And2Running", kGigabyte, 8, 2, 1000, 20},
    {"1GiB/2RunningForeign", kGigabyte, 1, 2, 1000, 20, true},
};

enum class Row { kWhole, kAdded, kAddedAtWorst };

void report_row(benchmark::State& state, const Case& what, Row row) {
  static Times known[std::size(kCases)];
  static const Times* done[std::size(kCases)];
  const auto index = static_cast<size_t>(&what - kCases);
  for (auto _ : state) {
    if (done[index] == nullptr) done[index] = measure(what, &known[index]);
  }
  if (done[index] == nullptr) return state.SkipWithError("a guest did not touch its memory");
  const Times& times = known[index];
  if (row == Row::kWhole) {
    bench::report(state, {.unit = "us, p50",
                          .value = times.p50,
                          .yardstick = "munmap past libc",
                          .yardstick_value = times.bare_p50});
  } else if (row == Row::kAdded) {
    bench::report(
        state,
        {.unit = "us added, p50", .value = times.p50 - times.bare_p50, .at_most = what.at_most});
  } else {
    bench::report(state, {.unit = "us added, p99", .value = times.p99 - times.bare_p50});
  }
}

const int registered = [] {
  for (const Case& what : kCases) {
    const std::pair<const char*, Row> rows[] = {
        {"", Row::kWhole}, {"/Added", Row::kAdded}, {"/AddedP99", Row::kAddedAtWorst}};
    for (const auto& [suffix, which] : rows) {
      const std::string name = std::string("Munmap/") + what.name + suffix;
      benchmark::RegisterBenchmark(name.c_str(), [&what, row = which](benchmark::State& state) {
        report_row(state, what, row);
      })->Iterations(1);
    }
  }
  return 0;
}();

}  // namespace
}  // namespace stagetwo

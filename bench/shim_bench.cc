// SPDX-License-Identifier: Apache-2.0
// What standing in front of libc costs: calls that are none of our business, asleep and awake, and
// the calls that are. Its yardsticks are the same system calls made past libc.

#include <fcntl.h>
#include <linux/kvm.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <chrono>

#include "base/sys.h"
#include "bench/preloaded.h"
#include "bench/report.h"

namespace stagetwo {
namespace {

constexpr size_t kPageBytes = 4096;

template <typename F>
double time_of(F&& body) {
  constexpr int kRounds = 20'000;
  const auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < kRounds; ++i) body();
  const std::chrono::duration<double, std::nano> took = std::chrono::steady_clock::now() - start;
  return took.count() / kRounds;
}

int open_kvm() {
  return open("/dev/kvm", O_RDWR | O_CLOEXEC);
}

// Benchmarks run in the order they are registered: everything down to the first use of the device
// is asleep.
void open_and_close_null(benchmark::State& state) {
  for (auto _ : state) close(open("/dev/null", O_RDWR | O_CLOEXEC));
  const double direct = time_of([] {
    const auto fd = sys::openat(AT_FDCWD, "/dev/null", O_RDWR | O_CLOEXEC);
    if (fd) static_cast<void>(sys::close(*fd));
  });
  bench::report(state, {.unit = "ns",
                        .yardstick = "the two system calls",
                        .yardstick_value = direct,
                        .at_most = 1.5});
}
void AsleepOpenClose(benchmark::State& state) {
  open_and_close_null(state);
}
BENCHMARK(AsleepOpenClose);

void map_and_unmap(benchmark::State& state) {
  for (auto _ : state) {
    void* page =
        mmap(nullptr, kPageBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    munmap(page, kPageBytes);
  }
  const double direct = time_of([] {
    const auto page =
        sys::mmap(nullptr, kPageBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (page) static_cast<void>(sys::munmap(*page, kPageBytes));
  });
  bench::report(
      state,
      {.unit = "ns", .yardstick = "the two system calls", .yardstick_value = direct, .at_most = 2});
}
void AsleepMapUnmap(benchmark::State& state) {
  map_and_unmap(state);
}
BENCHMARK(AsleepMapUnmap);

void DeviceOpenClose(benchmark::State& state) {
  for (auto _ : state) close(open_kvm());
  bench::report(state, {.unit = "ns", .at_most = 50'000});
}
BENCHMARK(DeviceOpenClose);

void DeviceIoctl(benchmark::State& state) {
  const int kvm = open_kvm();
  for (auto _ : state) benchmark::DoNotOptimize(ioctl(kvm, KVM_GET_API_VERSION, 0));
  const double direct = time_of([] { sys::getpid(); });
  bench::report(state,
                {.unit = "ns", .yardstick = "getpid", .yardstick_value = direct, .at_most = 10});
  close(kvm);
}
BENCHMARK(DeviceIoctl);

void AwakeOpenClose(benchmark::State& state) {
  open_and_close_null(state);
}
BENCHMARK(AwakeOpenClose);

void AwakeMapUnmap(benchmark::State& state) {
  map_and_unmap(state);
}
BENCHMARK(AwakeMapUnmap);

}  // namespace
}  // namespace stagetwo

// SPDX-License-Identifier: Apache-2.0
#include "abi/kvm/host_cpu.h"

#include <cpuid.h>
#include <sys/syscall.h>
#include <time.h>
#include <x86intrin.h>

#include <algorithm>

#include "base/sys.h"
#include "sync/atomic.h"

namespace stagetwo::abi_kvm {
namespace {

constinit sync::Atomic<u32> cached_tsc_khz{0};

// Intel SDM, CPUID leaf 0x15: crystal rate and ratio. 0 where not told.
u32 told_tsc_khz() {
  if (host_cpuid(0, 0).eax < 0x15) return 0;
  const CpuidWords ratio = host_cpuid(0x15, 0);
  if (ratio.eax == 0 || ratio.ebx == 0 || ratio.ecx == 0) return 0;
  return static_cast<u32>(u64{ratio.ecx} * ratio.ebx / ratio.eax / 1000);
}

u32 measured_tsc_khz() {
  constexpr u64 kWindowNs = 1'000'000;
  const u64 ns0 = sys::monotonic_ns();
  const u64 tsc0 = host_tsc();
  u64 ns1 = ns0;
  while (ns1 - ns0 < kWindowNs) ns1 = sys::monotonic_ns();
  const u64 tsc1 = host_tsc();
  return static_cast<u32>((tsc1 - tsc0) * 1'000'000 / std::max<u64>(ns1 - ns0, 1));
}

}  // namespace

CpuidWords host_cpuid(u32 function, u32 index) {
  CpuidWords words;
  __cpuid_count(function, index, words.eax, words.ebx, words.ecx, words.edx);
  return words;
}

bool host_is_amd() {
  const u32 ebx = host_cpuid(0, 0).ebx;
  return ebx == 0x68747541 || ebx == 0x6f677948;  // "Auth", "Hygo"
}

u32 host_physical_bits() {
  if (host_cpuid(0x80000000, 0).eax < 0x80000008) return 36;
  return std::min<u32>(host_cpuid(0x80000008, 0).eax & 0xff, 52);
}

u64 host_tsc() {
  return __rdtsc();
}

u32 host_tsc_khz() {
  u32 khz = cached_tsc_khz.load();
  if (khz == 0) {
    khz = told_tsc_khz();
    if (khz == 0) khz = std::max<u32>(measured_tsc_khz(), 1);
    u32 expected = 0;
    if (!cached_tsc_khz.compare_exchange(expected, khz)) khz = expected;
  }
  return khz;
}

u64 realtime_ns() {
  timespec now{};
  sys::call(SYS_clock_gettime, CLOCK_REALTIME, sys::arg(&now));
  return static_cast<u64>(now.tv_sec) * 1'000'000'000 + static_cast<u64>(now.tv_nsec);
}

}  // namespace stagetwo::abi_kvm

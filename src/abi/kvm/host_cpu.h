// SPDX-License-Identifier: Apache-2.0
#pragma once

// What the processor under us says about itself: the vendor (client code chooses vmcall or vmmcall
// by raw CPUID), the address widths, the rate of its time-stamp counter.

#include "base/types.h"

namespace stagetwo::abi_kvm {

struct CpuidWords {
  u32 eax = 0, ebx = 0, ecx = 0, edx = 0;
};

[[nodiscard]] CpuidWords host_cpuid(u32 function, u32 index);
// AMD or Hygon.
[[nodiscard]] bool host_is_amd();
// CPUID 0x80000008 EAX[7:0], at most 52.
[[nodiscard]] u32 host_physical_bits();
[[nodiscard]] u64 host_tsc();
// Measured once a process where CPUID does not tell; takes about a millisecond then.
[[nodiscard]] u32 host_tsc_khz();
// CLOCK_REALTIME.
[[nodiscard]] u64 realtime_ns();

}  // namespace stagetwo::abi_kvm

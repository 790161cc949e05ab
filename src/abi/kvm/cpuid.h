// SPDX-License-Identifier: Apache-2.0
#pragma once

// Which processor a guest may be given: what KVM_GET_SUPPORTED_CPUID and KVM_GET_EMULATED_CPUID
// answer. Derived from the host's CPUID (vendor, family, address widths, brand), but with the
// features the interpreter has and no other.
//
// Linux analogue: __do_cpuid_func, kvm_set_cpu_caps (kernel file: arch/x86/kvm/cpuid.c).
// Specification: AMD APM volume 3 appendix E; Intel SDM volume 2, CPUID.

#include <array>
#include <span>

#include "abi/kvm/uapi.h"
#include "base/types.h"

namespace stagetwo::abi_kvm {

class CpuidTable {
 public:
  [[nodiscard]] std::span<const kvm_cpuid_entry2> entries() const { return {rows_.data(), count_}; }
  void add(u32 function, u32 eax, u32 ebx, u32 ecx, u32 edx);
  void add_indexed(u32 function, u32 index, u32 eax, u32 ebx, u32 ecx, u32 edx);

 private:
  std::array<kvm_cpuid_entry2, 48> rows_{};
  size_t count_ = 0;
};

[[nodiscard]] CpuidTable supported_cpuid();
[[nodiscard]] CpuidTable emulated_cpuid();

}  // namespace stagetwo::abi_kvm

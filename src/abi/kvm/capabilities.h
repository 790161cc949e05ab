// SPDX-License-Identifier: Apache-2.0
#pragma once

// What KVM_CHECK_EXTENSION answers and what KVM_ENABLE_CAP may enable: one table, from which
// docs/support-matrix.md is generated. A capability that is not in the table answers 0, as every
// number the kernel does not know.
//
// Linux analogue: kvm_vm_ioctl_check_extension(_generic). Differs: a feature that this engine does
// not have answers 0 even where the kernel answers 1 unconditionally.
// kernel file: arch/x86/kvm/x86.c, virt/kvm/kvm_main.c.

#include <span>

#include "base/types.h"

namespace stagetwo::abi_kvm {

// Who may enable a capability; kNone: KVM_ENABLE_CAP is EINVAL everywhere.
enum class Enable : u8 { kNone, kVm, kVcpu };

struct Capability {
  u32 number;
  const char* name;  // without KVM_CAP_
  int value;
  Enable enable;
  const char* remark;
};

// Ordered by number, without duplicates.
[[nodiscard]] std::span<const Capability> capabilities();

// Never negative; 0 for what is unknown.
[[nodiscard]] int check_extension(u64 number);

// The same of a VM's descriptor. `can_be_secure`: its guest can (of the 65th VM it cannot).
[[nodiscard]] int check_vm_extension(u64 number, bool private_memory, bool can_be_secure);

// Limits that several files need and the table reports.
inline constexpr u32 kMaxVcpus = 1024;
inline constexpr u32 kMaxVcpuIds = kMaxVcpus * 4;
inline constexpr u32 kUserMemSlots = 32764;
inline constexpr u32 kMaxIrqRoutes = 4096;
inline constexpr u32 kMaxDirtyRing = 1U << 20;  // bytes
inline constexpr u32 kMaxCpuidEntries = 256;
inline constexpr u32 kMaxIoMsrs = 256;
inline constexpr u32 kMaxMceBanks = 32;
inline constexpr u64 kValidQuirks = 0x1ff;
inline constexpr u64 kGuestDebugMask = 0x1f0003;
inline constexpr u64 kHypercallMask = u64{1} << 12;  // KVM_HC_MAP_GPA_RANGE
inline constexpr u64 kDisableExits = 0xe;            // HLT, PAUSE, CSTATE
inline constexpr u64 kClockFlags = 0xe;              // TSC_STABLE, REALTIME, HOST_TSC

}  // namespace stagetwo::abi_kvm

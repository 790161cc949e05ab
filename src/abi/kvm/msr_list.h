// SPDX-License-Identifier: Apache-2.0
#pragma once

// Which MSRs exist for save and restore, and which describe features. A listed MSR can be read by
// KVM_GET_MSRS of every vCPU, which a test proves.
//
// Linux analogue: msrs_to_save, emulated_msrs, msr_based_features (kernel file:
// arch/x86/kvm/x86.c).

#include <optional>
#include <span>

#include "base/types.h"

namespace stagetwo::abi_kvm {

[[nodiscard]] std::span<const u32> msr_index_list();
[[nodiscard]] bool is_listed_msr(u32 index);
[[nodiscard]] std::span<const u32> feature_msr_list();
// Fixed once a vCPU has run: every feature MSR but the microcode revision.
[[nodiscard]] bool is_immutable_msr(u32 index);
// What a feature MSR says of this processor; empty: not a feature MSR.
[[nodiscard]] std::optional<u64> feature_msr(u32 index);

inline constexpr u32 kMsrArchCapabilities = 0x10a;
// The paravirtual MSRs of this room.
inline constexpr u32 kMsrKvmWallClock = 0x11;
inline constexpr u32 kMsrKvmSystemTime = 0x12;
inline constexpr u32 kMsrKvmWallClockNew = 0x4b564d00;
inline constexpr u32 kMsrKvmSystemTimeNew = 0x4b564d01;

}  // namespace stagetwo::abi_kvm

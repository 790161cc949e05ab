// SPDX-License-Identifier: Apache-2.0
#pragma once

// Control registers, EFER, CPUID and MSRs: what values are possible, and what a change entails.
// Linux analogue: kvm_set_cr0/3/4, set_efer, kvm_get_msr_common (kernel file: x86.c).

#include "base/result.h"
#include "vcpu/cpu.h"

namespace stagetwo::vcpu {

// MOV to CR as the guest does it. False: #GP(0) is due; nothing changed.
[[nodiscard]] bool set_cr0(Cpu& c, u64 value);
[[nodiscard]] bool set_cr3(Cpu& c, u64 value);
[[nodiscard]] bool set_cr4(Cpu& c, u64 value);
[[nodiscard]] bool set_cr8(Cpu& c, u64 value);

// KVM_SET_SREGS's rule (kernel: kvm_is_valid_sregs).
[[nodiscard]] bool valid_system_state(const Cpu& c, const SystemState& system);

// Everything that CPUID decides, after a new table (features, reserved bits).
void apply_cpuid(Cpu& c);
// The entry a guest sees. Analogue: kvm_cpuid with its out-of-range rule.
[[nodiscard]] CpuidEntry lookup_cpuid(const Cpu& c, u32 function, u32 index);

[[nodiscard]] MsrOutcome read_msr(Cpu& c, u32 index, u64* value, bool host);
[[nodiscard]] MsrOutcome write_msr(Cpu& c, u32 index, u64 value, bool host);

[[nodiscard]] u64 read_tsc(const Cpu& c);
// The machine's own counter.
[[nodiscard]] u64 host_tsc();
// For RDRAND and RDSEED: unpredictable enough for a guest under test, no more.
[[nodiscard]] u64 next_random(Cpu& c);

}  // namespace stagetwo::vcpu

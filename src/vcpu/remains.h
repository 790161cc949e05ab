// SPDX-License-Identifier: Apache-2.0
#pragma once

// What interpreting a guest leaves of its private memory in this process, and when it goes. A
// processor's registers, caches and microcode hold the same, where nobody can look; here they are
// the memory of the process.
//
//   decoded code            block cache    when the vCPU enters or leaves its guest, or looks for
//                                          a block, after private pages it has code of were given
//                                          up (or others whose bits are theirs); else stays as long
//                                          as the page may. Of a secure guest's pages: also
//                                          at the end of every run
//   bytes on their way      scratch page, dead frames, registers, lazy flags: at the end of a run
//   the guest's registers   CpuState       the guest's; KVM_GET_REGS shows them to the VMM anyway
//
// Only for VMs with private memory; others pay a load. Analogue: none in KVM.
// Locking: none; the vCPU's thread.

#include "vcpu/cpu.h"

namespace stagetwo::vcpu {

// The dead part of the stack that a run wipes: its own frames at their deepest, and a signal's.
inline constexpr u64 kWipedStack = 8192;

// Before the guest is entered, and between two blocks. Pre: the caches are made, nothing is held.
void wipe_stale_code(Cpu& c);
// After it was left, from the frame that called what ran.
void wipe_remains(Cpu& c);

}  // namespace stagetwo::vcpu

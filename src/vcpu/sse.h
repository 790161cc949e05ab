// SPDX-License-Identifier: Apache-2.0
#pragma once

// What the SSE and SSE2 instructions on XMM registers do to values. The executor fetches operands
// and writes results; nothing here knows registers, memory, faults or segments.
//
// The executor's part, for an instruction with is_sse(insn.op):
//   1. sse_availability() on CR0 and CR4: #UD or #NM before any operand is touched;
//   2. a memory operand has operand[i].size bytes; if sse_aligned(op) and it is not on a 16-byte
//      border: #GP(0);
//   3. fill SseOperands: `dst` = all 128 bits of operand 0 if it is an XMM register (else
//   whatever),
//      `src` = operand 1 (the only operand of no instruction is missing), zero-extended when it is
//      memory, a general register or an immediate;
//   4. execute_sse(); on kDone write operand 0: an XMM register takes all of `dst`, memory the low
//      operand[0].size bytes, a general register the low bytes, zero-extended to 64 bits. COMISx
//      and UCOMISx write no operand but `rflags`. `mxcsr` is written back in every case. On
//      kSimdException nothing but `mxcsr` changes: #XM, or #UD if CR4.OSXMMEXCPT is clear.
// MASKMOVDQU is not among them: sse_mask() below gives the byte mask, the store is the executor's.
// LDMXCSR, STMXCSR, FXSAVE and FXRSTOR: vcpu/fx_image.h.
//
// Analogue: none in KVM, which lets the processor do it. Floating point runs on the host's own SSE
// unit under the guest's rounding mode with every exception masked, so results and flags are the
// machine's; unmasked exceptions are derived from the flags. The host's MXCSR is back in place
// when a function returns.
// Spec: Intel SDM vol. 1 chapters 10 and 11, vol. 2.

#include "vcpu/insn.h"
#include "vcpu/state.h"

namespace stagetwo::vcpu {

struct SseOperands {
  Xmm dst;
  Xmm src;
  u64 rflags = 0;  // in and out
  u32 mxcsr = 0;   // the guest's, in and out
};

enum class SseOutcome : u8 {
  kDone,
  kSimdException,  // `mxcsr` holds the flags, no destination changes
};

using SseFunction = SseOutcome(const Insn&, SseOperands&);

enum class SseAvailability : u8 { kAvailable, kUndefined, kDeviceNotAvailable };

// May an instruction that touches XMM registers or MXCSR run? Spec: SDM vol. 3, table 14-1.
[[nodiscard]] constexpr SseAvailability sse_availability(u64 cr0_value, u64 cr4_value) {
  if ((cr0_value & cr0::kEm) != 0 || (cr4_value & cr4::kOsfxsr) == 0)
    return SseAvailability::kUndefined;
  if ((cr0_value & cr0::kTs) != 0) return SseAvailability::kDeviceNotAvailable;
  return SseAvailability::kAvailable;
}

// The function of an Op, null if there is none: what a decoded block may keep.
[[nodiscard]] SseFunction* sse_function(Op op);
[[nodiscard]] inline bool is_sse(Op op) {
  return sse_function(op) != nullptr;
}

// True if a 16-byte memory operand of `op` must lie on a 16-byte border.
[[nodiscard]] bool sse_aligned(Op op);

// Pre: is_sse(insn.op), operands filled in as described above.
[[nodiscard]] inline SseOutcome execute_sse(const Insn& insn, SseOperands& operands) {
  return sse_function(insn.op)(insn, operands);
}

// Bit i is set if MASKMOVDQU with this mask register stores byte i.
[[nodiscard]] u16 sse_mask(const Xmm& mask);

}  // namespace stagetwo::vcpu

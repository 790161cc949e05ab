// SPDX-License-Identifier: Apache-2.0
#pragma once

// The 512-byte image of FXSAVE and FXRSTOR, which is also the legacy area of XSAVE and the payload
// of KVM_GET_FPU. Pure functions between CpuState and bytes; memory is the executor's business.
// Spec: SDM vol. 1, 10.5 and table 10-2.

#include <cstddef>

#include "vcpu/insn.h"
#include "vcpu/state.h"

namespace stagetwo::vcpu {

inline constexpr std::size_t kFxImageBytes = 512;
inline constexpr u32 kMxcsrReset = 0x1f80;
// MXCSR_MASK of the image: bits a load may set. Others: #GP(0) (LDMXCSR, FXRSTOR, XRSTOR).
inline constexpr u32 kMxcsrValid = 0xffff;

struct FxFormat {
  bool wide = false;     // REX.W: 64-bit instruction and data pointers
  bool xmm = true;       // false: EFER.FFXSR at CPL 0 in 64-bit mode
  bool sixteen = false;  // 64-bit mode: XMM8 to XMM15 as well
};

// Writes the parts of the image that FXSAVE writes and leaves the others as they are.
// Post: returns the number of leading bytes FXSAVE stores; those beyond are not touched in memory.
std::size_t fx_save(const CpuState& state, const FxFormat& format, u8* image);

// False: MXCSR in the image has reserved bits (#GP(0)) and nothing changed.
[[nodiscard]] bool fx_restore(CpuState* state, const FxFormat& format, const u8* image);

// Makes control and status words consistent after either was loaded: bits the processor does not
// have are dropped, and the status word says whether an unmasked exception is pending (ES and B).
void settle_x87(X87* x87);
inline constexpr u16 kX87Pending = 0x0080;  // ES

}  // namespace stagetwo::vcpu

// SPDX-License-Identifier: Apache-2.0
#pragma once

// What an instruction does to the six arithmetic flags according to the architecture: which it
// defines, which it leaves undefined, which it reads. A comparison ignores exactly the flags that
// are undefined at its point; a generator lets nothing read an undefined flag. Spec: Intel SDM vol.
// 1 appendix A and vol. 2; AMD APM vol. 3 appendix E.

#include "vcpu/insn.h"
#include "vcpu/state.h"

namespace stagetwo::twin {

struct FlagEffect {
  vcpu::u64 defined = 0;
  vcpu::u64 undefined = 0;
  vcpu::u64 read = 0;
  bool conditional = false;  // may also leave all flags alone (a count of zero)

  // The flags undefined after the instruction if `before` were before it.
  [[nodiscard]] vcpu::u64 undefined_after(vcpu::u64 before) const {
    return (conditional ? before : before & ~defined) | undefined;
  }
};

[[nodiscard]] FlagEffect flag_effect(const vcpu::Insn& insn);

}  // namespace stagetwo::twin

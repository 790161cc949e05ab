// SPDX-License-Identifier: Apache-2.0
#include "vcpu/state.h"

namespace stagetwo::vcpu {

void CpuState::reset(bool boot_cpu) {
  *this = CpuState{};
  gpr[kRdx] = 0x600;
  sys.seg[kSegCs].selector = 0xf000;
  sys.seg[kSegCs].base = 0xffff0000;
  sys.seg[kSegCs].type = 11;
  sys.tr.type = 11;
  sys.tr.s = 0;
  sys.ldt.type = 2;
  sys.ldt.s = 0;
  sys.apic_base = boot_cpu ? 0xfee00900 : 0xfee00800;
  mp_state = boot_cpu ? MpState::kRunnable : MpState::kUninitialized;
}

}  // namespace stagetwo::vcpu

// SPDX-License-Identifier: Apache-2.0
//
// SYSCALL, SYSRET, SYSENTER, SYSEXIT: flat segments out of MSRs, no descriptor is read.
// Spec: Intel SDM vol. 2; where AMD differs (SYSRET's canonical check, SYSENTER outside 64-bit
// mode) the guest's CPUID vendor does not matter: the stricter rule is taken.
#include "vcpu/mem.h"
#include "vcpu/ops.h"

namespace stagetwo::vcpu::ops {
namespace {

Segment flat_code(u16 selector, u8 dpl, bool wide) {
  Segment s;
  s.limit = 0xffffffff;
  s.selector = selector;
  s.type = 11;
  s.dpl = dpl;
  s.g = 1;
  s.l = wide ? 1 : 0;
  s.db = wide ? 0 : 1;
  return s;
}
Segment flat_data(u16 selector, u8 dpl) {
  Segment s;
  s.limit = 0xffffffff;
  s.selector = selector;
  s.type = 3;
  s.dpl = dpl;
  s.g = 1;
  s.db = 1;
  return s;
}

void enter(Cpu& c, const Segment& cs, const Segment& ss, u64 rip) {
  c.s.sys.seg[kSegCs] = cs;
  c.s.sys.seg[kSegSs] = ss;
  c.s.rip = rip;
  c.update_view();
  c.update_attention();
}

bool la57(const Cpu& c) {
  return (c.s.sys.cr4 & cr4::kLa57) != 0;
}

}  // namespace

Step syscall(Cpu& c, const Insn&) {
  if ((c.s.sys.efer & efer::kSce) == 0 || c.real_mode() || !c.s.long_mode()) return c.ud();
  const u16 selector = static_cast<u16>(c.s.msr.star >> 32 & 0xfffc);
  const bool wide = c.long64();
  const u64 flags = c.rflags();
  c.s.gpr[kRcx] = c.next_rip;
  c.s.gpr[kR11] = flags & ~rflags::kRf;
  c.set_rflags(flags & ~(c.s.msr.sfmask | rflags::kRf));
  enter(c, flat_code(selector, 0, true), flat_data(static_cast<u16>(selector + 8), 0),
        wide ? c.s.msr.lstar : c.s.msr.cstar);
  return Step::kJump;
}

Step sysret(Cpu& c, const Insn& insn) {
  if ((c.s.sys.efer & efer::kSce) == 0 || !c.s.long_mode()) return c.ud();
  if (c.cpl() != 0) return c.gp0();
  const bool wide = insn.operand_size == 8;
  if (wide && !is_canonical(c.s.gpr[kRcx], la57(c))) return c.gp0();
  const u16 base = static_cast<u16>(c.s.msr.star >> 48);
  const u16 code = static_cast<u16>((wide ? base + 16 : base) | 3);
  const u16 data = static_cast<u16>((base + 8) | 3);
  constexpr u64 kKept = 0x3c7fd7;
  c.set_rflags((c.s.gpr[kR11] & kKept) | 2);
  enter(c, flat_code(code, 3, wide), flat_data(data, 3),
        wide ? c.s.gpr[kRcx] : static_cast<u32>(c.s.gpr[kRcx]));
  return Step::kJump;
}

Step sysenter(Cpu& c, const Insn&) {
  if (c.real_mode()) return c.gp0();
  const u16 selector = static_cast<u16>(c.s.msr.sysenter_cs & 0xfffc);
  if (selector == 0) return c.gp0();
  const bool wide = c.s.long_mode();
  c.s.rflags &= ~(rflags::kVm | rflags::kIf | rflags::kRf);
  c.s.gpr[kRsp] = wide ? c.s.msr.sysenter_esp : static_cast<u32>(c.s.msr.sysenter_esp);
  enter(c, flat_code(selector, 0, wide), flat_data(static_cast<u16>(selector + 8), 0),
        wide ? c.s.msr.sysenter_eip : static_cast<u32>(c.s.msr.sysenter_eip));
  return Step::kJump;
}

Step sysexit(Cpu& c, const Insn& insn) {
  const u16 base = static_cast<u16>(c.s.msr.sysenter_cs & 0xfffc);
  if (c.real_mode() || base == 0 || c.cpl() != 0) return c.gp0();
  const bool wide = insn.operand_size == 8;
  const u64 rip = wide ? c.s.gpr[kRdx] : static_cast<u32>(c.s.gpr[kRdx]);
  const u64 rsp = wide ? c.s.gpr[kRcx] : static_cast<u32>(c.s.gpr[kRcx]);
  if (wide && (!is_canonical(rip, la57(c)) || !is_canonical(rsp, la57(c)))) return c.gp0();
  c.s.gpr[kRsp] = rsp;
  const u16 code = static_cast<u16>((base + (wide ? 32 : 16)) | 3);
  enter(c, flat_code(code, 3, wide), flat_data(static_cast<u16>(code + 8), 3), rip);
  return Step::kJump;
}

}  // namespace stagetwo::vcpu::ops

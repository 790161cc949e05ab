// SPDX-License-Identifier: Apache-2.0
#include "base/trace.h"
#include "vcpu/control_regs.h"
#include "vcpu/operand.h"
#include "vcpu/run.h"

namespace stagetwo::vcpu::ops {
namespace {

bool privileged(Cpu& c) {
  if (c.cpl() == 0) return true;
  c.gp0();
  return false;
}

}  // namespace

// --- Interrupt flag, halt -----------------------------------------------------------------------

Step hlt(Cpu& c, const Insn&) {
  if (!privileged(c)) return c.stop;
  c.s.rip = c.next_rip;
  if (c.policy->irqchip) c.s.mp_state = MpState::kHalted;
  c.update_attention();
  c.exit.kind = ExitKind::kHlt;
  c.exit.error = 0;
  return Step::kExit;
}

Step cli(Cpu& c, const Insn&) {
  const u64 iopl = c.s.rflags >> 12 & 3;
  if (!c.real_mode() && c.cpl() > iopl) return c.gp0();
  c.s.rflags &= ~rflags::kIf;
  c.update_attention();
  return Step::kNext;
}
Step sti(Cpu& c, const Insn&) {
  const u64 iopl = c.s.rflags >> 12 & 3;
  if (!c.real_mode() && c.cpl() > iopl) return c.gp0();
  if ((c.s.rflags & rflags::kIf) == 0) {
    c.s.rflags |= rflags::kIf;
    c.s.events.shadow = kShadowSti;
  }
  c.update_attention();
  return Step::kEnd;
}

// --- Control and debug registers
// ------------------------------------------------------------------

Step clts(Cpu& c, const Insn&) {
  if (!privileged(c)) return c.stop;
  c.s.sys.cr0 &= ~cr0::kTs;
  return Step::kEnd;
}
Step lmsw(Cpu& c, const Insn& insn) {
  u16 value = 0;
  if (!privileged(c) || !read_operand<u16>(c, insn, insn.operand[0], &value)) return c.stop;
  // PE can be set but not cleared.
  const u64 next = (c.s.sys.cr0 & ~u64{0xe}) | (value & 0xf);
  return set_cr0(c, next) ? Step::kEnd : c.gp0();
}
Step smsw(Cpu& c, const Insn& insn) {
  if ((c.s.sys.cr4 & cr4::kUmip) != 0 && c.cpl() != 0) return c.gp0();
  if (insn.operand[0].kind == OperandKind::kMem) {
    const u16 value = static_cast<u16>(c.s.sys.cr0);
    return write_operand<u16>(c, insn, insn.operand[0], value) ? Step::kNext : c.stop;
  }
  return by_size(insn.operand[0].size, [&]<typename T>() {
    set_register<T>(c, insn.operand[0], static_cast<T>(c.s.sys.cr0));
    return Step::kNext;
  });
}

Step mov_to_cr(Cpu& c, const Insn& insn) {
  if (!privileged(c)) return c.stop;
  u64 value = c.s.gpr[insn.operand[1].reg];
  if (!c.long64()) value = static_cast<u32>(value);
  trace::emit(trace::Event::kvm_cr, trace::Room::vcpu, 1, insn.operand[0].reg, value);
  bool ok = false;
  switch (insn.operand[0].reg) {
    case 0:
      ok = set_cr0(c, value);
      break;
    case 2:
      c.s.sys.cr2 = value;
      ok = true;
      break;
    case 3:
      ok = set_cr3(c, value);
      break;
    case 4:
      ok = set_cr4(c, value);
      break;
    case 8:
      ok = set_cr8(c, value);
      break;
    default:
      return c.ud();
  }
  return ok ? Step::kEnd : c.gp0();
}
Step mov_from_cr(Cpu& c, const Insn& insn) {
  if (!privileged(c)) return c.stop;
  u64 value = 0;
  switch (insn.operand[1].reg) {
    case 0:
      value = c.s.sys.cr0;
      break;
    case 2:
      value = c.s.sys.cr2;
      break;
    case 3:
      value = c.s.sys.cr3;
      break;
    case 4:
      value = c.s.sys.cr4;
      break;
    case 8:
      value = c.s.sys.cr8;
      break;
    default:
      return c.ud();
  }
  c.s.gpr[insn.operand[0].reg] = c.long64() ? value : static_cast<u32>(value);
  return Step::kNext;
}

namespace {
// #UD for DR4/5 under CR4.DE; #DB if DR7.GD is set. False: raised.
bool debug_register(Cpu& c, unsigned* reg) {
  if (!privileged(c)) return false;
  if (*reg == 4 || *reg == 5) {
    if ((c.s.sys.cr4 & cr4::kDe) != 0) {
      c.ud();
      return false;
    }
    *reg += 2;
  }
  if ((c.s.dr7 & 0x2000) != 0) {
    c.raise(kVectorDb);
    c.fault.payload = 0x2000;
    return false;
  }
  return true;
}
}  // namespace

Step mov_to_dr(Cpu& c, const Insn& insn) {
  unsigned reg = insn.operand[0].reg;
  if (!debug_register(c, &reg)) return c.stop;
  u64 value = c.s.gpr[insn.operand[1].reg];
  if (!c.long64()) value = static_cast<u32>(value);
  if (reg >= 6 && (value >> 32) != 0) return c.gp0();
  switch (reg) {
    case 6:
      c.s.dr6 = (value & 0x0001e00f) | 0xffff0ff0;
      break;
    case 7:
      c.s.dr7 = (value & 0xffff2bff) | 0x400;
      break;
    default:
      c.s.dr[reg] = value;
      break;
  }
  return Step::kNext;
}
Step mov_from_dr(Cpu& c, const Insn& insn) {
  unsigned reg = insn.operand[1].reg;
  if (!debug_register(c, &reg)) return c.stop;
  const u64 value = reg == 6 ? c.s.dr6 : reg == 7 ? c.s.dr7 : c.s.dr[reg];
  c.s.gpr[insn.operand[0].reg] = c.long64() ? value : static_cast<u32>(value);
  return Step::kNext;
}

Step invlpg(Cpu& c, const Insn& insn) {
  if (!privileged(c)) return c.stop;
  u64 address = effective_address(c, insn);
  if (insn.segment == Seg::kFs) address += c.s.sys.seg[kSegFs].base;
  if (insn.segment == Seg::kGs) address += c.s.sys.seg[kSegGs].base;
  if (!c.long64()) {
    address = (c.s.sys.seg[static_cast<unsigned>(insn.segment)].base + effective_address(c, insn)) &
              0xffffffff;
  }
  c.flush_tlb_page(address);
  return Step::kEnd;
}
Step invpcid(Cpu& c, const Insn& insn) {
  if (!c.features.invpcid) return c.ud();
  if (!privileged(c)) return c.stop;
  u64 descriptor[2] = {0, 0};
  u64 linear = 0;
  const u64 type = c.s.gpr[insn.operand[0].reg];
  if (!operand_address(c, insn, 16, false, &linear) ||
      !load_bytes(c, linear, descriptor, 16, Who::kExplicit)) {
    return c.stop;
  }
  if (type > 3 || (descriptor[0] >> 12) != 0) return c.gp0();
  if (type == 0 && !is_canonical(descriptor[1], (c.s.sys.cr4 & cr4::kLa57) != 0)) return c.gp0();
  c.flush_tlb();
  return Step::kEnd;
}

// --- Identification, time, MSRs
// -------------------------------------------------------------------

Step cpuid(Cpu& c, const Insn&) {
  const CpuidEntry e = lookup_cpuid(c, get_gpr<u32>(c, kRax), get_gpr<u32>(c, kRcx));
  trace::emit(trace::Event::kvm_cpuid, trace::Room::vcpu, e.function, e.index, e.eax, e.ebx);
  c.s.gpr[kRax] = e.eax;
  c.s.gpr[kRbx] = e.ebx;
  c.s.gpr[kRcx] = e.ecx;
  c.s.gpr[kRdx] = e.edx;
  return Step::kNext;
}

namespace {
bool tsc_allowed(Cpu& c) {
  if ((c.s.sys.cr4 & cr4::kTsd) == 0 || c.cpl() == 0 || c.real_mode()) return true;
  c.gp0();
  return false;
}
void set_edx_eax(Cpu& c, u64 value) {
  c.s.gpr[kRax] = static_cast<u32>(value);
  c.s.gpr[kRdx] = value >> 32;
}
u64 edx_eax(const Cpu& c) {
  return u64{get_gpr<u32>(c, kRdx)} << 32 | get_gpr<u32>(c, kRax);
}
}  // namespace

Step rdtsc(Cpu& c, const Insn&) {
  if (!tsc_allowed(c)) return c.stop;
  set_edx_eax(c, read_tsc(c));
  return Step::kNext;
}
Step rdtscp(Cpu& c, const Insn&) {
  if (!c.features.rdtscp) return c.ud();
  if (!tsc_allowed(c)) return c.stop;
  set_edx_eax(c, read_tsc(c));
  c.s.gpr[kRcx] = static_cast<u32>(c.s.msr.tsc_aux);
  return Step::kNext;
}
Step rdpid(Cpu& c, const Insn& insn) {
  if (!c.features.rdpid) return c.ud();
  c.s.gpr[insn.operand[0].reg] = c.s.msr.tsc_aux;
  return Step::kNext;
}
// There is no PMU: every counter index is out of range.
Step rdpmc(Cpu& c, const Insn&) {
  return c.gp0();
}

namespace {

constexpr u32 kReasonInvalid = 1, kReasonUnknown = 2, kReasonFilter = 4;

// #GP, or an exit if the VM wants to see this kind of failure.
Step msr_failed(Cpu& c, u32 index, u64 data, u32 reason, bool write) {
  trace::emit(trace::Event::kvm_msr, trace::Room::vcpu, write ? 1 : 0, index, data, 1);
  if ((c.policy->msr_exit_reasons & reason) == 0) return c.gp0();
  c.exit.kind = write ? ExitKind::kWrMsr : ExitKind::kRdMsr;
  c.exit.error = 0;
  c.exit.msr = MsrExit{.reason = reason, .index = index, .data = data};
  c.io = PendingIo{.kind = write ? Pending::kWrMsr : Pending::kRdMsr, .length = 2};
  return Step::kExit;
}

bool filtered(const Cpu& c, u32 index, bool write) {
  const VmPolicy& p = *c.policy;
  return p.msr_allowed != nullptr && !p.msr_allowed(p.context, index, write);
}

u32 reason_of(MsrOutcome outcome) {
  return outcome == MsrOutcome::kUnknown ? kReasonUnknown : kReasonInvalid;
}

}  // namespace

Step rdmsr(Cpu& c, const Insn&) {
  if (!privileged(c)) return c.stop;
  const u32 index = get_gpr<u32>(c, kRcx);
  u64 value = 0;
  if (filtered(c, index, false)) return msr_failed(c, index, 0, kReasonFilter, false);
  const MsrOutcome outcome = read_msr(c, index, &value, false);
  if (outcome != MsrOutcome::kDone) return msr_failed(c, index, 0, reason_of(outcome), false);
  trace::emit(trace::Event::kvm_msr, trace::Room::vcpu, 0, index, value, 0);
  set_edx_eax(c, value);
  return Step::kNext;
}
Step wrmsr(Cpu& c, const Insn&) {
  if (!privileged(c)) return c.stop;
  const u32 index = get_gpr<u32>(c, kRcx);
  const u64 value = edx_eax(c);
  if (filtered(c, index, true)) return msr_failed(c, index, value, kReasonFilter, true);
  const MsrOutcome outcome = write_msr(c, index, value, false);
  if (outcome != MsrOutcome::kDone) return msr_failed(c, index, value, reason_of(outcome), true);
  trace::emit(trace::Event::kvm_msr, trace::Room::vcpu, 1, index, value, 0);
  return Step::kEnd;
}

// --- Extended state
// -------------------------------------------------------------------------------

Step xgetbv(Cpu& c, const Insn&) {
  if ((c.s.sys.cr4 & cr4::kOsxsave) == 0) return c.ud();
  if (get_gpr<u32>(c, kRcx) != 0) return c.gp0();
  set_edx_eax(c, c.s.xcr0);
  return Step::kNext;
}
Step xsetbv(Cpu& c, const Insn&) {
  if ((c.s.sys.cr4 & cr4::kOsxsave) == 0) return c.ud();
  if (!privileged(c)) return c.stop;
  const u64 value = edx_eax(c);
  const CpuidEntry leaf = lookup_cpuid(c, 13, 0);
  const u64 supported = (u64{leaf.edx} << 32 | leaf.eax) | 1;
  const bool ok = get_gpr<u32>(c, kRcx) == 0 && (value & 1) != 0 && (value & ~supported) == 0 &&
                  ((value & 4) == 0 || (value & 2) != 0);
  if (!ok) return c.gp0();
  c.s.xcr0 = value;
  return Step::kNext;
}

// --- The rest
// -------------------------------------------------------------------------------------

Step monitor(Cpu& c, const Insn&) {
  if (!c.features.monitor) return c.ud();
  if (!privileged(c)) return c.stop;
  if (get_gpr<u32>(c, kRcx) != 0) return c.gp0();
  return Step::kNext;
}
// A processor may wake from MWAIT at any time: here, at once.
Step mwait(Cpu& c, const Insn&) {
  if (!c.features.monitor) return c.ud();
  return privileged(c) ? Step::kEnd : c.stop;
}

namespace {
constexpr u64 kHcVapicPollIrq = 1;
constexpr u64 kHcSchedYield = 11;  // a hint: who runs next is the host's business
constexpr u64 kHcMapGpaRange = 12;
constexpr u64 kErrNosys = static_cast<u64>(-1000), kErrPerm = static_cast<u64>(-1);
constexpr u64 kPermission = static_cast<u64>(-11);  // U_PERMISSION
}  // namespace

namespace {

// The other vendor's hypercall: KVM writes the right one over it, or under a disabled quirk lets
// the guest have its #UD. Analogue: em_hypercall, emulator_fix_hypercall.
bool is_foreign_hypercall(const Cpu& c, const Insn& insn) {
  return c.cpuid_count != 0 && (insn.op == Op::kVmmcall) != c.features.amd;
}
Step fix_hypercall(Cpu& c) {
  constexpr u64 kQuirkFixHypercall = 1 << 5;
  if ((c.policy->disabled_quirks & kQuirkFixHypercall) != 0) return c.ud();
  const u8 bytes[3] = {0x0f, 0x01, static_cast<u8>(c.features.amd ? 0xd9 : 0xc1)};
  return store_bytes(c, c.linear_rip(), bytes, sizeof(bytes), Who::kExplicit) ? Step::kAgain
                                                                              : c.stop;
}

}  // namespace

// Analogue: kvm_emulate_hypercall.
Step vmcall(Cpu& c, const Insn& insn) {
  if (is_foreign_hypercall(c, insn)) return fix_hypercall(c);
  const bool wide = c.long64();
  const auto arg = [&](unsigned reg) {
    return wide ? c.s.gpr[reg] : static_cast<u32>(c.s.gpr[reg]);
  };
  const u64 nr = arg(kRax);
  trace::emit(trace::Event::kvm_hypercall, trace::Room::vcpu, nr, arg(kRbx), arg(kRcx), arg(kRdx));
  const auto leave = [&](const HypercallExit& call) {
    c.exit.kind = ExitKind::kHypercall;
    c.exit.error = 0;
    c.exit.hypercall = call;
    c.io = PendingIo{.kind = Pending::kHypercall, .length = insn.length};
    return Step::kExit;
  };
  const bool is_secure = c.policy->secure_calls && is_secure_call(nr);
  u64 result = kErrNosys;
  if (c.cpl() != 0) {
    result = is_secure ? kPermission : kErrPerm;
  } else if (is_secure) {
    return leave({.nr = nr,
                  .args = {arg(kRbx), arg(kRcx), arg(kRdx), arg(kRsi), arg(kRdi), 0},
                  .flags = wide ? u64{1} : 0});
  } else if (nr == kHcMapGpaRange && (c.policy->hypercall_exits >> nr & 1) != 0) {
    constexpr u64 kBadArgument = static_cast<u64>(-22);
    const u64 gpa = arg(kRbx), npages = arg(kRcx);
    const u64 gfn = gpa >> kPageShift;
    if ((gpa & ~kPageMask) != 0 || npages == 0 || gfn + npages <= gfn) {
      result = kBadArgument;
    } else {
      return leave(
          {.nr = nr, .args = {gpa, npages, arg(kRdx), 0, 0, 0}, .flags = wide ? u64{1} : 0});
    }
  } else if (nr == kHcVapicPollIrq || nr == kHcSchedYield) {
    result = 0;
  }
  c.s.gpr[kRax] = wide ? result : static_cast<u32>(result);
  return Step::kNext;
}

Step invd(Cpu& c, const Insn&) {
  return privileged(c) ? Step::kNext : c.stop;
}
Step clac(Cpu& c, const Insn&) {
  if ((c.s.sys.cr4 & cr4::kSmap) == 0 && (c.cr4_reserved & cr4::kSmap) != 0) return c.ud();
  if (c.cpl() != 0) return c.ud();
  c.s.rflags &= ~rflags::kAc;
  c.update_view();
  return Step::kNext;
}
Step stac(Cpu& c, const Insn&) {
  if ((c.s.sys.cr4 & cr4::kSmap) == 0 && (c.cr4_reserved & cr4::kSmap) != 0) return c.ud();
  if (c.cpl() != 0) return c.ud();
  c.s.rflags |= rflags::kAc;
  c.update_view();
  return Step::kNext;
}

Step fence(Cpu& c, const Insn&) {
  // A full fence stated as an operation: the next block sees what others wrote before.
  c.fence_word.fetch_add(0);
  return Step::kNext;
}
Step clflush(Cpu& c, const Insn& insn) {
  if (insn.op == Op::kClflushopt && !c.features.clflushopt) return c.ud();
  if (insn.op == Op::kClwb && !c.features.clwb) return c.ud();
  u64 linear = 0;
  if (!operand_address(c, insn, 1, false, &linear) || !probe_read(c, linear, 1)) return c.stop;
  return Step::kNext;
}
Step prefetch(Cpu&, const Insn&) {
  return Step::kNext;
}

Step rdrand(Cpu& c, const Insn& insn) {
  if (!(insn.op == Op::kRdrand ? c.features.rdrand : c.features.rdseed)) return c.ud();
  return by_size(insn.operand_size, [&]<typename T>() {
    set_register<T>(c, insn.operand[0], static_cast<T>(next_random(c)));
    c.flags.set_exact(rflags::kCf);
    return Step::kNext;
  });
}

Step rdpkru(Cpu& c, const Insn& insn) {
  if ((c.s.sys.cr4 & cr4::kPke) == 0) return c.ud();
  if (get_gpr<u32>(c, kRcx) != 0) return c.gp0();
  if (insn.op == Op::kWrpkru) {
    if (get_gpr<u32>(c, kRdx) != 0) return c.gp0();
    return Step::kNext;
  }
  c.s.gpr[kRax] = c.s.gpr[kRdx] = 0;
  return Step::kNext;
}

// An encoding that is no instruction; more than 15 bytes of prefixes are #GP.
Step ud(Cpu& c, const Insn& insn) {
  return insn.length > 15 ? c.gp0() : c.ud();
}
// An instruction this processor does not offer.
Step undefined(Cpu& c, const Insn&) {
  return c.ud();
}

}  // namespace stagetwo::vcpu::ops

// SPDX-License-Identifier: Apache-2.0
#include "vcpu/operand.h"
#include "vcpu/run.h"
#include "vcpu/segments.h"
#include "vcpu/stack.h"

namespace stagetwo::vcpu::ops {
namespace {

u64 truncate(unsigned size, u64 value) {
  return size == 8 ? value : size == 4 ? static_cast<u32>(value) : static_cast<u16>(value);
}

// Near target: canonical, or inside CS outside 64-bit mode.
bool may_jump(Cpu& c, u64 target) {
  const bool ok = c.long64() ? is_canonical(target, (c.s.sys.cr4 & cr4::kLa57) != 0)
                             : target <= c.s.sys.seg[kSegCs].limit;
  if (!ok) c.gp0();
  return ok;
}

unsigned branch_size(const Cpu& c, const Insn& insn) {
  return c.long64() ? 8 : insn.operand_size;
}

Step jump_relative(Cpu& c, const Insn& insn) {
  const u64 target = truncate(branch_size(c, insn), c.next_rip + insn.imm);
  if (!may_jump(c, target)) return c.stop;
  c.s.rip = target;
  return Step::kJump;
}

// The target of a near JMP or CALL.
bool near_target(Cpu& c, const Insn& insn, u64* target) {
  const unsigned size = branch_size(c, insn);
  if (insn.operand[0].kind == OperandKind::kRel) {
    *target = truncate(size, c.next_rip + insn.imm);
    return true;
  }
  return by_size(size, [&]<typename T>() {
           T value = 0;
           if (!read_operand<T>(c, insn, insn.operand[0], &value)) return c.stop;
           *target = value;
           return Step::kNext;
         }) == Step::kNext;
}

u64 count_register(const Cpu& c, const Insn& insn) {
  return truncate(insn.address_size, c.s.gpr[kRcx]);
}
void set_count(Cpu& c, const Insn& insn, u64 value) {
  switch (insn.address_size) {
    case 2:
      set_gpr<u16>(c, kRcx, static_cast<u16>(value));
      break;
    case 4:
      set_gpr<u32>(c, kRcx, static_cast<u32>(value));
      break;
    default:
      c.s.gpr[kRcx] = value;
      break;
  }
}

Step loop_if(Cpu& c, const Insn& insn, bool condition) {
  const u64 count = truncate(insn.address_size, count_register(c, insn) - 1);
  const bool taken = count != 0 && condition;
  if (taken && !may_jump(c, truncate(branch_size(c, insn), c.next_rip + insn.imm))) return c.stop;
  set_count(c, insn, count);
  if (!taken) return Step::kNext;
  return jump_relative(c, insn);
}

}  // namespace

Step jcc(Cpu& c, const Insn& insn) {
  return c.flags.test(insn.cond) ? jump_relative(c, insn) : Step::kNext;
}
Step jcxz(Cpu& c, const Insn& insn) {
  return count_register(c, insn) == 0 ? jump_relative(c, insn) : Step::kNext;
}
Step loop(Cpu& c, const Insn& insn) {
  return loop_if(c, insn, true);
}
Step loope(Cpu& c, const Insn& insn) {
  return loop_if(c, insn, c.flags.zf());
}
Step loopne(Cpu& c, const Insn& insn) {
  return loop_if(c, insn, !c.flags.zf());
}

Step jmp(Cpu& c, const Insn& insn) {
  u64 target = 0;
  if (!near_target(c, insn, &target) || !may_jump(c, target)) return c.stop;
  c.s.rip = target;
  return Step::kJump;
}

Step call(Cpu& c, const Insn& insn) {
  u64 target = 0;
  if (!near_target(c, insn, &target) || !may_jump(c, target)) return c.stop;
  Stack stack(c);
  if (!stack.push(branch_size(c, insn), c.next_rip)) return c.stop;
  stack.commit();
  c.s.rip = target;
  return Step::kJump;
}

Step ret(Cpu& c, const Insn& insn) {
  Stack stack(c);
  u64 target = 0;
  if (!stack.pop(branch_size(c, insn), &target) || !may_jump(c, target)) return c.stop;
  if (insn.operand_count != 0) stack.skip(insn.imm & 0xffff);
  stack.commit();
  c.s.rip = target;
  return Step::kJump;
}

// --- Far transfers -----------------------------------------------------------------------------

namespace {

bool far_operand(Cpu& c, const Insn& insn, u16* selector, u64* offset) {
  if (insn.operand[0].kind == OperandKind::kFarPointer) {
    *selector = insn.selector;
    *offset = insn.imm;
    return true;
  }
  const unsigned size = insn.operand_size;
  u64 linear = 0;
  *offset = 0;
  return operand_address(c, insn, size + 2U, false, &linear) &&
         load_bytes(c, linear, offset, size, Who::kExplicit) && load(c, linear + size, selector);
}

void load_real_cs(Cpu& c, u16 selector) {
  Segment& cs = c.s.sys.seg[kSegCs];
  cs.selector = selector;
  cs.base = u64{selector} << 4;
}

// Code segment for a direct far jump or call to the same privilege level.
bool check_far_code(Cpu& c, u16 selector, Descriptor* d) {
  const u32 error = selector & ~3U;
  if (error == 0) {
    c.gp0();
    return false;
  }
  if (!read_descriptor(c, selector, kVectorGp, d)) return false;
  const u8 rpl = selector & 3;
  const bool allowed =
      d->conforming() ? d->dpl() <= c.cpl() : rpl <= c.cpl() && d->dpl() == c.cpl();
  if (!d->is_code() || !allowed || (c.s.long_mode() && d->l() && d->db())) {
    c.raise(kVectorGp, error);
    return false;
  }
  if (!d->present()) {
    c.raise(kVectorNp, error);
    return false;
  }
  return true;
}

bool offset_fits(Cpu& c, const Descriptor& d, u64 offset) {
  const bool wide = c.s.long_mode() && d.l();
  const bool ok =
      wide ? is_canonical(offset, (c.s.sys.cr4 & cr4::kLa57) != 0) : offset <= d.limit();
  if (!ok) c.gp0();
  return ok;
}

void enter_code(Cpu& c, u16 selector, const Descriptor& d, u64 offset) {
  const u8 cpl = c.cpl();
  c.s.sys.seg[kSegCs] = d.segment(static_cast<u16>((selector & ~3U) | cpl));
  c.s.rip = offset;
  c.update_view();
}

}  // namespace

Step jmp_far(Cpu& c, const Insn& insn) {
  u16 selector = 0;
  u64 offset = 0;
  if (!far_operand(c, insn, &selector, &offset)) return c.stop;
  if (c.real_mode() || c.v86()) {
    load_real_cs(c, selector);
    c.s.rip = offset;
    c.update_view();
    return Step::kJump;
  }
  Descriptor d;
  if (!check_far_code(c, selector, &d) || !offset_fits(c, d, offset) ||
      !mark_accessed(c, selector, &d)) {
    return c.stop;
  }
  enter_code(c, selector, d, offset);
  return Step::kJump;
}

Step call_far(Cpu& c, const Insn& insn) {
  u16 selector = 0;
  u64 offset = 0;
  const unsigned size = insn.operand_size;
  if (!far_operand(c, insn, &selector, &offset)) return c.stop;
  const bool real = c.real_mode() || c.v86();
  Descriptor d;
  if (!real && (!check_far_code(c, selector, &d) || !offset_fits(c, d, offset) ||
                !mark_accessed(c, selector, &d))) {
    return c.stop;
  }
  Stack stack(c);
  if (!stack.push(size, c.s.sys.seg[kSegCs].selector) || !stack.push(size, c.next_rip)) {
    return c.stop;
  }
  stack.commit();
  if (real) {
    load_real_cs(c, selector);
    c.s.rip = offset;
    c.update_view();
  } else {
    enter_code(c, selector, d, offset);
  }
  return Step::kJump;
}

namespace {

struct FarFrame {
  u64 rip = 0;
  u64 cs = 0;
  u64 flags = 0;
  u64 rsp = 0;
  u64 ss = 0;
};

// Code segment of a far return or IRET to the same or an outer level.
bool check_return_code(Cpu& c, u16 selector, Descriptor* d) {
  const u32 error = selector & ~3U;
  const u8 rpl = selector & 3;
  if (error == 0) {
    c.gp0();
    return false;
  }
  if (!read_descriptor(c, selector, kVectorGp, d)) return false;
  const bool allowed = d->conforming() ? d->dpl() <= rpl : d->dpl() == rpl;
  if (!d->is_code() || rpl < c.cpl() || !allowed) {
    c.raise(kVectorGp, error);
    return false;
  }
  if (!d->present()) {
    c.raise(kVectorNp, error);
    return false;
  }
  return true;
}

bool return_stack(Cpu& c, const Descriptor& code, u8 cpl, u16 selector, Segment* ss) {
  if ((selector & ~3U) == 0 && c.s.long_mode() && code.l() && cpl != 3) {
    *ss = null_stack_segment(cpl);
    ss->selector = selector;
    return true;
  }
  return load_stack_segment(c, selector, cpl, kVectorGp, ss);
}

}  // namespace

Step ret_far(Cpu& c, const Insn& insn) {
  const unsigned size = insn.operand_size;
  const u64 extra = insn.operand_count != 0 ? insn.imm & 0xffff : 0;
  Stack stack(c);
  FarFrame f;
  if (!stack.pop(size, &f.rip) || !stack.pop(size, &f.cs)) return c.stop;
  stack.skip(extra);
  const u16 selector = static_cast<u16>(f.cs);
  if (c.real_mode() || c.v86()) {
    stack.commit();
    load_real_cs(c, selector);
    c.s.rip = f.rip;
    c.update_view();
    return Step::kJump;
  }
  Descriptor d;
  if (!check_return_code(c, selector, &d) || !offset_fits(c, d, f.rip)) return c.stop;
  const u8 cpl = selector & 3;
  if (cpl == c.cpl()) {
    stack.commit();
    c.s.sys.seg[kSegCs] = d.segment(selector);
    c.s.rip = f.rip;
    c.update_view();
    return Step::kJump;
  }
  Segment ss;
  if (!stack.pop(size, &f.rsp) || !stack.pop(size, &f.ss) ||
      !return_stack(c, d, cpl, static_cast<u16>(f.ss), &ss)) {
    return c.stop;
  }
  c.s.sys.seg[kSegCs] = d.segment(selector);
  c.s.sys.seg[kSegSs] = ss;
  c.s.rip = f.rip;
  c.s.gpr[kRsp] = truncate(size, f.rsp) + extra;
  drop_inner_segments(c);
  c.update_view();
  return Step::kJump;
}

namespace {

void iret_flags(Cpu& c, unsigned size, u64 value, u8 old_cpl) {
  u64 mask = rflags::kArithmetic | rflags::kTf | rflags::kDf | rflags::kNt | rflags::kRf |
             rflags::kAc | rflags::kId;
  const u64 iopl = c.s.rflags >> 12 & 3;
  if (old_cpl == 0 || c.real_mode()) mask |= rflags::kIopl | rflags::kVif | rflags::kVip;
  if (old_cpl <= iopl || c.real_mode()) mask |= rflags::kIf;
  if (size == 2) mask &= 0xffff;
  c.set_rflags((c.rflags() & ~mask) | (value & mask));
}

Step iret_real(Cpu& c, unsigned size, Stack& stack, const FarFrame& f) {
  stack.commit();
  load_real_cs(c, static_cast<u16>(f.cs));
  c.s.rip = truncate(size, f.rip);
  iret_flags(c, size, f.flags, 0);
  c.s.events.nmi_masked = false;
  c.update_view();
  c.update_attention();
  return Step::kJump;
}

}  // namespace

Step iret(Cpu& c, const Insn& insn) {
  const unsigned size = insn.operand_size;
  Stack stack(c);
  FarFrame f;
  if (c.v86() && (c.s.rflags & rflags::kIopl) != rflags::kIopl) return c.gp0();
  if (!stack.pop(size, &f.rip) || !stack.pop(size, &f.cs) || !stack.pop(size, &f.flags)) {
    return c.stop;
  }
  if (c.real_mode() || c.v86()) return iret_real(c, size, stack, f);
  if ((c.s.rflags & rflags::kNt) != 0) {
    return c.s.long_mode() ? c.gp0() : c.emulation_failure();
  }
  if (!c.s.long_mode() && (f.flags & rflags::kVm) != 0 && c.cpl() == 0 && size == 4) {
    return c.emulation_failure();
  }
  const u16 selector = static_cast<u16>(f.cs);
  const u8 cpl = selector & 3;
  const u8 old_cpl = c.cpl();
  Descriptor d;
  if (!check_return_code(c, selector, &d) || !offset_fits(c, d, f.rip)) return c.stop;
  Segment ss = c.s.sys.seg[kSegSs];
  const bool with_stack = c.long64() || cpl != old_cpl;
  if (with_stack && (!stack.pop(size, &f.rsp) || !stack.pop(size, &f.ss) ||
                     !return_stack(c, d, cpl, static_cast<u16>(f.ss), &ss))) {
    return c.stop;
  }
  if (!mark_accessed(c, selector, &d)) return c.stop;
  if (!with_stack) stack.commit();
  c.s.sys.seg[kSegCs] = d.segment(selector);
  c.s.sys.seg[kSegSs] = ss;
  c.s.rip = f.rip;
  if (with_stack) c.s.gpr[kRsp] = truncate(size, f.rsp);
  iret_flags(c, size, f.flags, old_cpl);
  if (cpl != old_cpl) drop_inner_segments(c);
  c.s.events.nmi_masked = false;
  c.update_view();
  c.update_attention();
  return Step::kJump;
}

Step int_(Cpu& c, const Insn& insn) {
  return software_interrupt(c, static_cast<u8>(insn.imm), false);
}
Step int3(Cpu& c, const Insn&) {
  if (c.debug.enabled && c.debug.software_bp) {
    c.exit.kind = ExitKind::kDebug;
    c.exit.error = 0;
    c.exit.debug = DebugExit{.exception = kVectorBp, .pc = c.linear_rip(), .dr6 = 0, .dr7 = 0};
    return Step::kExit;
  }
  return software_interrupt(c, kVectorBp, false);
}
Step int1(Cpu& c, const Insn&) {
  return software_interrupt(c, kVectorDb, true);
}
Step into(Cpu& c, const Insn&) {
  return c.flags.of() ? software_interrupt(c, kVectorOf, false) : Step::kNext;
}

}  // namespace stagetwo::vcpu::ops

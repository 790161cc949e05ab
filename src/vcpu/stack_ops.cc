// SPDX-License-Identifier: Apache-2.0
#include "vcpu/operand.h"
#include "vcpu/segments.h"
#include "vcpu/stack.h"

namespace stagetwo::vcpu::ops {
namespace {

// What POPF and IRET may change besides the arithmetic flags.
u64 writable_flags(const Cpu& c, unsigned size) {
  u64 mask =
      rflags::kArithmetic | rflags::kTf | rflags::kDf | rflags::kNt | rflags::kAc | rflags::kId;
  const u64 iopl = c.s.rflags >> 12 & 3;
  if (c.real_mode() || c.cpl() == 0) mask |= rflags::kIopl;
  if (c.real_mode() || c.cpl() <= iopl) mask |= rflags::kIf;
  return size == 2 ? mask & 0xffff : mask;
}

}  // namespace

Step push(Cpu& c, const Insn& insn) {
  const Operand& source = insn.operand[0];
  const unsigned size = insn.operand_size;
  u64 value = 0;
  const Step read = by_size(size, [&]<typename T>() {
    T v = 0;
    if (!read_operand<T>(c, insn, source, &v)) return c.stop;
    value = v;
    return Step::kNext;
  });
  if (read != Step::kNext) return read;
  Stack stack(c);
  if (!stack.push(size, value)) return c.stop;
  stack.commit();
  return Step::kNext;
}

Step pop(Cpu& c, const Insn& insn) {
  Stack stack(c);
  u64 value = 0;
  if (!stack.pop(insn.operand_size, &value)) return c.stop;
  // A memory destination that uses RSP sees it behind the pop.
  const u64 old = c.s.gpr[kRsp];
  stack.commit();
  const Step step = by_size(insn.operand_size, [&]<typename T>() {
    return write_operand<T>(c, insn, insn.operand[0], static_cast<T>(value)) ? Step::kNext : c.stop;
  });
  if (step != Step::kNext) c.s.gpr[kRsp] = old;
  return step;
}

Step pusha(Cpu& c, const Insn& insn) {
  Stack stack(c);
  for (unsigned reg = 0; reg < 8; ++reg) {
    if (!stack.push(insn.operand_size, c.s.gpr[reg])) return c.stop;
  }
  stack.commit();
  return Step::kNext;
}
Step popa(Cpu& c, const Insn& insn) {
  Stack stack(c);
  u64 values[8] = {};
  for (unsigned reg = 8; reg-- > 0;) {
    if (!stack.pop(insn.operand_size, &values[reg])) return c.stop;
  }
  for (unsigned reg = 0; reg < 8; ++reg) {
    if (reg == kRsp) continue;
    if (insn.operand_size == 2) {
      set_gpr<u16>(c, reg, static_cast<u16>(values[reg]));
    } else {
      set_gpr<u32>(c, reg, static_cast<u32>(values[reg]));
    }
  }
  stack.commit();
  return Step::kNext;
}

Step pushf(Cpu& c, const Insn& insn) {
  if (c.v86() && (c.s.rflags & rflags::kIopl) != rflags::kIopl) return c.gp0();
  Stack stack(c);
  if (!stack.push(insn.operand_size, c.rflags() & ~(rflags::kRf | rflags::kVm))) return c.stop;
  stack.commit();
  return Step::kNext;
}
Step popf(Cpu& c, const Insn& insn) {
  if (c.v86() && (c.s.rflags & rflags::kIopl) != rflags::kIopl) return c.gp0();
  Stack stack(c);
  u64 value = 0;
  if (!stack.pop(insn.operand_size, &value)) return c.stop;
  const u64 mask = writable_flags(c, insn.operand_size);
  u64 flags = (c.rflags() & ~mask) | (value & mask);
  if (insn.operand_size != 2) flags &= ~rflags::kRf;
  c.set_rflags(flags);
  stack.commit();
  c.update_view();
  c.update_attention();
  return Step::kEnd;
}

Step enter(Cpu& c, const Insn& insn) {
  const unsigned size = insn.operand_size;
  const unsigned level = insn.imm2 & 31U;
  Stack stack(c);
  if (!stack.push(size, c.s.gpr[kRbp])) return c.stop;
  const u64 frame = stack.sp();
  u64 bp = c.s.gpr[kRbp] & stack.mask();
  for (unsigned i = 1; i < level; ++i) {
    bp = (bp - size) & stack.mask();
    u64 value = 0;
    Stack outer(c, bp);
    if (!outer.pop(size, &value) || !stack.push(size, value)) return c.stop;
  }
  if (level > 0 && !stack.push(size, frame)) return c.stop;
  stack.skip(~(insn.imm & 0xffff) + 1);
  u64 linear = 0;
  if (!linearize(c, kSegSs, stack.sp(), size, true, &linear) || !probe_write(c, linear, size)) {
    return c.stop;
  }
  stack.commit();
  switch (size) {
    case 2:
      set_gpr<u16>(c, kRbp, static_cast<u16>(frame));
      break;
    case 4:
      set_gpr<u32>(c, kRbp, static_cast<u32>(frame));
      break;
    default:
      c.s.gpr[kRbp] = frame;
      break;
  }
  return Step::kNext;
}

Step leave(Cpu& c, const Insn& insn) {
  Stack stack(c, c.s.gpr[kRbp]);
  u64 value = 0;
  if (!stack.pop(insn.operand_size, &value)) return c.stop;
  stack.commit();
  switch (insn.operand_size) {
    case 2:
      set_gpr<u16>(c, kRbp, static_cast<u16>(value));
      break;
    case 4:
      set_gpr<u32>(c, kRbp, static_cast<u32>(value));
      break;
    default:
      c.s.gpr[kRbp] = value;
      break;
  }
  return Step::kNext;
}

Step push_segment(Cpu& c, const Insn& insn) {
  Stack stack(c);
  if (!stack.push(insn.operand_size, c.s.sys.seg[insn.operand[0].reg].selector)) return c.stop;
  stack.commit();
  return Step::kNext;
}
Step pop_segment(Cpu& c, const Insn& insn) {
  const unsigned segment = insn.operand[0].reg;
  Stack stack(c);
  u64 value = 0;
  if (!stack.pop(insn.operand_size, &value)) return c.stop;
  if (!load_segment(c, segment, static_cast<u16>(value))) return c.stop;
  stack.commit();
  if (segment == kSegSs) {
    c.s.events.shadow = kShadowMovSs;
    c.update_attention();
    return Step::kEnd;
  }
  return Step::kNext;
}

}  // namespace stagetwo::vcpu::ops

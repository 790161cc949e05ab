// SPDX-License-Identifier: Apache-2.0
//
// The executor's part of SSE (see sse.h for the other) and the few x87 control instructions. x87
// arithmetic and MMX are outside: they end as emulation failures, with the instruction's bytes.
#include "vcpu/fx_image.h"
#include "vcpu/operand.h"
#include "vcpu/sse.h"

namespace stagetwo::vcpu::ops {
namespace {

// False: #UD or #NM is raised.
bool sse_ready(Cpu& c) {
  switch (sse_availability(c.s.sys.cr0, c.s.sys.cr4)) {
    case SseAvailability::kAvailable:
      return true;
    case SseAvailability::kUndefined:
      c.ud();
      return false;
    case SseAvailability::kDeviceNotAvailable:
      c.raise(kVectorNm);
      return false;
  }
  return false;
}

bool sse_memory(Cpu& c, const Insn& insn, const Operand& op, bool write, u64* linear) {
  if (!operand_address(c, insn, op.size == 0 ? 1 : op.size, write, linear)) return false;
  if (op.size == 16 && sse_aligned(insn.op) && (*linear & 15) != 0) {
    c.gp0();
    return false;
  }
  return true;
}

// 2, 4, 8 or 16 bytes. Sixteen are two accesses, but never half of one: the second half of a page
// that answered the first answers too.
bool load_vector(Cpu& c, u64 linear, Xmm* value, u32 size) {
  switch (size) {
    case 4: {
      u32 low = 0;
      if (!load(c, linear, &low)) return false;
      value->lo = low;
      return true;
    }
    case 8:
      return load(c, linear, &value->lo);
    case 16:
      if (load_hit(c, linear, &value->lo) && load_hit(c, linear + 8, &value->hi)) return true;
      [[fallthrough]];
    default:
      return load_slow(c, linear, value, size, Who::kExplicit);
  }
}
bool store_vector(Cpu& c, u64 linear, const Xmm& value, u32 size) {
  switch (size) {
    case 4:
      return store(c, linear, static_cast<u32>(value.lo));
    case 8:
      return store(c, linear, value.lo);
    case 16:
      if ((linear & ~kPageMask) <= kPageSize - 16 && store_hit(c, linear, value.lo) &&
          store_hit(c, linear + 8, value.hi))
        return true;
      [[fallthrough]];
    default:
      return store_slow(c, linear, &value, size, Who::kExplicit);
  }
}

bool read_source(Cpu& c, const Insn& insn, const Operand& op, Xmm* value) {
  *value = Xmm{};
  switch (op.kind) {
    case OperandKind::kXmm:
      *value = c.s.xmm[op.reg];
      return true;
    case OperandKind::kImm:
      value->lo = insn.imm;
      return true;
    case OperandKind::kMem: {
      u64 linear = 0;
      if (!sse_memory(c, insn, op, false, &linear)) return false;
      return load_vector(c, linear, value, op.size);
    }
    default:
      value->lo = op.size == 8 ? c.s.gpr[op.reg] : static_cast<u32>(c.s.gpr[op.reg]);
      return true;
  }
}

bool write_result(Cpu& c, const Insn& insn, const Operand& op, const Xmm& value) {
  switch (op.kind) {
    case OperandKind::kXmm:
      c.s.xmm[op.reg] = value;
      return true;
    case OperandKind::kMem: {
      u64 linear = 0;
      return sse_memory(c, insn, op, true, &linear) && store_vector(c, linear, value, op.size);
    }
    default:
      c.s.gpr[op.reg] = op.size == 8 ? value.lo : static_cast<u32>(value.lo);
      return true;
  }
}

bool compares_to_flags(Op op) {
  return op == Op::kComiss || op == Op::kComisd || op == Op::kUcomiss || op == Op::kUcomisd;
}

}  // namespace

Step sse(Cpu& c, const Insn& insn) {
  if (!sse_ready(c)) return c.stop;
  SseOperands operands;
  operands.mxcsr = c.s.mxcsr;
  const bool to_flags = compares_to_flags(insn.op);
  if (to_flags) operands.rflags = c.rflags();
  if (insn.operand[0].kind == OperandKind::kXmm) operands.dst = c.s.xmm[insn.operand[0].reg];
  if (insn.operand_count > 1 && !read_source(c, insn, insn.operand[1], &operands.src))
    return c.stop;
  const SseOutcome outcome = execute_sse(insn, operands);
  c.s.mxcsr = operands.mxcsr;
  if (outcome == SseOutcome::kSimdException) {
    return (c.s.sys.cr4 & cr4::kOsxmmexcpt) != 0 ? c.raise(kVectorXm) : c.ud();
  }
  if (to_flags) {
    c.flags.set_exact(operands.rflags);
    return Step::kNext;
  }
  return write_result(c, insn, insn.operand[0], operands.dst) ? Step::kNext : c.stop;
}

Step maskmovdqu(Cpu& c, const Insn& insn) {
  if (!sse_ready(c)) return c.stop;
  const u16 mask = sse_mask(c.s.xmm[insn.operand[1].reg]);
  u64 offset = c.s.gpr[kRdi];
  if (insn.address_size == 4) offset = static_cast<u32>(offset);
  if (insn.address_size == 2) offset = static_cast<u16>(offset);
  u64 linear = 0;
  if (!linearize(c, static_cast<unsigned>(insn.segment), offset, 16, true, &linear)) return c.stop;
  // Whether a byte that the mask spares can fault is the processor's choice: here it can.
  u8 bytes[16];
  __builtin_memcpy(bytes, &c.s.xmm[insn.operand[0].reg], 16);
  const Hold hold(c);  // what was probed stays
  if (!probe_write(c, linear, 8) || !probe_write(c, linear + 8, 8)) return c.stop;
  for (unsigned i = 0; i < 16; ++i) {
    if ((mask >> i & 1) != 0 && !store(c, linear + i, bytes[i])) return c.stop;
  }
  return Step::kNext;
}

Step movnti(Cpu& c, const Insn& insn) {
  return by_size(insn.operand[0].size, [&]<typename T>() {
    return write_operand<T>(c, insn, insn.operand[0], get_register<T>(c, insn.operand[1]))
               ? Step::kNext
               : c.stop;
  });
}

Step ldmxcsr(Cpu& c, const Insn& insn) {
  u32 value = 0;
  if (!sse_ready(c) || !read_operand<u32>(c, insn, insn.operand[0], &value)) return c.stop;
  if ((value & ~kMxcsrValid) != 0) return c.gp0();
  c.s.mxcsr = value;
  return Step::kNext;
}
Step stmxcsr(Cpu& c, const Insn& insn) {
  if (!sse_ready(c) || !write_operand<u32>(c, insn, insn.operand[0], c.s.mxcsr)) return c.stop;
  return Step::kNext;
}

namespace {

FxFormat fx_format(const Cpu& c, const Insn& insn) {
  const bool fast = (c.s.sys.efer & efer::kFfxsr) != 0 && c.cpl() == 0 && c.long64();
  return {.wide = insn.rex_w, .xmm = !fast, .sixteen = c.long64()};
}
bool fx_address(Cpu& c, const Insn& insn, bool write, u64* linear) {
  if ((c.s.sys.cr0 & cr0::kEm) != 0 || (c.s.sys.cr0 & cr0::kTs) != 0) {
    c.raise(kVectorNm);
    return false;
  }
  if (!operand_address(c, insn, kFxImageBytes, write, linear)) return false;
  if ((*linear & 15) == 0) return true;
  // With alignment checking on, which of the two exceptions comes is the processor's choice (SDM
  // vol. 2, FXSAVE): this is what AMD's have chosen.
  if (misaligned(c, *linear, 4)) return false;
  c.gp0();
  return false;
}

}  // namespace

Step fxsave(Cpu& c, const Insn& insn) {
  u64 linear = 0;
  if (!fx_address(c, insn, true, &linear)) return c.stop;
  u8 image[kFxImageBytes] = {};
  const auto bytes = static_cast<u32>(fx_save(c.s, fx_format(c, insn), image));
  return store_bytes(c, linear, image, bytes, Who::kExplicit) ? Step::kNext : c.stop;
}
Step fxrstor(Cpu& c, const Insn& insn) {
  u64 linear = 0;
  u8 image[kFxImageBytes];
  if (!fx_address(c, insn, false, &linear) ||
      !load_bytes(c, linear, image, sizeof(image), Who::kExplicit)) {
    return c.stop;
  }
  return fx_restore(&c.s, fx_format(c, insn), image) ? Step::kNext : c.gp0();
}

// --- x87 -----------------------------------------------------------------------------------------

namespace {
bool x87_ready(Cpu& c) {
  if ((c.s.sys.cr0 & (cr0::kEm | cr0::kTs)) == 0) return true;
  c.raise(kVectorNm);
  return false;
}
// The check of the instructions that wait: an exception that is pending comes first. Without CR0.NE
// it would be an interrupt, which nobody here delivers.
bool x87_quiet(Cpu& c) {
  if ((c.s.x87.fsw & kX87Pending) == 0 || (c.s.sys.cr0 & cr0::kNe) == 0) return true;
  c.raise(kVectorMf);
  return false;
}
}  // namespace

// Arithmetic is outside. The operand is touched first, so that a page fault is a page fault; but
// where the kernel would emulate to raise it, it would fail to emulate this one.
Step x87(Cpu& c, const Insn& insn) {
  if (!x87_ready(c) || !x87_quiet(c)) return c.stop;
  if (insn.has_mem) {
    const u32 size = insn.operand[0].size != 0 ? insn.operand[0].size : 1;
    u64 linear = 0;
    if (!operand_address(c, insn, size, false, &linear)) return c.stop;
    if (!probe_read(c, linear, size)) {
      const bool emulated = c.stop == Step::kFault && c.fault.by_guest_width;
      return emulated ? c.emulation_failure() : c.stop;
    }
  }
  return c.emulation_failure();
}
Step fwait(Cpu& c, const Insn&) {
  constexpr u64 kBoth = cr0::kMp | cr0::kTs;
  if ((c.s.sys.cr0 & kBoth) == kBoth) return c.raise(kVectorNm);
  return x87_quiet(c) ? Step::kNext : c.stop;
}
Step fninit(Cpu& c, const Insn&) {
  if (!x87_ready(c)) return c.stop;
  // Registers are kept by their number on the stack, whose top becomes the first.
  X87& x87 = c.s.x87;
  u8 old[8][16];
  __builtin_memcpy(old, x87.st, sizeof old);
  const unsigned top = x87.fsw >> 11 & 7;
  for (unsigned i = 0; i < 8; ++i) __builtin_memcpy(x87.st[i], old[(i - top) & 7], 16);
  c.s.x87.fcw = 0x37f;
  c.s.x87.fsw = 0;
  c.s.x87.ftw = 0;
  c.s.x87.fop = 0;
  c.s.x87.fip = c.s.x87.fdp = 0;
  return Step::kNext;
}
Step fnclex(Cpu& c, const Insn&) {
  if (!x87_ready(c)) return c.stop;
  c.s.x87.fsw &= 0x7f00;
  return Step::kNext;
}
Step fldcw(Cpu& c, const Insn& insn) {
  u16 value = 0;
  if (!x87_ready(c) || !x87_quiet(c) || !read_operand<u16>(c, insn, insn.operand[0], &value)) {
    return c.stop;
  }
  c.s.x87.fcw = value;
  settle_x87(&c.s.x87);
  return Step::kNext;
}
Step fnstcw(Cpu& c, const Insn& insn) {
  if (!x87_ready(c) || !write_operand<u16>(c, insn, insn.operand[0], c.s.x87.fcw)) return c.stop;
  return Step::kNext;
}
Step fnstsw(Cpu& c, const Insn& insn) {
  if (!x87_ready(c) || !write_operand<u16>(c, insn, insn.operand[0], c.s.x87.fsw)) return c.stop;
  return Step::kNext;
}

}  // namespace stagetwo::vcpu::ops

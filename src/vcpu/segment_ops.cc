// SPDX-License-Identifier: Apache-2.0
#include "vcpu/operand.h"
#include "vcpu/segments.h"

namespace stagetwo::vcpu::ops {
namespace {

bool protected_only(Cpu& c) {
  if (!c.real_mode() && !c.v86()) return true;
  c.ud();
  return false;
}
bool privileged(Cpu& c) {
  if (c.cpl() == 0 && !c.v86()) return true;
  c.gp0();
  return false;
}
// SGDT, SIDT, SLDT, STR, SMSW under CR4.UMIP.
bool not_umip(Cpu& c) {
  if ((c.s.sys.cr4 & cr4::kUmip) == 0 || c.cpl() == 0 || c.real_mode()) return true;
  c.gp0();
  return false;
}

Step after_stack_segment(Cpu& c) {
  c.s.events.shadow = kShadowMovSs;
  c.update_attention();
  return Step::kEnd;
}

// To a register of the operand size, or two bytes of memory.
Step store_selector(Cpu& c, const Insn& insn, u16 value) {
  if (insn.operand[0].kind == OperandKind::kMem) {
    return write_operand<u16>(c, insn, insn.operand[0], value) ? Step::kNext : c.stop;
  }
  return by_size(insn.operand[0].size, [&]<typename T>() {
    set_register<T>(c, insn.operand[0], static_cast<T>(value));
    return Step::kNext;
  });
}

void set_zf(Cpu& c, bool value) {
  c.flags.set_exact((c.flags.bits() & ~rflags::kZf) | (value ? rflags::kZf : 0));
}

}  // namespace

Step mov_to_segment(Cpu& c, const Insn& insn) {
  const unsigned segment = insn.operand[0].reg;
  if (segment == kSegCs || segment > kSegGs) return c.ud();
  u16 selector = 0;
  if (!read_operand<u16>(c, insn, insn.operand[1], &selector) ||
      !load_segment(c, segment, selector)) {
    return c.stop;
  }
  return segment == kSegSs ? after_stack_segment(c) : Step::kNext;
}

Step mov_from_segment(Cpu& c, const Insn& insn) {
  const unsigned segment = insn.operand[1].reg;
  if (segment > kSegGs) return c.ud();
  return store_selector(c, insn, c.s.sys.seg[segment].selector);
}

Step load_far_pointer(Cpu& c, const Insn& insn) {
  unsigned segment = kSegDs;
  switch (insn.op) {
    case Op::kLes:
      segment = kSegEs;
      break;
    case Op::kLfs:
      segment = kSegFs;
      break;
    case Op::kLgs:
      segment = kSegGs;
      break;
    case Op::kLss:
      segment = kSegSs;
      break;
    default:
      break;
  }
  const unsigned size = insn.operand_size;
  u64 linear = 0, offset = 0;
  u16 selector = 0;
  if (!operand_address(c, insn, size + 2U, false, &linear) ||
      !load_bytes(c, linear, &offset, size, Who::kExplicit) || !load(c, linear + size, &selector) ||
      !load_segment(c, segment, selector)) {
    return c.stop;
  }
  const Step step = by_size(size, [&]<typename T>() {
    set_register<T>(c, insn.operand[0], static_cast<T>(offset));
    return Step::kNext;
  });
  return segment == kSegSs ? after_stack_segment(c) : step;
}

// --- Looking at descriptors without loading them ------------------------------------------------

namespace {

enum class Look : u8 { kYes, kNo, kStopped };

// A descriptor LAR, LSL, VERR and VERW may look at; a fault of the selector means "no".
Look look(Cpu& c, u16 selector, Descriptor* d) {
  if ((selector & ~3U) == 0) return Look::kNo;
  if (!read_descriptor(c, selector, kVectorGp, d)) {
    return c.stop == Step::kFault && c.fault.vector == kVectorGp ? Look::kNo : Look::kStopped;
  }
  if (!d->s() && c.s.long_mode()) {
    Descriptor full;
    if (!read_system_descriptor(c, selector, kVectorGp, &full)) {
      return c.stop == Step::kFault && c.fault.vector == kVectorGp ? Look::kNo : Look::kStopped;
    }
    *d = full;
  }
  const u8 rpl = selector & 3;
  const bool conforming = d->is_code() && d->conforming();
  return conforming || (c.cpl() <= d->dpl() && rpl <= d->dpl()) ? Look::kYes : Look::kNo;
}

bool lar_type(const Cpu& c, u8 type, bool limit_only) {
  if (c.s.long_mode()) {
    return type == 2 || type == 9 || type == 11 || (type == 12 && !limit_only);
  }
  switch (type) {
    case 1:
    case 2:
    case 3:
    case 9:
    case 11:
      return true;
    case 4:
    case 5:
    case 12:
      return !limit_only;
    default:
      return false;
  }
}

template <typename F>
Step describe(Cpu& c, const Insn& insn, bool limit_only, F f) {
  if (!protected_only(c)) return c.stop;
  u16 selector = 0;
  if (!read_operand<u16>(c, insn, insn.operand[1], &selector)) return c.stop;
  Descriptor d;
  const Look seen = look(c, selector, &d);
  if (seen == Look::kStopped) return c.stop;
  const bool ok = seen == Look::kYes && (d.s() || lar_type(c, d.type(), limit_only));
  if (ok) {
    const u32 value = f(d);
    (void)by_size(insn.operand_size, [&]<typename T>() {
      set_register<T>(c, insn.operand[0], static_cast<T>(value));
      return Step::kNext;
    });
  }
  set_zf(c, ok);
  return Step::kNext;
}

Step verify_segment(Cpu& c, const Insn& insn, bool write) {
  if (!protected_only(c)) return c.stop;
  u16 selector = 0;
  if (!read_operand<u16>(c, insn, insn.operand[0], &selector)) return c.stop;
  Descriptor d;
  const Look seen = look(c, selector, &d);
  if (seen == Look::kStopped) return c.stop;
  set_zf(c, seen == Look::kYes && d.s() && (write ? d.writable() : d.readable()));
  return Step::kNext;
}

}  // namespace

Step lar(Cpu& c, const Insn& insn) {
  return describe(c, insn, false,
                  [](const Descriptor& d) { return static_cast<u32>(d.low >> 32 & 0x00ffff00); });
}
Step lsl(Cpu& c, const Insn& insn) {
  return describe(c, insn, true, [](const Descriptor& d) { return d.limit(); });
}
Step verr(Cpu& c, const Insn& insn) {
  return verify_segment(c, insn, false);
}
Step verw(Cpu& c, const Insn& insn) {
  return verify_segment(c, insn, true);
}

Step arpl(Cpu& c, const Insn& insn) {
  if (!protected_only(c)) return c.stop;
  u16 dst = 0;
  const u16 src = get_register<u16>(c, insn.operand[1]);
  if (!read_operand<u16>(c, insn, insn.operand[0], &dst)) return c.stop;
  const bool adjust = (dst & 3) < (src & 3);
  if (adjust &&
      !write_operand<u16>(c, insn, insn.operand[0], static_cast<u16>((dst & ~3U) | (src & 3)))) {
    return c.stop;
  }
  set_zf(c, adjust);
  return Step::kNext;
}

// --- Descriptor tables -----------------------------------------------------------------------

namespace {

Step load_table(Cpu& c, const Insn& insn, DescTable* table) {
  if (!privileged(c)) return c.stop;
  const unsigned width = c.long64() ? 8 : 4;
  u64 linear = 0, base = 0;
  u16 limit = 0;
  if (!operand_address(c, insn, width + 2U, false, &linear) || !load(c, linear, &limit) ||
      !load_bytes(c, linear + 2, &base, width, Who::kExplicit)) {
    return c.stop;
  }
  if (!c.long64() && insn.operand_size == 2) base &= 0xffffff;
  if (c.long64() && !is_canonical(base, (c.s.sys.cr4 & cr4::kLa57) != 0)) return c.gp0();
  table->base = base;
  table->limit = limit;
  return Step::kNext;
}

Step store_table(Cpu& c, const Insn& insn, const DescTable& table) {
  if (!not_umip(c)) return c.stop;
  const unsigned width = c.long64() ? 8 : 4;
  u8 image[10];
  __builtin_memcpy(image, &table.limit, 2);
  __builtin_memcpy(image + 2, &table.base, 8);
  u64 linear = 0;
  if (!operand_address(c, insn, width + 2U, true, &linear) ||
      !store_bytes(c, linear, image, width + 2U, Who::kExplicit)) {
    return c.stop;
  }
  return Step::kNext;
}

}  // namespace

Step lgdt(Cpu& c, const Insn& insn) {
  return load_table(c, insn, &c.s.sys.gdt);
}
Step lidt(Cpu& c, const Insn& insn) {
  return load_table(c, insn, &c.s.sys.idt);
}
Step sgdt(Cpu& c, const Insn& insn) {
  return store_table(c, insn, c.s.sys.gdt);
}
Step sidt(Cpu& c, const Insn& insn) {
  return store_table(c, insn, c.s.sys.idt);
}

Step lldt(Cpu& c, const Insn& insn) {
  if (!protected_only(c) || !privileged(c)) return c.stop;
  u16 selector = 0;
  if (!read_operand<u16>(c, insn, insn.operand[0], &selector)) return c.stop;
  if ((selector & ~3U) == 0) {
    c.s.sys.ldt = unusable_segment(selector);
    c.s.sys.ldt.s = 0;
    return Step::kNext;
  }
  Descriptor d;
  if ((selector & 4) != 0) return c.raise(kVectorGp, selector & ~3U);
  if (!read_system_descriptor(c, selector, kVectorGp, &d)) return c.stop;
  if (d.s() || d.type() != 2) return c.raise(kVectorGp, selector & ~3U);
  if (!d.present()) return c.raise(kVectorNp, selector & ~3U);
  c.s.sys.ldt = d.segment(selector);
  return Step::kNext;
}

Step ltr(Cpu& c, const Insn& insn) {
  if (!protected_only(c) || !privileged(c)) return c.stop;
  u16 selector = 0;
  if (!read_operand<u16>(c, insn, insn.operand[0], &selector)) return c.stop;
  const u32 error = selector & ~3U;
  Descriptor d;
  if (error == 0) return c.gp0();
  if ((selector & 4) != 0) return c.raise(kVectorGp, error);
  if (!read_system_descriptor(c, selector, kVectorGp, &d)) return c.stop;
  const bool tss = !d.s() && (d.type() == 9 || (d.type() == 1 && !c.s.long_mode()));
  if (!tss) return c.raise(kVectorGp, error);
  if (!d.present()) return c.raise(kVectorNp, error);
  const u8 busy = static_cast<u8>(d.low >> 40 | 2);
  if (!store_bytes(c, c.s.sys.gdt.base + error + 5, &busy, 1, Who::kSystem)) return c.stop;
  c.s.sys.tr = d.segment(selector);
  c.s.sys.tr.type |= 2;
  return Step::kNext;
}

Step sldt(Cpu& c, const Insn& insn) {
  if (!protected_only(c) || !not_umip(c)) return c.stop;
  return store_selector(c, insn, c.s.sys.ldt.selector);
}
Step str(Cpu& c, const Insn& insn) {
  if (!protected_only(c) || !not_umip(c)) return c.stop;
  return store_selector(c, insn, c.s.sys.tr.selector);
}

Step swapgs(Cpu& c, const Insn&) {
  if (!c.long64()) return c.ud();
  if (c.cpl() != 0) return c.gp0();
  const u64 base = c.s.sys.seg[kSegGs].base;
  c.s.sys.seg[kSegGs].base = c.s.msr.kernel_gs_base;
  c.s.msr.kernel_gs_base = base;
  c.update_view();
  return Step::kNext;
}

namespace {
unsigned base_segment(const Insn& insn) {
  return insn.op == Op::kRdfsbase || insn.op == Op::kWrfsbase ? kSegFs : kSegGs;
}
}  // namespace

Step rdfsbase(Cpu& c, const Insn& insn) {
  if ((c.s.sys.cr4 & cr4::kFsgsbase) == 0) return c.ud();
  const u64 base = c.s.sys.seg[base_segment(insn)].base;
  c.s.gpr[insn.operand[0].reg] = insn.operand_size == 8 ? base : static_cast<u32>(base);
  return Step::kNext;
}
Step wrfsbase(Cpu& c, const Insn& insn) {
  if ((c.s.sys.cr4 & cr4::kFsgsbase) == 0) return c.ud();
  u64 base = c.s.gpr[insn.operand[0].reg];
  if (insn.operand_size != 8) base = static_cast<u32>(base);
  if (!is_canonical(base, (c.s.sys.cr4 & cr4::kLa57) != 0)) return c.gp0();
  c.s.sys.seg[base_segment(insn)].base = base;
  c.update_view();
  return Step::kNext;
}

}  // namespace stagetwo::vcpu::ops

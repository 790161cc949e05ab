// SPDX-License-Identifier: Apache-2.0
#include "vcpu/alu_wide.h"
#include "vcpu/hot_ops.h"

namespace stagetwo::vcpu::hot {
namespace {

enum class Alu : u8 { kAdd, kSub, kAnd, kOr, kXor, kCmp, kTest, kAdc, kSbb };

constexpr bool writes(Alu op) {
  return op != Alu::kCmp && op != Alu::kTest;
}

template <Alu op, typename T>
[[gnu::always_inline]] inline T compute(LazyFlags& f, T a, T b) {
  if constexpr (op == Alu::kAdd) return alu::add(f, a, b);
  if constexpr (op == Alu::kSub || op == Alu::kCmp) return alu::sub(f, a, b);
  if constexpr (op == Alu::kAnd || op == Alu::kTest) return alu::logic(f, static_cast<T>(a & b));
  if constexpr (op == Alu::kOr) return alu::logic(f, static_cast<T>(a | b));
  if constexpr (op == Alu::kXor) return alu::logic(f, static_cast<T>(a ^ b));
  if constexpr (op == Alu::kAdc) return alu::adc(f, a, b);
  if constexpr (op == Alu::kSbb) return alu::sbb(f, a, b);
}

template <Alu op, typename T>
const Uop* reg_reg(Cpu& c, const Uop* u) {
  const T r = compute<op, T>(c.flags, get<T>(c, u->dst), get<T>(c, u->src));
  if constexpr (writes(op)) set<T>(c, u->dst, r);
  return next(c, u);
}
template <Alu op, typename T>
const Uop* reg_imm(Cpu& c, const Uop* u) {
  const T r = compute<op, T>(c.flags, get<T>(c, u->dst), static_cast<T>(u->imm));
  if constexpr (writes(op)) set<T>(c, u->dst, r);
  return next(c, u);
}
template <Alu op, typename T, Form form>
const Uop* reg_mem(Cpu& c, const Uop* u) {
  T value = 0;
  if (!load_hit(c, address<form>(c, u), &value)) [[unlikely]]
    return u;
  const T r = compute<op, T>(c.flags, get<T>(c, u->dst), value);
  if constexpr (writes(op)) set<T>(c, u->dst, r);
  return next(c, u);
}
// memory op= register or immediate
template <Alu op, typename T, Form form, bool imm>
const Uop* mem_any(Cpu& c, const Uop* u) {
  const u64 at = address<form>(c, u);
  const T operand = imm ? static_cast<T>(u->imm) : get<T>(c, u->src);
  T old = 0;
  if constexpr (writes(op)) {
    const TlbEntry* e = find_hit<&TlbEntry::write_tag>(c, c.last_write, at, sizeof(T));
    if (e == nullptr) [[unlikely]]
      return u;
    const Hva host(at + e->addend);
    if (!host::load<T>(host, &old, restartable(c))) [[unlikely]]
      return u;
    LazyFlags flags = c.flags;
    const T r = compute<op, T>(flags, old, operand);
    if (!host::store<T>(host, r, restartable(c))) [[unlikely]]
      return u;
    c.flags = flags;
  } else {
    if (!load_hit(c, at, &old)) [[unlikely]]
      return u;
    compute<op, T>(c.flags, old, operand);
  }
  return next(c, u);
}

template <Alu op, typename T, Form form>
Handler with_form(const Shape& s) {
  if (s.dst_memory) {
    return s.src_imm ? &mem_any<op, T, form, true> : &mem_any<op, T, form, false>;
  }
  return &reg_mem<op, T, form>;
}

template <Alu op, typename T>
Handler with_size(const Shape& s) {
  if (!s.dst_memory && !s.src_memory) return s.src_imm ? &reg_imm<op, T> : &reg_reg<op, T>;
  switch (s.form) {
    case Form::kBase:
      return with_form<op, T, Form::kBase>(s);
    case Form::kBaseIndex:
      return with_form<op, T, Form::kBaseIndex>(s);
    case Form::kAbsolute:
      return with_form<op, T, Form::kAbsolute>(s);
  }
  return nullptr;
}

template <Alu op>
Handler with_op(const Insn& insn, const Shape& s) {
  switch (insn.operand_size) {
    case 1:
      return with_size<op, u8>(s);
    case 2:
      return with_size<op, u16>(s);
    case 4:
      return with_size<op, u32>(s);
    case 8:
      return with_size<op, u64>(s);
    default:
      return nullptr;
  }
}

// --- One operand, shifts -----------------------------------------------------------------------

enum class Unary : u8 { kInc, kDec, kNeg, kNot };

template <Unary op, typename T>
const Uop* unary(Cpu& c, const Uop* u) {
  const T a = get<T>(c, u->dst);
  T r = 0;
  if constexpr (op == Unary::kInc) r = alu::inc(c.flags, a);
  if constexpr (op == Unary::kDec) r = alu::dec(c.flags, a);
  if constexpr (op == Unary::kNeg) r = alu::sub(c.flags, T{0}, a);
  if constexpr (op == Unary::kNot) r = static_cast<T>(~a);
  set<T>(c, u->dst, r);
  return next(c, u);
}
template <Unary op>
Handler unary_size(const Insn& insn) {
  switch (insn.operand_size) {
    case 1:
      return &unary<op, u8>;
    case 4:
      return &unary<op, u32>;
    case 8:
      return &unary<op, u64>;
    default:
      return nullptr;
  }
}

enum class Shift : u8 { kShl, kShr, kSar };

template <Shift op, typename T, bool by_cl>
const Uop* shift(Cpu& c, const Uop* u) {
  const unsigned count = by_cl ? static_cast<u8>(c.s.gpr[kRcx]) : static_cast<u8>(u->imm);
  const T a = get<T>(c, u->dst);
  T r = 0;
  if constexpr (op == Shift::kShl) r = alu::shl(c.flags, a, count);
  if constexpr (op == Shift::kShr) r = alu::shr(c.flags, a, count);
  if constexpr (op == Shift::kSar) r = alu::sar(c.flags, a, count);
  set<T>(c, u->dst, r);
  return next(c, u);
}
template <Shift op>
Handler shift_size(const Insn& insn) {
  const bool by_cl = insn.operand[1].kind == OperandKind::kGpr;
  switch (insn.operand_size) {
    case 4:
      return by_cl ? &shift<op, u32, true> : &shift<op, u32, false>;
    case 8:
      return by_cl ? &shift<op, u64, true> : &shift<op, u64, false>;
    default:
      return nullptr;
  }
}

template <typename T>
const Uop* imul_reg(Cpu& c, const Uop* u) {
  set<T>(c, u->dst, alu::imul<T>(c.flags, get<T>(c, u->dst), get<T>(c, u->src)));
  return next(c, u);
}
template <typename T>
const Uop* imul_imm(Cpu& c, const Uop* u) {
  set<T>(c, u->dst, alu::imul<T>(c.flags, get<T>(c, u->src), static_cast<T>(u->imm)));
  return next(c, u);
}

Handler choose_imul(const Insn& insn) {
  const bool registers = insn.operand[1].kind == OperandKind::kGpr;
  if (!registers || insn.operand_size < 4) return nullptr;
  if (insn.operand_count == 3) return insn.operand_size == 8 ? &imul_imm<u64> : &imul_imm<u32>;
  return insn.operand_size == 8 ? &imul_reg<u64> : &imul_reg<u32>;
}

}  // namespace

Handler choose_alu(const Insn& insn, Uop*) {
  if (insn.op == Op::kImul) return choose_imul(insn);
  const Shape s = shape_of(insn);
  if (!s.usual) return nullptr;
  switch (insn.op) {
    case Op::kAdd:
      return with_op<Alu::kAdd>(insn, s);
    case Op::kSub:
      return with_op<Alu::kSub>(insn, s);
    case Op::kAnd:
      return with_op<Alu::kAnd>(insn, s);
    case Op::kOr:
      return with_op<Alu::kOr>(insn, s);
    case Op::kXor:
      return with_op<Alu::kXor>(insn, s);
    case Op::kCmp:
      return with_op<Alu::kCmp>(insn, s);
    case Op::kTest:
      return with_op<Alu::kTest>(insn, s);
    case Op::kAdc:
      return with_op<Alu::kAdc>(insn, s);
    case Op::kSbb:
      return with_op<Alu::kSbb>(insn, s);
    default:
      break;
  }
  if (s.dst_memory || s.src_memory) return nullptr;
  switch (insn.op) {
    case Op::kInc:
      return unary_size<Unary::kInc>(insn);
    case Op::kDec:
      return unary_size<Unary::kDec>(insn);
    case Op::kNeg:
      return unary_size<Unary::kNeg>(insn);
    case Op::kNot:
      return unary_size<Unary::kNot>(insn);
    case Op::kShl:
      return shift_size<Shift::kShl>(insn);
    case Op::kShr:
      return shift_size<Shift::kShr>(insn);
    case Op::kSar:
      return shift_size<Shift::kSar>(insn);
    default:
      return nullptr;
  }
}

}  // namespace stagetwo::vcpu::hot

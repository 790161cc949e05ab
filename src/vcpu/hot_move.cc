// SPDX-License-Identifier: Apache-2.0
#include <utility>

#include "vcpu/hot_ops.h"

namespace stagetwo::vcpu::hot {
namespace {

template <typename T>
const Uop* mov_reg(Cpu& c, const Uop* u) {
  set<T>(c, u->dst, get<T>(c, u->src));
  return next(c, u);
}
template <typename T>
const Uop* mov_imm(Cpu& c, const Uop* u) {
  set<T>(c, u->dst, static_cast<T>(u->imm));
  return next(c, u);
}
template <typename T, Form form>
const Uop* mov_load(Cpu& c, const Uop* u) {
  T value = 0;
  if (!load_hit(c, address<form>(c, u), &value)) [[unlikely]]
    return u;
  set<T>(c, u->dst, value);
  return next(c, u);
}
template <typename T, Form form, bool imm>
const Uop* mov_store(Cpu& c, const Uop* u) {
  const T value = imm ? static_cast<T>(u->imm) : get<T>(c, u->src);
  if (!store_hit(c, address<form>(c, u), value)) [[unlikely]]
    return u;
  return next(c, u);
}

// Calls f with the address form as a constant.
template <typename F>
Handler by_form(Form form, F f) {
  switch (form) {
    case Form::kBase:
      return f.template operator()<Form::kBase>();
    case Form::kBaseIndex:
      return f.template operator()<Form::kBaseIndex>();
    case Form::kAbsolute:
      return f.template operator()<Form::kAbsolute>();
  }
  return nullptr;
}

template <typename T>
Handler mov_size(const Shape& s) {
  if (!s.dst_memory && !s.src_memory) return s.src_imm ? &mov_imm<T> : &mov_reg<T>;
  return by_form(s.form, [&]<Form form>() -> Handler {
    if (s.src_memory) return &mov_load<T, form>;
    return s.src_imm ? &mov_store<T, form, true> : &mov_store<T, form, false>;
  });
}

Handler choose_mov(const Insn& insn, const Shape& s) {
  switch (insn.operand[0].size) {
    case 1:
      return mov_size<u8>(s);
    case 2:
      return mov_size<u16>(s);
    case 4:
      return mov_size<u32>(s);
    default:
      return mov_size<u64>(s);
  }
}

// --- Extending moves -----------------------------------------------------------------------------

template <typename From, typename To>
const Uop* extend_reg(Cpu& c, const Uop* u) {
  set<To>(c, u->dst, static_cast<To>(static_cast<From>(c.s.gpr[u->src])));
  return next(c, u);
}
template <typename From, typename To, Form form>
const Uop* extend_load(Cpu& c, const Uop* u) {
  std::make_unsigned_t<From> value = 0;
  if (!load_hit(c, address<form>(c, u), &value)) [[unlikely]]
    return u;
  set<To>(c, u->dst, static_cast<To>(static_cast<From>(value)));
  return next(c, u);
}
template <typename From, typename To>
Handler extend(const Shape& s) {
  if (!s.src_memory) return &extend_reg<From, To>;
  return by_form(s.form, []<Form form>() -> Handler { return &extend_load<From, To, form>; });
}
template <typename From>
Handler extend_to(const Insn& insn, const Shape& s) {
  if (insn.operand_size == 4) return extend<From, u32>(s);
  return insn.operand_size == 8 ? extend<From, u64>(s) : nullptr;
}
Handler choose_extend(const Insn& insn, const Shape& s, bool sign) {
  switch (insn.operand[1].size) {
    case 1:
      return sign ? extend_to<i8>(insn, s) : extend_to<u8>(insn, s);
    case 2:
      return sign ? extend_to<i16>(insn, s) : extend_to<u16>(insn, s);
    case 4:
      return sign ? extend_to<i32>(insn, s) : extend_to<u32>(insn, s);
    default:
      return nullptr;
  }
}

const Uop* cdqe(Cpu& c, const Uop* u) {
  c.s.gpr[kRax] = static_cast<u64>(static_cast<i64>(static_cast<i32>(c.s.gpr[kRax])));
  return next(c, u);
}
const Uop* nop(Cpu& c, const Uop* u) {
  return next(c, u);
}

template <typename T, Form form>
const Uop* lea(Cpu& c, const Uop* u) {
  set<T>(c, u->dst, static_cast<T>(address<form>(c, u)));
  return next(c, u);
}
Handler choose_lea(const Insn& insn, const Shape& s) {
  return by_form(s.form, [&]<Form form>() -> Handler {
    if (insn.operand_size == 8) return &lea<u64, form>;
    return insn.operand_size == 4 ? &lea<u32, form> : nullptr;
  });
}

// --- Conditional moves and sets
// --------------------------------------------------------------------

template <Cond cond>
const Uop* setcc(Cpu& c, const Uop* u) {
  set<u8>(c, u->dst, holds<cond>(c.flags) ? 1 : 0);
  return next(c, u);
}
template <Cond cond, typename T>
const Uop* cmovcc(Cpu& c, const Uop* u) {
  const T value = holds<cond>(c.flags) ? get<T>(c, u->src) : get<T>(c, u->dst);
  set<T>(c, u->dst, value);
  return next(c, u);
}

template <typename Indices>
struct Conditional;
template <std::size_t... i>
struct Conditional<std::index_sequence<i...>> {
  static constexpr Handler kSet[] = {&setcc<static_cast<Cond>(i)>...};
  static constexpr Handler kMove32[] = {&cmovcc<static_cast<Cond>(i), u32>...};
  static constexpr Handler kMove64[] = {&cmovcc<static_cast<Cond>(i), u64>...};
};
using ByCond = Conditional<std::make_index_sequence<16>>;

// --- Stack ---------------------------------------------------------------------------------------

template <bool imm>
const Uop* push(Cpu& c, const Uop* u) {
  const u64 value = imm ? u->imm : c.s.gpr[u->dst];
  const u64 rsp = c.s.gpr[kRsp] - 8;
  if (!store_hit(c, rsp, value)) [[unlikely]]
    return u;
  c.s.gpr[kRsp] = rsp;
  return next(c, u);
}
const Uop* pop(Cpu& c, const Uop* u) {
  u64 value = 0;
  if (!load_hit(c, c.s.gpr[kRsp], &value)) [[unlikely]]
    return u;
  c.s.gpr[kRsp] += 8;
  c.s.gpr[u->dst] = value;
  return next(c, u);
}
const Uop* leave(Cpu& c, const Uop* u) {
  const u64 rbp = c.s.gpr[kRbp];
  u64 value = 0;
  if (!load_hit(c, rbp, &value)) [[unlikely]]
    return u;
  c.s.gpr[kRsp] = rbp + 8;
  c.s.gpr[kRbp] = value;
  return next(c, u);
}

}  // namespace

Handler choose_move(const Insn& insn, Uop*) {
  const Shape s = shape_of(insn);
  if (insn.op == Op::kNop || insn.op == Op::kEndbr64) return &nop;
  if (!s.usual) return nullptr;
  const bool registers = !s.dst_memory && !s.src_memory;
  const auto cond = static_cast<std::size_t>(insn.cond);
  switch (insn.op) {
    case Op::kMov:
      return choose_mov(insn, s);
    case Op::kMovzx:
      return choose_extend(insn, s, false);
    case Op::kMovsx:
    case Op::kMovsxd:
      return choose_extend(insn, s, true);
    case Op::kLea:
      return choose_lea(insn, s);
    case Op::kCbw:
      return insn.operand_size == 8 ? &cdqe : nullptr;
    case Op::kSetcc:
      return registers ? ByCond::kSet[cond] : nullptr;
    case Op::kCmovcc:
      if (!registers || insn.operand_size < 4) return nullptr;
      return insn.operand_size == 8 ? ByCond::kMove64[cond] : ByCond::kMove32[cond];
    case Op::kPush:
      if (!registers || insn.operand_size != 8) return nullptr;
      return s.src_imm ? &push<true> : &push<false>;
    case Op::kPop:
      return registers && insn.operand_size == 8 ? &pop : nullptr;
    case Op::kLeave:
      return insn.operand_size == 8 ? &leave : nullptr;
    default:
      return nullptr;
  }
}

}  // namespace stagetwo::vcpu::hot

// SPDX-License-Identifier: Apache-2.0
#include <array>
#include <utility>

#include "vcpu/alu.h"
#include "vcpu/hot_ops.h"

namespace stagetwo::vcpu::hot {
namespace {

// Targets: `imm` where the jump goes, `disp` what follows it.

template <Cond cond>
const Uop* jcc(Cpu& c, const Uop* u) {
  return done(c, holds<cond>(c.flags) ? u->imm : static_cast<u64>(u->disp));
}
const Uop* jmp(Cpu& c, const Uop* u) {
  return done(c, u->imm);
}

const Uop* call(Cpu& c, const Uop* u) {
  const u64 rsp = c.s.gpr[kRsp] - 8;
  if (!store_hit(c, rsp, static_cast<u64>(u->disp))) [[unlikely]]
    return u;
  c.s.gpr[kRsp] = rsp;
  return done(c, u->imm);
}
// A target that is not canonical is left to the operation.
const Uop* call_reg(Cpu& c, const Uop* u) {
  const u64 target = c.s.gpr[u->dst];
  const u64 rsp = c.s.gpr[kRsp] - 8;
  if (!is_canonical(target, false) || !store_hit(c, rsp, static_cast<u64>(u->disp))) [[unlikely]] {
    return u;
  }
  c.s.gpr[kRsp] = rsp;
  return done(c, target);
}
const Uop* jmp_reg(Cpu& c, const Uop* u) {
  const u64 target = c.s.gpr[u->dst];
  if (!is_canonical(target, false)) [[unlikely]]
    return u;
  return done(c, target);
}
const Uop* ret(Cpu& c, const Uop* u) {
  u64 target = 0;
  const u64 rsp = c.s.gpr[kRsp];
  if (!load_hit(c, rsp, &target) || !is_canonical(target, false)) [[unlikely]]
    return u;
  c.s.gpr[kRsp] = rsp + 8;
  return done(c, target);
}

template <std::size_t... i>
constexpr auto jumps(std::index_sequence<i...>) {
  return std::array<Handler, sizeof...(i)>{&jcc<static_cast<Cond>(i)>...};
}
constexpr auto kJumps = jumps(std::make_index_sequence<16>{});

// --- Compare and jump
// ------------------------------------------------------------------------------

enum class Compare : u8 { kCmpReg, kCmpImm, kTestReg, kTestImm, kDec };

// What the condition says about `a` compared with `b`, without going through the flags.
template <Cond cond, typename T>
[[gnu::always_inline]] inline bool compared(T a, T b) {
  using S = std::make_signed_t<T>;
  constexpr bool negate = (static_cast<u8>(cond) & 1) != 0;
  constexpr u8 kind = static_cast<u8>(cond) >> 1;
  bool value = false;
  if constexpr (kind == 1) value = a < b;
  if constexpr (kind == 2) value = a == b;
  if constexpr (kind == 3) value = a <= b;
  if constexpr (kind == 4) value = static_cast<S>(a - b) < 0;
  if constexpr (kind == 6) value = static_cast<S>(a) < static_cast<S>(b);
  if constexpr (kind == 7) value = static_cast<S>(a) <= static_cast<S>(b);
  return value != negate;
}

template <Compare what, Cond cond, typename T>
const Uop* compare_jump(Cpu& c, const Uop* u) {
  const T a = get<T>(c, u->dst);
  bool taken = false;
  if constexpr (what == Compare::kDec) {
    const T r = alu::dec(c.flags, a);
    set<T>(c, u->dst, r);
    taken = compared<cond, T>(r, 0);
  } else {
    const T b = what == Compare::kCmpImm || what == Compare::kTestImm ? static_cast<T>(u->imm)
                                                                      : get<T>(c, u->src);
    if constexpr (what == Compare::kCmpReg || what == Compare::kCmpImm) {
      alu::sub(c.flags, a, b);
      taken = compared<cond, T>(a, b);
    } else {
      const T r = alu::logic(c.flags, static_cast<T>(a & b));
      taken = compared<cond, T>(r, 0);
    }
  }
  return done(c, taken ? u[1].imm : static_cast<u64>(u[1].disp));
}

constexpr bool has_comparison(Cond cond) {
  const u8 kind = static_cast<u8>(cond) >> 1;
  return kind != 0 && kind != 5;
}

template <Compare what, typename T, std::size_t... i>
constexpr auto row(std::index_sequence<i...>) {
  // OF and PF have no comparison of their own: those stay two instructions.
  constexpr auto one = []<Cond cond>() -> Handler {
    if constexpr (has_comparison(cond)) return &compare_jump<what, cond, T>;
    return nullptr;
  };
  return std::array<Handler, 16> { one.template operator()<static_cast<Cond>(i)>()... };
}
template <Compare what, typename T>
constexpr auto kRow = row<what, T>(std::make_index_sequence<16>{});

template <Compare what>
Handler pick(unsigned size, std::size_t cond) {
  switch (size) {
    case 1:
      return kRow<what, u8>[cond];
    case 4:
      return kRow<what, u32>[cond];
    case 8:
      return kRow<what, u64>[cond];
    default:
      return nullptr;
  }
}

}  // namespace

Handler choose_fused(const Insn& compare, const Insn& jump) {
  const auto cond = static_cast<std::size_t>(jump.cond);
  const bool imm = compare.operand_count > 1 && compare.operand[1].kind == OperandKind::kImm;
  const bool reg = compare.operand_count > 1 && compare.operand[1].kind == OperandKind::kGpr;
  const unsigned size = compare.operand_size;
  switch (compare.op) {
    case Op::kCmp:
      if (imm) return pick<Compare::kCmpImm>(size, cond);
      return reg ? pick<Compare::kCmpReg>(size, cond) : nullptr;
    case Op::kTest:
      if (imm) return pick<Compare::kTestImm>(size, cond);
      return reg ? pick<Compare::kTestReg>(size, cond) : nullptr;
    case Op::kDec:
      // Only ZF and SF can be told from the result alone.
      if (cond >> 1 != 2 && cond >> 1 != 4) return nullptr;
      return pick<Compare::kDec>(size, cond);
    default:
      return nullptr;
  }
}

Handler choose_flow(const Insn& insn, u64 next_rip, Uop* uop) {
  const bool relative = insn.operand_count == 1 && insn.operand[0].kind == OperandKind::kRel;
  const bool reg = insn.operand_count == 1 && insn.operand[0].kind == OperandKind::kGpr;
  if (!relative && !reg && insn.op != Op::kRet) return nullptr;
  const u64 target = next_rip + insn.imm;
  if (relative && !is_canonical(target, false)) return nullptr;
  switch (insn.op) {
    case Op::kJcc:
    case Op::kJmp:
    case Op::kCall:
      uop->imm = target;
      uop->disp = static_cast<i64>(next_rip);
      if (insn.op == Op::kJcc) return kJumps[static_cast<std::size_t>(insn.cond)];
      if (insn.op == Op::kJmp) return relative ? &jmp : &jmp_reg;
      return relative ? &call : &call_reg;
    case Op::kRet:
      return insn.operand_count == 0 ? &ret : nullptr;
    default:
      return nullptr;
  }
}

}  // namespace stagetwo::vcpu::hot

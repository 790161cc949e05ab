// SPDX-License-Identifier: Apache-2.0
#include "vcpu/alu_wide.h"
#include "vcpu/operand.h"

namespace stagetwo::vcpu::ops {
namespace {

// dst = f(flags, dst, src).
template <typename F>
Step two_operands(Cpu& c, const Insn& insn, F f) {
  return by_size(insn.operand_size, [&]<typename T>() {
    T source = 0;
    if (!read_operand<T>(c, insn, insn.operand[1], &source)) return c.stop;
    return modify<T>(c, insn, [&](LazyFlags& flags, T old) { return f(flags, old, source); });
  });
}

// Flags of f(flags, dst, src); no destination.
template <typename F>
Step compare(Cpu& c, const Insn& insn, F f) {
  return by_size(insn.operand_size, [&]<typename T>() {
    T left = 0, right = 0;
    if (!read_operand<T>(c, insn, insn.operand[0], &left) ||
        !read_operand<T>(c, insn, insn.operand[1], &right)) {
      return c.stop;
    }
    f(c.flags, left, right);
    return Step::kNext;
  });
}

// rdx:rax of the operand's width; AX for bytes.
template <typename T>
void set_wide(Cpu& c, T low, T high) {
  if constexpr (sizeof(T) == 1) {
    set_gpr<u16>(c, kRax, static_cast<u16>(high << 8 | low));
  } else {
    set_gpr<T>(c, kRax, low);
    set_gpr<T>(c, kRdx, high);
  }
}
template <typename T>
T wide_high(const Cpu& c) {
  if constexpr (sizeof(T) == 1) return static_cast<u8>(c.s.gpr[kRax] >> 8);
  return get_gpr<T>(c, kRdx);
}

}  // namespace

Step add(Cpu& c, const Insn& insn) {
  return two_operands(c, insn,
                      []<typename T>(LazyFlags& f, T a, T b) { return alu::add(f, a, b); });
}
Step adc(Cpu& c, const Insn& insn) {
  return two_operands(c, insn,
                      []<typename T>(LazyFlags& f, T a, T b) { return alu::adc(f, a, b); });
}
Step sub(Cpu& c, const Insn& insn) {
  return two_operands(c, insn,
                      []<typename T>(LazyFlags& f, T a, T b) { return alu::sub(f, a, b); });
}
Step sbb(Cpu& c, const Insn& insn) {
  return two_operands(c, insn,
                      []<typename T>(LazyFlags& f, T a, T b) { return alu::sbb(f, a, b); });
}
Step and_(Cpu& c, const Insn& insn) {
  return two_operands(c, insn, []<typename T>(LazyFlags& f, T a, T b) {
    return alu::logic(f, static_cast<T>(a & b));
  });
}
Step or_(Cpu& c, const Insn& insn) {
  return two_operands(c, insn, []<typename T>(LazyFlags& f, T a, T b) {
    return alu::logic(f, static_cast<T>(a | b));
  });
}
Step xor_(Cpu& c, const Insn& insn) {
  return two_operands(c, insn, []<typename T>(LazyFlags& f, T a, T b) {
    return alu::logic(f, static_cast<T>(a ^ b));
  });
}
Step cmp(Cpu& c, const Insn& insn) {
  return compare(c, insn, []<typename T>(LazyFlags& f, T a, T b) { alu::sub(f, a, b); });
}
Step test(Cpu& c, const Insn& insn) {
  return compare(c, insn,
                 []<typename T>(LazyFlags& f, T a, T b) { alu::logic(f, static_cast<T>(a & b)); });
}

Step inc(Cpu& c, const Insn& insn) {
  return by_size(insn.operand_size, [&]<typename T>() {
    return modify<T>(c, insn, [](LazyFlags& f, T a) { return alu::inc(f, a); });
  });
}
Step dec(Cpu& c, const Insn& insn) {
  return by_size(insn.operand_size, [&]<typename T>() {
    return modify<T>(c, insn, [](LazyFlags& f, T a) { return alu::dec(f, a); });
  });
}
Step neg(Cpu& c, const Insn& insn) {
  return by_size(insn.operand_size, [&]<typename T>() {
    return modify<T>(c, insn, [](LazyFlags& f, T a) { return alu::sub(f, T{0}, a); });
  });
}
Step not_(Cpu& c, const Insn& insn) {
  return by_size(insn.operand_size, [&]<typename T>() {
    return modify<T>(c, insn, [](LazyFlags&, T a) { return static_cast<T>(~a); });
  });
}

Step xadd(Cpu& c, const Insn& insn) {
  return by_size(insn.operand_size, [&]<typename T>() {
    const T addend = get_register<T>(c, insn.operand[1]);
    T before = 0;
    const Step step = modify<T>(c, insn, [&](LazyFlags& f, T a) {
      before = a;
      return alu::add(f, a, addend);
    });
    if (step != Step::kNext) return step;
    if (insn.operand[0].kind == OperandKind::kMem) {
      set_register<T>(c, insn.operand[1], before);
      return step;
    }
    // Both registers may be the same one: the sum is written last.
    const T sum = static_cast<T>(before + addend);
    set_register<T>(c, insn.operand[1], before);
    set_register<T>(c, insn.operand[0], sum);
    return step;
  });
}

Step mul(Cpu& c, const Insn& insn) {
  return by_size(insn.operand_size, [&]<typename T>() {
    T source = 0;
    if (!read_operand<T>(c, insn, insn.operand[0], &source)) return c.stop;
    const auto product = alu::mul<T>(c.flags, get_gpr<T>(c, kRax), source);
    set_wide<T>(c, product.low, product.high);
    return Step::kNext;
  });
}
Step imul_wide(Cpu& c, const Insn& insn) {
  return by_size(insn.operand_size, [&]<typename T>() {
    T source = 0;
    if (!read_operand<T>(c, insn, insn.operand[0], &source)) return c.stop;
    const auto product = alu::imul_wide<T>(c.flags, get_gpr<T>(c, kRax), source);
    set_wide<T>(c, product.low, product.high);
    return Step::kNext;
  });
}
Step imul(Cpu& c, const Insn& insn) {
  return by_size(insn.operand_size, [&]<typename T>() {
    const bool three = insn.operand_count == 3;
    T left = 0, right = 0;
    if (!read_operand<T>(c, insn, insn.operand[three ? 1 : 0], &left) ||
        !read_operand<T>(c, insn, insn.operand[three ? 2 : 1], &right)) {
      return c.stop;
    }
    set_register<T>(c, insn.operand[0], alu::imul<T>(c.flags, left, right));
    return Step::kNext;
  });
}

Step div(Cpu& c, const Insn& insn) {
  return by_size(insn.operand_size, [&]<typename T>() {
    T divisor = 0;
    if (!read_operand<T>(c, insn, insn.operand[0], &divisor)) return c.stop;
    alu::Product<T> r{};
    if (!alu::div<T>(wide_high<T>(c), get_gpr<T>(c, kRax), divisor, &r)) return c.raise(kVectorDe);
    set_wide<T>(c, r.low, r.high);
    return Step::kNext;
  });
}
Step idiv(Cpu& c, const Insn& insn) {
  return by_size(insn.operand_size, [&]<typename T>() {
    T divisor = 0;
    if (!read_operand<T>(c, insn, insn.operand[0], &divisor)) return c.stop;
    alu::Product<T> r{};
    if (!alu::idiv<T>(wide_high<T>(c), get_gpr<T>(c, kRax), divisor, &r)) {
      return c.raise(kVectorDe);
    }
    set_wide<T>(c, r.low, r.high);
    return Step::kNext;
  });
}

// --- Decimal adjustment (16- and 32-bit modes only) --------------------------------------------

namespace {
Step ascii_adjust(Cpu& c, int direction) {
  const u16 ax = get_gpr<u16>(c, kRax);
  const bool adjust = (ax & 0xf) > 9 || c.flags.af();
  u16 r = ax;
  if (adjust) r = static_cast<u16>(direction > 0 ? ax + 0x106 : ax - 0x106);
  r &= 0xff0f;
  set_gpr<u16>(c, kRax, r);
  c.flags.set_exact(result_flags(static_cast<u8>(r)) |
                    alu::flag_if(adjust, rflags::kAf | rflags::kCf));
  return Step::kNext;
}
Step decimal_adjust(Cpu& c, bool subtract) {
  const u8 old = get_gpr<u8>(c, kRax);
  const bool old_carry = c.flags.cf();
  const bool low = (old & 0xf) > 9 || c.flags.af();
  const bool high = old > 0x99 || old_carry;
  u8 r = old;
  bool carry = high;
  if (low) {
    carry = carry || (subtract ? old < 6 : old > 0xf9);
    r = static_cast<u8>(subtract ? r - 6 : r + 6);
  }
  if (high) r = static_cast<u8>(subtract ? r - 0x60 : r + 0x60);
  set_gpr<u8>(c, kRax, r);
  c.flags.set_exact(result_flags(r) | alu::flag_if(low, rflags::kAf) |
                    alu::flag_if(carry, rflags::kCf));
  return Step::kNext;
}
}  // namespace

Step aaa(Cpu& c, const Insn&) {
  return ascii_adjust(c, 1);
}
Step aas(Cpu& c, const Insn&) {
  return ascii_adjust(c, -1);
}
Step daa(Cpu& c, const Insn&) {
  return decimal_adjust(c, false);
}
Step das(Cpu& c, const Insn&) {
  return decimal_adjust(c, true);
}
Step aam(Cpu& c, const Insn& insn) {
  const u8 base = static_cast<u8>(insn.imm);
  if (base == 0) return c.raise(kVectorDe);
  const u8 al = get_gpr<u8>(c, kRax);
  const u8 low = static_cast<u8>(al % base);
  set_gpr<u16>(c, kRax, static_cast<u16>(al / base << 8 | low));
  c.flags.set_exact(result_flags(low));
  return Step::kNext;
}
Step aad(Cpu& c, const Insn& insn) {
  const u16 ax = get_gpr<u16>(c, kRax);
  const u8 r = static_cast<u8>((ax & 0xff) + (ax >> 8) * static_cast<u8>(insn.imm));
  set_gpr<u16>(c, kRax, r);
  c.flags.set_exact(result_flags(r));
  return Step::kNext;
}

namespace {
// The operand size is the register's: 66 is a mandatory prefix here.
Step add_with(Cpu& c, const Insn& insn, u64 flag) {
  return by_size(insn.operand[0].size, [&]<typename T>() {
    T source = 0;
    if (!read_operand<T>(c, insn, insn.operand[1], &source)) return c.stop;
    const T a = get_register<T>(c, insn.operand[0]);
    const u64 bits = c.flags.bits();
    const T r = static_cast<T>(a + source + ((bits & flag) != 0 ? 1 : 0));
    const bool carry = alu::msb(static_cast<T>((a & source) | ((a | source) & static_cast<T>(~r))));
    set_register<T>(c, insn.operand[0], r);
    c.flags.set_exact((bits & ~flag) | alu::flag_if(carry, flag));
    return Step::kNext;
  });
}
}  // namespace

Step adcx(Cpu& c, const Insn& insn) {
  return add_with(c, insn, rflags::kCf);
}
Step adox(Cpu& c, const Insn& insn) {
  return add_with(c, insn, rflags::kOf);
}

}  // namespace stagetwo::vcpu::ops

// SPDX-License-Identifier: Apache-2.0
#include "vcpu/alu_wide.h"
#include "vcpu/operand.h"

namespace stagetwo::vcpu::ops {
namespace {

// dst = f(flags, dst, count) with the count from CL, an immediate or one.
template <typename F>
Step shift(Cpu& c, const Insn& insn, F f) {
  return by_size(insn.operand_size, [&]<typename T>() {
    u8 count = 1;
    if (insn.operand_count > 1 && !read_operand<u8>(c, insn, insn.operand[1], &count)) {
      return c.stop;
    }
    return modify<T>(c, insn, [&](LazyFlags& flags, T a) { return f(flags, a, count); });
  });
}

template <typename F>
Step double_shift(Cpu& c, const Insn& insn, F f) {
  return by_size(insn.operand_size, [&]<typename T>() {
    if constexpr (sizeof(T) == 1) {
      return c.ud();
    } else {
      u8 count = 0;
      if (!read_operand<u8>(c, insn, insn.operand[2], &count)) return c.stop;
      const T low = get_register<T>(c, insn.operand[1]);
      return modify<T>(c, insn, [&](LazyFlags& flags, T a) { return f(flags, a, low, count); });
    }
  });
}

enum class BitAction : u8 { kTest, kSet, kReset, kComplement };

template <typename T>
T apply(BitAction action, T value, unsigned bit) {
  const T mask = static_cast<T>(T{1} << bit);
  switch (action) {
    case BitAction::kTest:
      return value;
    case BitAction::kSet:
      return static_cast<T>(value | mask);
    case BitAction::kReset:
      return static_cast<T>(value & ~mask);
    case BitAction::kComplement:
      return static_cast<T>(value ^ mask);
  }
  return value;
}

// CF becomes the bit; the other flags stay, as processors have it.
void set_carry(Cpu& c, bool carry) {
  c.flags.set_exact((c.flags.bits() & ~rflags::kCf) | (carry ? rflags::kCf : 0));
}

// A register offset selects a bit of a string of words around the operand, in both directions.
template <typename T>
Step bit_in_memory(Cpu& c, const Insn& insn, BitAction action) {
  u64 address = effective_address(c, insn);
  unsigned bit = 0;
  if (insn.operand[1].kind == OperandKind::kImm) {
    bit = static_cast<unsigned>(insn.imm) % kBits<T>;
  } else {
    const auto offset =
        static_cast<i64>(static_cast<std::make_signed_t<T>>(get_register<T>(c, insn.operand[1])));
    bit = static_cast<unsigned>(offset & (kBits<T> - 1));
    address += static_cast<u64>(offset >> std::countr_zero(kBits<T>)) * sizeof(T);
    if (insn.address_size == 4) address = static_cast<u32>(address);
    if (insn.address_size == 2) address = static_cast<u16>(address);
  }
  const bool write = action != BitAction::kTest;
  u64 linear = 0;
  T old = 0;
  if (!linearize(c, static_cast<unsigned>(insn.segment), address, sizeof(T), write, &linear)) {
    return c.stop;
  }
  const bool done = write ? update_memory<T>(c, linear, insn.lock, &old,
                                             [&](T v) { return apply<T>(action, v, bit); })
                          : load(c, linear, &old);
  if (!done) return c.stop;
  set_carry(c, (old >> bit & 1) != 0);
  return Step::kNext;
}

Step bit_operation(Cpu& c, const Insn& insn, BitAction action) {
  return by_size(insn.operand_size, [&]<typename T>() {
    if (insn.operand[0].kind == OperandKind::kMem) return bit_in_memory<T>(c, insn, action);
    T offset = 0;
    if (!read_operand<T>(c, insn, insn.operand[1], &offset)) return c.stop;
    const unsigned bit = static_cast<unsigned>(offset & (kBits<T> - 1));
    const T old = get_register<T>(c, insn.operand[0]);
    set_carry(c, (old >> bit & 1) != 0);
    if (action != BitAction::kTest) {
      set_register<T>(c, insn.operand[0], apply<T>(action, old, bit));
    }
    return Step::kNext;
  });
}

bool has_feature_bmi1(const Cpu& c) {
  return c.features.bmi1;
}
bool has_feature_lzcnt(const Cpu& c) {
  return c.features.lzcnt;
}

}  // namespace

Step rol(Cpu& c, const Insn& insn) {
  return shift(c, insn, []<typename T>(LazyFlags& f, T a, u8 n) { return alu::rol(f, a, n); });
}
Step ror(Cpu& c, const Insn& insn) {
  return shift(c, insn, []<typename T>(LazyFlags& f, T a, u8 n) { return alu::ror(f, a, n); });
}
Step rcl(Cpu& c, const Insn& insn) {
  return shift(c, insn, []<typename T>(LazyFlags& f, T a, u8 n) { return alu::rcl(f, a, n); });
}
Step rcr(Cpu& c, const Insn& insn) {
  return shift(c, insn, []<typename T>(LazyFlags& f, T a, u8 n) { return alu::rcr(f, a, n); });
}
Step shl(Cpu& c, const Insn& insn) {
  return shift(c, insn, []<typename T>(LazyFlags& f, T a, u8 n) { return alu::shl(f, a, n); });
}
Step shr(Cpu& c, const Insn& insn) {
  return shift(c, insn, []<typename T>(LazyFlags& f, T a, u8 n) { return alu::shr(f, a, n); });
}
Step sar(Cpu& c, const Insn& insn) {
  return shift(c, insn, []<typename T>(LazyFlags& f, T a, u8 n) { return alu::sar(f, a, n); });
}
Step shld(Cpu& c, const Insn& insn) {
  return double_shift(
      c, insn, []<typename T>(LazyFlags& f, T a, T b, u8 n) { return alu::shld(f, a, b, n); });
}
Step shrd(Cpu& c, const Insn& insn) {
  return double_shift(
      c, insn, []<typename T>(LazyFlags& f, T a, T b, u8 n) { return alu::shrd(f, a, b, n); });
}

Step bt(Cpu& c, const Insn& insn) {
  return bit_operation(c, insn, BitAction::kTest);
}
Step bts(Cpu& c, const Insn& insn) {
  return bit_operation(c, insn, BitAction::kSet);
}
Step btr(Cpu& c, const Insn& insn) {
  return bit_operation(c, insn, BitAction::kReset);
}
Step btc(Cpu& c, const Insn& insn) {
  return bit_operation(c, insn, BitAction::kComplement);
}

// Of a zero source the destination keeps its value (a 32-bit one loses its upper half on no
// processor) and only ZF is defined; the others stay.
namespace {
Step scan(Cpu& c, const Insn& insn, bool forward) {
  return by_size(insn.operand_size, [&]<typename T>() {
    T source = 0;
    if (!read_operand<T>(c, insn, insn.operand[1], &source)) return c.stop;
    const u64 rest = c.flags.bits() & ~rflags::kZf;
    c.flags.set_exact(rest | (source == 0 ? rflags::kZf : 0));
    if (source == 0) return Step::kNext;
    const int index = forward ? std::countr_zero(source)
                              : static_cast<int>(kBits<T>) - 1 - std::countl_zero(source);
    set_register<T>(c, insn.operand[0], static_cast<T>(index));
    return Step::kNext;
  });
}

Step count_zeros(Cpu& c, const Insn& insn, bool trailing) {
  return by_size(insn.operand_size, [&]<typename T>() {
    T source = 0;
    if (!read_operand<T>(c, insn, insn.operand[1], &source)) return c.stop;
    const T r = static_cast<T>(trailing ? std::countr_zero(source) : std::countl_zero(source));
    const u64 rest = c.flags.bits() & ~(rflags::kZf | rflags::kCf);
    c.flags.set_exact(rest | (source == 0 ? rflags::kCf : 0) | (r == 0 ? rflags::kZf : 0));
    set_register<T>(c, insn.operand[0], r);
    return Step::kNext;
  });
}
}  // namespace

Step bsf(Cpu& c, const Insn& insn) {
  return scan(c, insn, true);
}
Step bsr(Cpu& c, const Insn& insn) {
  return scan(c, insn, false);
}
// Without the CPUID bit the prefix means nothing and the older instruction remains.
Step tzcnt(Cpu& c, const Insn& insn) {
  return has_feature_bmi1(c) ? count_zeros(c, insn, true) : scan(c, insn, true);
}
Step lzcnt(Cpu& c, const Insn& insn) {
  return has_feature_lzcnt(c) ? count_zeros(c, insn, false) : scan(c, insn, false);
}

Step popcnt(Cpu& c, const Insn& insn) {
  return by_size(insn.operand_size, [&]<typename T>() {
    T source = 0;
    if (!read_operand<T>(c, insn, insn.operand[1], &source)) return c.stop;
    set_register<T>(c, insn.operand[0], static_cast<T>(std::popcount(source)));
    c.flags.set_exact(source == 0 ? rflags::kZf : 0);
    return Step::kNext;
  });
}

Step bswap(Cpu& c, const Insn& insn) {
  const Operand& op = insn.operand[0];
  switch (insn.operand_size) {
    case 8:
      c.s.gpr[op.reg] = __builtin_bswap64(c.s.gpr[op.reg]);
      break;
    case 4:
      set_gpr<u32>(c, op.reg, __builtin_bswap32(get_gpr<u32>(c, op.reg)));
      break;
    default:
      set_gpr<u16>(c, op.reg, 0);
      break;  // undefined; processors clear it
  }
  return Step::kNext;
}

Step crc32(Cpu& c, const Insn& insn) {
  return by_size(insn.operand[1].size, [&]<typename T>() {
    T source = 0;
    if (!read_operand<T>(c, insn, insn.operand[1], &source)) return c.stop;
    u32 crc = get_gpr<u32>(c, insn.operand[0].reg);
    for (unsigned i = 0; i < sizeof(T); ++i) {
      crc ^= static_cast<u8>(source >> 8 * i);
      for (unsigned bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) != 0 ? 0x82f63b78 : 0);
    }
    set_gpr<u32>(c, insn.operand[0].reg, crc);
    return Step::kNext;
  });
}

}  // namespace stagetwo::vcpu::ops

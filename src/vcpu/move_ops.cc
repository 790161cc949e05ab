// SPDX-License-Identifier: Apache-2.0
#include "vcpu/alu.h"
#include "vcpu/operand.h"

namespace stagetwo::vcpu::ops {

Step mov(Cpu& c, const Insn& insn) {
  return by_size(insn.operand[0].size, [&]<typename T>() {
    T value = 0;
    if (!read_operand<T>(c, insn, insn.operand[1], &value) ||
        !write_operand<T>(c, insn, insn.operand[0], value)) {
      return c.stop;
    }
    return Step::kNext;
  });
}

Step movzx(Cpu& c, const Insn& insn) {
  return by_size(insn.operand[1].size, [&]<typename T>() {
    T value = 0;
    if (!read_operand<T>(c, insn, insn.operand[1], &value)) return c.stop;
    return by_size(insn.operand_size, [&]<typename D>() {
      set_register<D>(c, insn.operand[0], static_cast<D>(value));
      return Step::kNext;
    });
  });
}

Step movsx(Cpu& c, const Insn& insn) {
  return by_size(insn.operand[1].size, [&]<typename T>() {
    T value = 0;
    if (!read_operand<T>(c, insn, insn.operand[1], &value)) return c.stop;
    const i64 wide = static_cast<std::make_signed_t<T>>(value);
    return by_size(insn.operand_size, [&]<typename D>() {
      set_register<D>(c, insn.operand[0], static_cast<D>(wide));
      return Step::kNext;
    });
  });
}

Step lea(Cpu& c, const Insn& insn) {
  return by_size(insn.operand_size, [&]<typename T>() {
    set_register<T>(c, insn.operand[0], static_cast<T>(effective_address(c, insn)));
    return Step::kNext;
  });
}

Step xchg(Cpu& c, const Insn& insn) {
  return by_size(insn.operand_size, [&]<typename T>() {
    const bool second = insn.operand[1].kind == OperandKind::kMem;
    const Operand& place = insn.operand[second ? 1 : 0];
    const Operand& reg = insn.operand[second ? 0 : 1];
    const T value = get_register<T>(c, reg);
    if (place.kind != OperandKind::kMem) {
      const T other = get_register<T>(c, place);
      set_register<T>(c, place, value);
      set_register<T>(c, reg, other);
      return Step::kNext;
    }
    u64 linear = 0;
    T old = 0;
    if (!operand_address(c, insn, sizeof(T), true, &linear) ||
        !update_memory<T>(c, linear, true, &old, [value](T) { return value; })) {
      return c.stop;
    }
    set_register<T>(c, reg, old);
    return Step::kNext;
  });
}

Step cmpxchg(Cpu& c, const Insn& insn) {
  return by_size(insn.operand_size, [&]<typename T>() {
    const T expected = get_gpr<T>(c, kRax);
    const T desired = get_register<T>(c, insn.operand[1]);
    T old = 0;
    if (insn.operand[0].kind == OperandKind::kMem) {
      u64 linear = 0;
      // The processor writes in any case: the old value when the comparison fails.
      const auto change = [&](T value) { return value == expected ? desired : value; };
      if (!operand_address(c, insn, sizeof(T), true, &linear) ||
          !update_memory<T>(c, linear, insn.lock, &old, change)) {
        return c.stop;
      }
    } else {
      old = get_register<T>(c, insn.operand[0]);
      // On failure the register is not written, not even its upper half by a 32-bit form.
      if (old == expected) set_register<T>(c, insn.operand[0], desired);
    }
    alu::sub<T>(c.flags, expected, old);
    if (old != expected) set_gpr<T>(c, kRax, old);
    return Step::kNext;
  });
}

Step cmpxchg8b(Cpu& c, const Insn& insn) {
  const u64 expected = u64{get_gpr<u32>(c, kRdx)} << 32 | get_gpr<u32>(c, kRax);
  const u64 desired = u64{get_gpr<u32>(c, kRcx)} << 32 | get_gpr<u32>(c, kRbx);
  u64 linear = 0, old = 0;
  const auto change = [&](u64 value) { return value == expected ? desired : value; };
  if (!operand_address(c, insn, 8, true, &linear) ||
      !update_memory<u64>(c, linear, insn.lock, &old, change)) {
    return c.stop;
  }
  u64 bits = c.flags.bits() & ~rflags::kZf;
  if (old == expected) {
    bits |= rflags::kZf;
  } else {
    set_gpr<u32>(c, kRax, static_cast<u32>(old));
    set_gpr<u32>(c, kRdx, static_cast<u32>(old >> 32));
  }
  c.flags.set_exact(bits);
  return Step::kNext;
}

bool swap16(Cpu& c, u64 linear, u64* expected, const u64* desired, bool* swapped) {
  const Hold hold(c);
  for (unsigned tries = 0; tries < kBackstopTries; ++tries) {
    Hva at;
    switch (direct(c, linear, 16, Access::kWrite, &at)) {
      case Direct::kStopped:
        return false;
      case Direct::kHost:
        note_store(c, at, 16);
        if (host::cmpxchg16b(at, expected, desired, swapped)) return true;
        c.flush_tlb_page(linear);
        break;
      case Direct::kSplit:
      case Direct::kMmio:
        c.stop = c.emulation_failure();
        return false;
    }
  }
  return give_up(c);
}

// Always atomic, with or without LOCK: the operand is aligned, so it never crosses a page.
Step cmpxchg16b(Cpu& c, const Insn& insn) {
  u64 linear = 0;
  if (!operand_address(c, insn, 16, true, &linear)) return c.stop;
  if ((linear & 15) != 0) return c.gp0();
  u64 expected[2] = {c.s.gpr[kRax], c.s.gpr[kRdx]};
  const u64 desired[2] = {c.s.gpr[kRbx], c.s.gpr[kRcx]};
  bool swapped = false;
  if (!swap16(c, linear, expected, desired, &swapped)) return c.stop;
  u64 bits = c.flags.bits() & ~rflags::kZf;
  if (swapped) {
    bits |= rflags::kZf;
  } else {
    c.s.gpr[kRax] = expected[0];
    c.s.gpr[kRdx] = expected[1];
  }
  c.flags.set_exact(bits);
  return Step::kNext;
}

Step cmovcc(Cpu& c, const Insn& insn) {
  return by_size(insn.operand_size, [&]<typename T>() {
    T value = 0;
    if (!read_operand<T>(c, insn, insn.operand[1], &value)) return c.stop;
    const T old = get_register<T>(c, insn.operand[0]);
    // Written in any case: a 32-bit form clears the upper half even when the condition is false.
    set_register<T>(c, insn.operand[0], c.flags.test(insn.cond) ? value : old);
    return Step::kNext;
  });
}

Step setcc(Cpu& c, const Insn& insn) {
  const u8 value = c.flags.test(insn.cond) ? 1 : 0;
  if (!write_operand<u8>(c, insn, insn.operand[0], value)) return c.stop;
  return Step::kNext;
}

Step cbw(Cpu& c, const Insn& insn) {
  switch (insn.operand_size) {
    case 2:
      set_gpr<u16>(c, kRax, static_cast<u16>(static_cast<i8>(c.s.gpr[kRax])));
      break;
    case 4:
      set_gpr<u32>(c, kRax, static_cast<u32>(static_cast<i16>(c.s.gpr[kRax])));
      break;
    default:
      set_gpr<u64>(c, kRax, static_cast<u64>(static_cast<i32>(c.s.gpr[kRax])));
      break;
  }
  return Step::kNext;
}
Step cwd(Cpu& c, const Insn& insn) {
  return by_size(insn.operand_size, [&]<typename T>() {
    const bool negative = alu::msb(get_gpr<T>(c, kRax));
    set_gpr<T>(c, kRdx, negative ? static_cast<T>(~T{0}) : T{0});
    return Step::kNext;
  });
}

namespace {
template <typename T>
T swapped(T value) {
  if constexpr (sizeof(T) == 2) return __builtin_bswap16(value);
  if constexpr (sizeof(T) == 4) return __builtin_bswap32(value);
  return static_cast<T>(__builtin_bswap64(value));
}
}  // namespace

Step movbe(Cpu& c, const Insn& insn) {
  return by_size(insn.operand_size, [&]<typename T>() {
    T value = 0;
    if (!read_operand<T>(c, insn, insn.operand[1], &value) ||
        !write_operand<T>(c, insn, insn.operand[0], swapped(value))) {
      return c.stop;
    }
    return Step::kNext;
  });
}

Step nop(Cpu&, const Insn&) {
  return Step::kNext;
}

Step clc(Cpu& c, const Insn&) {
  c.flags.set_exact(c.flags.bits() & ~rflags::kCf);
  return Step::kNext;
}
Step stc(Cpu& c, const Insn&) {
  c.flags.set_exact(c.flags.bits() | rflags::kCf);
  return Step::kNext;
}
Step cmc(Cpu& c, const Insn&) {
  c.flags.set_exact(c.flags.bits() ^ rflags::kCf);
  return Step::kNext;
}
Step cld(Cpu& c, const Insn&) {
  c.s.rflags &= ~rflags::kDf;
  return Step::kNext;
}
Step std_(Cpu& c, const Insn&) {
  c.s.rflags |= rflags::kDf;
  return Step::kNext;
}
Step lahf(Cpu& c, const Insn&) {
  const u64 low = (c.flags.bits() & 0xd5) | 2;
  c.s.gpr[kRax] = (c.s.gpr[kRax] & ~u64{0xff00}) | low << 8;
  return Step::kNext;
}
Step sahf(Cpu& c, const Insn&) {
  const u64 low = c.s.gpr[kRax] >> 8 & 0xd5;
  c.flags.set_exact((c.flags.bits() & rflags::kOf) | low);
  return Step::kNext;
}
Step salc(Cpu& c, const Insn&) {
  set_gpr<u8>(c, kRax, c.flags.cf() ? 0xff : 0);
  return Step::kNext;
}

Step xlat(Cpu& c, const Insn& insn) {
  u64 offset = c.s.gpr[kRbx] + get_gpr<u8>(c, kRax);
  if (insn.address_size == 4) offset = static_cast<u32>(offset);
  if (insn.address_size == 2) offset = static_cast<u16>(offset);
  u64 linear = 0;
  u8 value = 0;
  if (!linearize(c, static_cast<unsigned>(insn.segment), offset, 1, false, &linear) ||
      !load(c, linear, &value)) {
    return c.stop;
  }
  set_gpr<u8>(c, kRax, value);
  return Step::kNext;
}

Step bound(Cpu& c, const Insn& insn) {
  return by_size(insn.operand_size, [&]<typename T>() {
    using S = std::make_signed_t<T>;
    u64 linear = 0;
    T low = 0, high = 0;
    if (!operand_address(c, insn, 2 * sizeof(T), false, &linear) || !load(c, linear, &low) ||
        !load(c, linear + sizeof(T), &high)) {
      return c.stop;
    }
    const auto index = static_cast<S>(get_register<T>(c, insn.operand[0]));
    if (index < static_cast<S>(low) || index > static_cast<S>(high)) return c.raise(kVectorBr);
    return Step::kNext;
  });
}

Step pause(Cpu&, const Insn&) {
  sync::spin_hint();
  return Step::kEnd;  // a spinning guest gives the world a chance to be looked at
}

}  // namespace stagetwo::vcpu::ops

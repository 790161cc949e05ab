// SPDX-License-Identifier: Apache-2.0
#pragma once

// Operands of a decoded instruction: reading, writing, and the one read-modify-write that all LOCK
// forms go through. False always means c.stop.
//
// I1  A LOCK form (and XCHG with memory) is one atomic host instruction on the operand's host
//     address. An operand that crosses a page is two host pages: such accesses exclude each other
//     by a process-wide lock and nothing else (a processor would lock the bus; see README, Debts).
// I2  Flags and registers change only after the store succeeded.

#include "vcpu/mem.h"
#include "vcpu/ops.h"

namespace stagetwo::vcpu {

template <typename T>
[[nodiscard]] inline T get_gpr(const Cpu& c, unsigned reg) {
  return static_cast<T>(c.s.gpr[reg]);
}
template <typename T>
inline void set_gpr(Cpu& c, unsigned reg, T value) {
  if constexpr (sizeof(T) >= 4) {
    c.s.gpr[reg] = value;  // a 32-bit write clears the upper half
  } else {
    c.s.gpr[reg] = (c.s.gpr[reg] & ~u64{static_cast<T>(~T{0})}) | value;
  }
}

template <typename T>
[[nodiscard]] inline T get_register(const Cpu& c, const Operand& op) {
  if (op.kind == OperandKind::kGprHigh) return static_cast<T>(c.s.gpr[op.reg] >> 8 & 0xff);
  return get_gpr<T>(c, op.reg);
}
template <typename T>
inline void set_register(Cpu& c, const Operand& op, T value) {
  if (op.kind == OperandKind::kGprHigh) {
    c.s.gpr[op.reg] = (c.s.gpr[op.reg] & ~u64{0xff00}) | u64{static_cast<u8>(value)} << 8;
  } else {
    set_gpr<T>(c, op.reg, value);
  }
}

template <typename T>
[[nodiscard]] inline bool read_operand(Cpu& c, const Insn& insn, const Operand& op, T* out) {
  switch (op.kind) {
    case OperandKind::kImm:
      *out = static_cast<T>(insn.imm);
      return true;
    case OperandKind::kMem: {
      u64 linear = 0;
      return operand_address(c, insn, sizeof(T), false, &linear) && load(c, linear, out);
    }
    default:
      *out = get_register<T>(c, op);
      return true;
  }
}
template <typename T>
[[nodiscard]] inline bool write_operand(Cpu& c, const Insn& insn, const Operand& op, T value) {
  if (op.kind != OperandKind::kMem) {
    set_register<T>(c, op, value);
    return true;
  }
  u64 linear = 0;
  return operand_address(c, insn, sizeof(T), true, &linear) && store(c, linear, value);
}

// Serialises LOCK forms that cross a page against each other. False: another vCPU is at it; the
// instruction is started again, so that nobody waits inside the section.
[[nodiscard]] bool try_lock_split();
void unlock_split();

// old -> change(old), atomically if `locked`. `change` may run more than once and must not touch
// the Cpu. Post on true: *old is what was there before.
template <typename T, typename F>
[[nodiscard]] bool update_memory(Cpu& c, u64 linear, bool locked, T* old, F&& change) {
  if (update_hit<T>(c, linear, locked, old, change)) [[likely]]
    return true;
  const Hold hold(c);
  for (unsigned tries = 0; tries < kBackstopTries; ++tries) {
    Hva at;
    switch (direct(c, linear, sizeof(T), Access::kWrite, &at)) {
      case Direct::kStopped:
        return false;
      case Direct::kHost:
        note_store(c, at, sizeof(T));
        if (locked) {
          if (host::fetch_update<T>(at, old, change)) return true;
        } else if (host::load<T>(at, old) && host::store<T>(at, static_cast<T>(change(*old)))) {
          return true;
        }
        c.flush_tlb_page(linear);
        break;
      case Direct::kSplit: {
        if (locked && !try_lock_split()) {
          c.stop = Step::kAgain;
          return false;
        }
        const bool done = load(c, linear, old) && store(c, linear, static_cast<T>(change(*old)));
        if (locked) unlock_split();
        return done;
      }
      case Direct::kMmio:
        return load(c, linear, old) && store(c, linear, static_cast<T>(change(*old)));
    }
  }
  return give_up(c);
}

// dst = f(flags, dst) where f computes the result and leaves new flags.
template <typename T, typename F>
[[nodiscard]] Step modify(Cpu& c, const Insn& insn, F&& f) {
  const Operand& dst = insn.operand[0];
  if (dst.kind != OperandKind::kMem) {
    set_register<T>(c, dst, f(c.flags, get_register<T>(c, dst)));
    return Step::kNext;
  }
  u64 linear = 0;
  if (!operand_address(c, insn, sizeof(T), true, &linear)) return c.stop;
  LazyFlags flags;
  T old = 0;
  const auto change = [&](T value) {
    flags = c.flags;
    return f(flags, value);
  };
  if (!update_memory<T>(c, linear, insn.lock, &old, change)) return c.stop;
  c.flags = flags;
  return Step::kNext;
}

// Calls f.operator()<T>() with the unsigned type of `size` bytes.
template <typename F>
[[nodiscard, gnu::always_inline]] inline Step by_size(unsigned size, F&& f) {
  switch (size) {
    case 1:
      return f.template operator()<u8>();
    case 2:
      return f.template operator()<u16>();
    case 4:
      return f.template operator()<u32>();
    default:
      return f.template operator()<u64>();
  }
}

}  // namespace stagetwo::vcpu

// SPDX-License-Identifier: Apache-2.0
#pragma once

// Handlers of the instructions that make up most of what a 64-bit guest executes. A handler does
// one instruction whose shape is known at decode time (operand kinds, size, address form) and goes
// on to the next by a sibling call; what it cannot finish at once (a TLB miss, MMIO, a fault) it
// gives back unchanged, and the loop executes the instruction by its operation.
//
// I1  A handler that returns its own uop has changed nothing.
// I2  Only 64-bit mode, 64-bit addresses, segments with base zero, no LOCK: all else is slow.
// I3  Registers and flags are written after the last memory access.
// I4  The register fields of a Uop are below 16 whatever they mean, its scale below 4 (hot_ops.cc).
// Internal to the room: hot_ops.cc chooses, hot_alu.cc and hot_flow.cc define.

#include "vcpu/block_cache.h"
#include "vcpu/mem.h"

namespace stagetwo::vcpu::hot {

// How a memory operand is addressed.
enum class Form : u8 { kBase, kBaseIndex, kAbsolute };

template <Form form>
[[gnu::always_inline]] inline u64 address(const Cpu& c, const Uop* u) {
  const u64 disp = static_cast<u64>(u->disp);
  if constexpr (form == Form::kAbsolute) return disp;
  u64 at = c.s.gpr[u->base] + disp;
  if constexpr (form == Form::kBaseIndex) at += c.s.gpr[u->index] << u->scale_lg2;
  return at;
}

template <typename T>
[[gnu::always_inline]] inline T get(const Cpu& c, u8 reg) {
  return static_cast<T>(c.s.gpr[reg]);
}
template <typename T>
[[gnu::always_inline]] inline void set(Cpu& c, u8 reg, T value) {
  u64& slot = c.s.gpr[reg];
  if constexpr (sizeof(T) >= 4) {
    slot = value;
  } else {
    slot = (slot & ~u64{static_cast<T>(~T{0})}) | value;
  }
}

[[gnu::always_inline]] inline const Uop* next(Cpu& c, const Uop* u) {
  return u[1].run(c, u + 1);
}
// The joined second instruction stands behind and is skipped.
[[gnu::always_inline]] inline const Uop* done(Cpu& c, u64 rip) {
  c.s.rip = rip;
  return nullptr;
}

template <Cond cond>
[[gnu::always_inline]] inline bool holds(const LazyFlags& f) {
  constexpr u8 code = static_cast<u8>(cond);
  constexpr bool negate = (code & 1) != 0;
  bool value = false;
  if constexpr (code >> 1 == 0) value = f.of();
  if constexpr (code >> 1 == 1) value = f.cf();
  if constexpr (code >> 1 == 2) value = f.zf();
  if constexpr (code >> 1 == 3) value = f.cf() || f.zf();
  if constexpr (code >> 1 == 4) value = f.sf();
  if constexpr (code >> 1 == 5) value = f.pf();
  if constexpr (code >> 1 == 6) value = f.sf() != f.of();
  if constexpr (code >> 1 == 7) value = f.zf() || f.sf() != f.of();
  return value != negate;
}

// The handler for an instruction, or null if it has none. Fills the uop's fields.
[[nodiscard]] Handler choose_alu(const Insn& insn, Uop* uop);
[[nodiscard]] Handler choose_move(const Insn& insn, Uop* uop);
[[nodiscard]] Handler choose_flow(const Insn& insn, u64 next_rip, Uop* uop);
// A compare and the conditional jump behind it as one.
[[nodiscard]] Handler choose_fused(const Insn& compare, const Insn& jump);

// Register operands, immediates and the address form of an instruction, where it has the usual
// shape.
struct Shape {
  bool usual = false;  // I2 holds and no operand is a high byte register
  bool dst_memory = false;
  bool src_memory = false;
  bool src_imm = false;
  Form form = Form::kBase;
};
[[nodiscard]] Shape shape_of(const Insn& insn);

}  // namespace stagetwo::vcpu::hot

// SPDX-License-Identifier: Apache-2.0
#include <array>
#include <bit>

#include "vcpu/sse_functions.h"
#include "vcpu/sse_host.h"

// Movement, logic and shuffles: bits travel, nothing is computed, MXCSR is not involved.
// One function serves the load and the store of a move: `src` always holds what is moved.

namespace stagetwo::vcpu::sse {
namespace {

using Lanes32 = std::array<u32, 4>;
using Lanes16 = std::array<u16, 8>;

Lanes32 lanes32(const Xmm& value) {
  return std::bit_cast<Lanes32>(value);
}

// Four words of one half, picked by two bits each.
u64 shuffle_words(u64 words, u64 control) {
  u64 result = 0;
  for (unsigned i = 0; i < 4; ++i) {
    const u64 from = (control >> (2 * i)) & 3;
    result |= ((words >> (16 * from)) & 0xffff) << (16 * i);
  }
  return result;
}

constexpr u64 kLow32 = 0xffff'ffff;

}  // namespace

// MOVAPS MOVUPS MOVDQA … and the non-temporal stores.
SseOutcome copy128(const Insn&, SseOperands& o) {
  o.dst = o.src;
  return SseOutcome::kDone;
}

// MOVQ and MOVD to an XMM register clear what they do not write, whatever the source.
SseOutcome movq(const Insn&, SseOperands& o) {
  o.dst = {o.src.lo, 0};
  return SseOutcome::kDone;
}
SseOutcome movd(const Insn& insn, SseOperands& o) {
  o.dst = {insn.operand[0].size == 8 || insn.operand[1].size == 8 ? o.src.lo : o.src.lo & kLow32,
           0};
  return SseOutcome::kDone;
}

// A load from memory clears the rest of the register, a copy between registers keeps it.
SseOutcome movss(const Insn& insn, SseOperands& o) {
  if (insn.has_mem)
    o.dst = {o.src.lo & kLow32, 0};
  else
    o.dst.lo = (o.dst.lo & ~kLow32) | (o.src.lo & kLow32);
  return SseOutcome::kDone;
}
SseOutcome movsd(const Insn& insn, SseOperands& o) {
  o.dst.lo = o.src.lo;
  if (insn.has_mem) o.dst.hi = 0;
  return SseOutcome::kDone;
}

// Half registers: to and from memory, and crosswise between registers.
SseOutcome movlps(const Insn&, SseOperands& o) {
  o.dst.lo = o.src.lo;
  return SseOutcome::kDone;
}
SseOutcome movhps(const Insn& insn, SseOperands& o) {
  if (insn.operand[0].kind == OperandKind::kMem)
    o.dst.lo = o.src.hi;
  else
    o.dst.hi = o.src.lo;
  return SseOutcome::kDone;
}
SseOutcome movhlps(const Insn&, SseOperands& o) {
  o.dst.lo = o.src.hi;
  return SseOutcome::kDone;
}
SseOutcome movlhps(const Insn&, SseOperands& o) {
  o.dst.hi = o.src.lo;
  return SseOutcome::kDone;
}

SseOutcome and_(const Insn&, SseOperands& o) {
  o.dst = {o.dst.lo & o.src.lo, o.dst.hi & o.src.hi};
  return SseOutcome::kDone;
}
SseOutcome andn(const Insn&, SseOperands& o) {
  o.dst = {~o.dst.lo & o.src.lo, ~o.dst.hi & o.src.hi};
  return SseOutcome::kDone;
}
SseOutcome or_(const Insn&, SseOperands& o) {
  o.dst = {o.dst.lo | o.src.lo, o.dst.hi | o.src.hi};
  return SseOutcome::kDone;
}
SseOutcome xor_(const Insn&, SseOperands& o) {
  o.dst = {o.dst.lo ^ o.src.lo, o.dst.hi ^ o.src.hi};
  return SseOutcome::kDone;
}

SseOutcome unpcklps(const Insn&, SseOperands& o) {
  o.dst = from_host(_mm_unpacklo_epi32(to_host(o.dst), to_host(o.src)));
  return SseOutcome::kDone;
}
SseOutcome unpckhps(const Insn&, SseOperands& o) {
  o.dst = from_host(_mm_unpackhi_epi32(to_host(o.dst), to_host(o.src)));
  return SseOutcome::kDone;
}
SseOutcome unpcklpd(const Insn&, SseOperands& o) {
  o.dst.hi = o.src.lo;
  return SseOutcome::kDone;
}
SseOutcome unpckhpd(const Insn&, SseOperands& o) {
  o.dst = {o.dst.hi, o.src.hi};
  return SseOutcome::kDone;
}

SseOutcome shufps(const Insn& insn, SseOperands& o) {
  const Lanes32 first = lanes32(o.dst), second = lanes32(o.src);
  const unsigned control = static_cast<u8>(insn.imm);
  o.dst = std::bit_cast<Xmm>(Lanes32{first[control & 3], first[(control >> 2) & 3],
                                     second[(control >> 4) & 3], second[(control >> 6) & 3]});
  return SseOutcome::kDone;
}
SseOutcome shufpd(const Insn& insn, SseOperands& o) {
  o.dst = {(insn.imm & 1) != 0 ? o.dst.hi : o.dst.lo, (insn.imm & 2) != 0 ? o.src.hi : o.src.lo};
  return SseOutcome::kDone;
}
SseOutcome pshufd(const Insn& insn, SseOperands& o) {
  const Lanes32 from = lanes32(o.src);
  const unsigned control = static_cast<u8>(insn.imm);
  o.dst = std::bit_cast<Xmm>(Lanes32{from[control & 3], from[(control >> 2) & 3],
                                     from[(control >> 4) & 3], from[(control >> 6) & 3]});
  return SseOutcome::kDone;
}
SseOutcome pshufhw(const Insn& insn, SseOperands& o) {
  o.dst = {o.src.lo, shuffle_words(o.src.hi, insn.imm)};
  return SseOutcome::kDone;
}
SseOutcome pshuflw(const Insn& insn, SseOperands& o) {
  o.dst = {shuffle_words(o.src.lo, insn.imm), o.src.hi};
  return SseOutcome::kDone;
}

// The sign bits of the lanes, in a general register.
SseOutcome movmskps(const Insn&, SseOperands& o) {
  const Lanes32 from = lanes32(o.src);
  u64 mask = 0;
  for (unsigned i = 0; i < 4; ++i) mask |= u64{from[i] >> 31} << i;
  o.dst = {mask, 0};
  return SseOutcome::kDone;
}
SseOutcome movmskpd(const Insn&, SseOperands& o) {
  o.dst = {(o.src.lo >> 63) | ((o.src.hi >> 63) << 1), 0};
  return SseOutcome::kDone;
}
SseOutcome pmovmskb(const Insn&, SseOperands& o) {
  o.dst = {static_cast<u32>(_mm_movemask_epi8(to_host(o.src))), 0};
  return SseOutcome::kDone;
}

SseOutcome pinsrw(const Insn& insn, SseOperands& o) {
  auto words = std::bit_cast<Lanes16>(o.dst);
  words[insn.imm & 7] = static_cast<u16>(o.src.lo);
  o.dst = std::bit_cast<Xmm>(words);
  return SseOutcome::kDone;
}
SseOutcome pextrw(const Insn& insn, SseOperands& o) {
  o.dst = {std::bit_cast<Lanes16>(o.src)[insn.imm & 7], 0};
  return SseOutcome::kDone;
}

}  // namespace stagetwo::vcpu::sse

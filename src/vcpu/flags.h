// SPDX-License-Identifier: Apache-2.0
#pragma once

// Lazily computed arithmetic flags. An instruction stores its operands and result; who needs a flag
// computes it. Most flags are overwritten before anybody looks.
//
// I1  `kind` says how to read `res`, `a`, `b`; all three are truncated to the operand width.
// I2  With kExact the flags are the six bits in `exact` and nothing else counts.
// I3  The other bits of RFLAGS (TF, IF, DF, …) never live here.
// Spec: Intel SDM vol. 1, 3.4.3.1; what it calls undefined is chosen as current hardware has it.

#include <bit>
#include <cstddef>
#include <type_traits>

#include "vcpu/insn.h"
#include "vcpu/state.h"

namespace stagetwo::vcpu {

template <typename T>
inline constexpr unsigned kBits = sizeof(T) * 8;

template <typename T>
inline constexpr u8 kSizeLg2 = static_cast<u8>(std::countr_zero(sizeof(T)));

enum class FlagGroup : u8 { kExact, kAdd, kSub, kLogic, kInc, kDec };

struct LazyFlags {
  u64 res = 0;
  u64 a = 0;
  u64 b = 0;  // of kInc and kDec: the carry that survives
  u64 exact = 0;
  u8 kind = 0;  // group << 2 | log2 of the operand's bytes

  template <typename T>
  void set(FlagGroup group, T result, T left, T right) {
    res = result;
    a = left;
    b = right;
    kind = static_cast<u8>(static_cast<u8>(group) << 2 | kSizeLg2<T>);
  }
  void set_exact(u64 bits) {
    exact = bits & rflags::kArithmetic;
    kind = 0;
  }

  [[nodiscard]] FlagGroup group() const { return static_cast<FlagGroup>(kind >> 2); }
  [[nodiscard]] unsigned top() const { return (8u << (kind & 3u)) - 1; }
  [[nodiscard]] bool is_exact() const { return kind < 4; }

  [[nodiscard]] bool zf() const { return is_exact() ? (exact & rflags::kZf) != 0 : res == 0; }
  [[nodiscard]] bool sf() const {
    return is_exact() ? (exact & rflags::kSf) != 0 : ((res >> top()) & 1) != 0;
  }
  [[nodiscard]] bool pf() const {
    return is_exact() ? (exact & rflags::kPf) != 0 : (std::popcount(static_cast<u8>(res)) & 1) == 0;
  }
  [[nodiscard]] bool cf() const {
    switch (group()) {
      case FlagGroup::kExact:
        return (exact & rflags::kCf) != 0;
      case FlagGroup::kAdd:
        return res < a;
      case FlagGroup::kSub:
        return a < b;
      case FlagGroup::kLogic:
        return false;
      case FlagGroup::kInc:
      case FlagGroup::kDec:
        return b != 0;
    }
    return false;
  }
  [[nodiscard]] bool of() const {
    switch (group()) {
      case FlagGroup::kExact:
        return (exact & rflags::kOf) != 0;
      case FlagGroup::kAdd:
        return (((a ^ res) & (b ^ res)) >> top() & 1) != 0;
      case FlagGroup::kSub:
        return (((a ^ b) & (a ^ res)) >> top() & 1) != 0;
      case FlagGroup::kLogic:
        return false;
      case FlagGroup::kInc:
        return res == u64{1} << top();
      case FlagGroup::kDec:
        return res == (u64{1} << top()) - 1;
    }
    return false;
  }
  [[nodiscard]] bool af() const {
    switch (group()) {
      case FlagGroup::kExact:
        return (exact & rflags::kAf) != 0;
      case FlagGroup::kAdd:
      case FlagGroup::kSub:
        return ((a ^ b ^ res) & 0x10) != 0;
      case FlagGroup::kLogic:
        return false;
      case FlagGroup::kInc:
        return (res & 0xf) == 0;
      case FlagGroup::kDec:
        return (res & 0xf) == 0xf;
    }
    return false;
  }

  // All six bits in their RFLAGS places.
  [[nodiscard]] u64 bits() const {
    if (is_exact()) return exact;
    return (cf() ? rflags::kCf : 0) | (pf() ? rflags::kPf : 0) | (af() ? rflags::kAf : 0) |
           (zf() ? rflags::kZf : 0) | (sf() ? rflags::kSf : 0) | (of() ? rflags::kOf : 0);
  }

  [[nodiscard]] bool test(Cond cond) const {
    const auto code = static_cast<u8>(cond);
    bool value = false;
    switch (code >> 1) {
      case 0:
        value = of();
        break;
      case 1:
        value = cf();
        break;
      case 2:
        value = zf();
        break;
      case 3:
        value = cf() || zf();
        break;
      case 4:
        value = sf();
        break;
      case 5:
        value = pf();
        break;
      case 6:
        value = sf() != of();
        break;
      default:
        value = zf() || sf() != of();
        break;
    }
    return value != ((code & 1) != 0);
  }
};

// ZF, SF and PF of a result.
template <typename T>
constexpr u64 result_flags(T result) {
  return (result == 0 ? rflags::kZf : 0) | ((result >> (kBits<T> - 1)) != 0 ? rflags::kSf : 0) |
         ((std::popcount(static_cast<u8>(result)) & 1) == 0 ? rflags::kPf : 0);
}

}  // namespace stagetwo::vcpu

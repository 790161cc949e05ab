// SPDX-License-Identifier: Apache-2.0
#pragma once

// Double shifts, multiplication and division on values: what needs twice the operand's width. As
// alu.h. Spec: Intel SDM vol. 2, SHLD, SHRD, MUL, IMUL, DIV, IDIV.

#include "vcpu/alu.h"

namespace stagetwo::vcpu::alu {

// Double shifts. With 16-bit operands a count above 16 takes further bits from the destination
// again, as the processors do.
template <typename T>
T shld(LazyFlags& f, T a, T b, unsigned count) {
  count &= shift_mask<T>();
  if (count == 0) return a;
  bool carry = false;
  T r = 0;
  if constexpr (sizeof(T) == 2) {
    const u64 wide = u64{a} << 32 | u64{b} << 16 | a;
    const u64 shifted = wide << count;
    r = static_cast<T>(shifted >> 32);
    carry = (shifted >> 48 & 1) != 0;
  } else {
    r = static_cast<T>(a << count | b >> (kBits<T> - count));
    carry = (a >> (kBits<T> - count) & 1) != 0;
  }
  f.set_exact(result_flags(r) | flag_if(carry, rflags::kCf) |
              flag_if(msb(r) != carry, rflags::kOf));
  return r;
}
template <typename T>
T shrd(LazyFlags& f, T a, T b, unsigned count) {
  count &= shift_mask<T>();
  if (count == 0) return a;
  bool carry = false;
  T r = 0;
  if constexpr (sizeof(T) == 2) {
    const u64 wide = u64{a} << 32 | u64{b} << 16 | a;
    r = static_cast<T>(wide >> count);
    carry = (wide >> (count - 1) & 1) != 0;
  } else {
    r = static_cast<T>(a >> count | b << (kBits<T> - count));
    carry = (a >> (count - 1) & 1) != 0;
  }
  f.set_exact(result_flags(r) | flag_if(carry, rflags::kCf) |
              flag_if(msb(r) != msb(static_cast<T>(r << 1)), rflags::kOf));
  return r;
}

// Two- and three-operand IMUL: the truncated product.
template <typename T>
T imul(LazyFlags& f, T a, T b) {
  __extension__ using Wide = __int128;
  const Wide product = Wide{static_cast<Signed<T>>(a)} * static_cast<Signed<T>>(b);
  const T r = static_cast<T>(product);
  const bool lost = product != static_cast<Signed<T>>(r);
  f.set_exact(result_flags(r) | flag_if(lost, rflags::kCf | rflags::kOf));
  return r;
}

template <typename T>
struct Product {
  T low;
  T high;
};
template <typename T>
Product<T> mul(LazyFlags& f, T a, T b) {
  __extension__ using Wide = unsigned __int128;
  const Wide product = Wide{a} * b;
  const Product<T> r{static_cast<T>(product), static_cast<T>(product >> kBits<T>)};
  f.set_exact(result_flags(r.low) | flag_if(r.high != 0, rflags::kCf | rflags::kOf));
  return r;
}
template <typename T>
Product<T> imul_wide(LazyFlags& f, T a, T b) {
  __extension__ using Wide = __int128;
  const Wide product = Wide{static_cast<Signed<T>>(a)} * static_cast<Signed<T>>(b);
  const Product<T> r{static_cast<T>(product), static_cast<T>(product >> kBits<T>)};
  const bool lost = product != static_cast<Signed<T>>(r.low);
  f.set_exact(result_flags(r.low) | flag_if(lost, rflags::kCf | rflags::kOf));
  return r;
}

// Quotient in low, remainder in high. False: #DE (divisor zero or the quotient does not fit).
template <typename T>
bool div(T high, T low, T divisor, Product<T>* out) {
  __extension__ using Wide = unsigned __int128;
  if (divisor == 0) return false;
  const Wide dividend = Wide{high} << kBits<T> | low;
  const Wide quotient = dividend / divisor;
  if (quotient > static_cast<T>(~T{0})) return false;
  *out = {static_cast<T>(quotient), static_cast<T>(dividend % divisor)};
  return true;
}
template <typename T>
bool idiv(T high, T low, T divisor, Product<T>* out) {
  __extension__ using Wide = __int128;
  __extension__ using UWide = unsigned __int128;
  const auto d = static_cast<Signed<T>>(divisor);
  if (d == 0) return false;
  const auto dividend =
      static_cast<Wide>(static_cast<UWide>(Wide{static_cast<Signed<T>>(high)}) << kBits<T> | low);
  if (d == -1) {  // the most negative dividend has no positive counterpart
    const Wide least = -(Wide{1} << (kBits<T> - 1));
    if (dividend > -least || dividend <= least) return false;
    *out = {static_cast<T>(-dividend), 0};
    return true;
  }
  const Wide quotient = dividend / d;
  if (quotient != static_cast<Signed<T>>(quotient)) return false;
  *out = {static_cast<T>(quotient), static_cast<T>(dividend % d)};
  return true;
}

}  // namespace stagetwo::vcpu::alu

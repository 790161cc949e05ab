// SPDX-License-Identifier: Apache-2.0
#pragma once

// Bit helpers: alignment, fields, checked sums. Everything is constexpr and total: no undefined
// result for any operand that the precondition allows.

#include <bit>
#include <concepts>
#include <optional>

#include "base/types.h"

namespace stagetwo {

template <std::unsigned_integral T>
constexpr bool is_pow2(T value) {
  return std::has_single_bit(value);
}

// Pre: `align` is a power of two.
template <std::unsigned_integral T>
constexpr T align_down(T value, std::type_identity_t<T> align) {
  return static_cast<T>(value & static_cast<T>(~(align - 1)));
}

// Pre: `align` is a power of two. Wraps to 0 when the result has no representation.
template <std::unsigned_integral T>
constexpr T align_up(T value, std::type_identity_t<T> align) {
  return align_down(static_cast<T>(value + (align - 1)), align);
}

template <std::unsigned_integral T>
constexpr bool is_aligned(T value, std::type_identity_t<T> align) {
  return (value & static_cast<T>(align - 1)) == 0;
}

constexpr u64 bit(unsigned position) {
  return u64{1} << position;
}

// The bits high..low of a word, both included, as a mask. Pre: low <= high < 64.
constexpr u64 bit_mask(unsigned high, unsigned low) {
  return (~u64{0} >> (63 - high)) & (~u64{0} << low);
}

// The field high..low of `word`, shifted down.
constexpr u64 get_field(u64 word, unsigned high, unsigned low) {
  return (word & bit_mask(high, low)) >> low;
}

// `word` with the field high..low replaced by the low bits of `value`.
constexpr u64 set_field(u64 word, unsigned high, unsigned low, u64 value) {
  const u64 mask = bit_mask(high, low);
  return (word & ~mask) | ((value << low) & mask);
}

// The low `width` bits of `value` as a signed number. Pre: 1 <= width <= 64.
constexpr s64 sign_extend(u64 value, unsigned width) {
  const unsigned shift = 64 - width;
  return static_cast<s64>(value << shift) >> shift;
}

// Number of the highest set bit. Pre: value != 0.
template <std::unsigned_integral T>
constexpr unsigned log2_floor(T value) {
  return static_cast<unsigned>(std::bit_width(value)) - 1;
}

// The smallest n with (1 << n) >= value. Pre: value != 0.
template <std::unsigned_integral T>
constexpr unsigned log2_ceil(T value) {
  return static_cast<unsigned>(std::bit_width(static_cast<T>(value - 1)));
}

template <std::unsigned_integral T>
constexpr std::optional<T> checked_add(T a, std::type_identity_t<T> b) {
  T sum = 0;
  if (__builtin_add_overflow(a, b, &sum)) return std::nullopt;
  return sum;
}

template <std::unsigned_integral T>
constexpr std::optional<T> checked_mul(T a, std::type_identity_t<T> b) {
  T product = 0;
  if (__builtin_mul_overflow(a, b, &product)) return std::nullopt;
  return product;
}

// Quotient rounded up. Pre: divisor != 0.
template <std::unsigned_integral T>
constexpr T div_ceil(T value, std::type_identity_t<T> divisor) {
  return static_cast<T>(value / divisor + (value % divisor != 0 ? 1 : 0));
}

}  // namespace stagetwo

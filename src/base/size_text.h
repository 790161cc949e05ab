// SPDX-License-Identifier: Apache-2.0
#pragma once

// Sizes and times as users write them: 256M, 1G, 500ms, 2s. Whole numbers only.

#include <string_view>

#include "base/result.h"
#include "base/types.h"

namespace stagetwo {

namespace detail {
// The number a text begins with; what is left of it goes to *rest.
constexpr Result<u64> leading_number(std::string_view text, std::string_view* rest) {
  u64 value = 0;
  size_t digits = 0;
  for (; digits < text.size() && text[digits] >= '0' && text[digits] <= '9'; ++digits) {
    const u64 digit = static_cast<u64>(text[digits] - '0');
    if (__builtin_mul_overflow(value, u64{10}, &value)) return refuse(ERANGE);
    if (__builtin_add_overflow(value, digit, &value)) return refuse(ERANGE);
  }
  if (digits == 0) return refuse(EINVAL);
  *rest = text.substr(digits);
  return value;
}
constexpr Result<u64> times(u64 value, u64 unit) {
  if (__builtin_mul_overflow(value, unit, &value)) return refuse(ERANGE);
  return value;
}
}  // namespace detail

// Bytes: a number and, if wanted, K, M, G or T (powers of 1024; "MiB" and "m" are M, too).
// Failure: EINVAL, ERANGE.
constexpr Result<u64> parse_size(std::string_view text) {
  std::string_view unit;
  const u64 value = ST_TRY(detail::leading_number(text, &unit));
  if (unit.empty() || unit == "B") return value;
  const std::string_view behind = unit.substr(1);
  if (!behind.empty() && behind != "iB") return refuse(EINVAL);
  switch (unit[0]) {
    case 'k':
    case 'K':
      return detail::times(value, u64{1} << 10);
    case 'm':
    case 'M':
      return detail::times(value, u64{1} << 20);
    case 'g':
    case 'G':
      return detail::times(value, u64{1} << 30);
    case 't':
    case 'T':
      return detail::times(value, u64{1} << 40);
    default:
      return refuse(EINVAL);
  }
}

// Nanoseconds: a number of seconds, or with ms, s or min behind it. Failure: EINVAL, ERANGE.
constexpr Result<u64> parse_interval(std::string_view text) {
  std::string_view unit;
  const u64 value = ST_TRY(detail::leading_number(text, &unit));
  if (unit == "ms") return detail::times(value, 1'000'000);
  if (unit.empty() || unit == "s") return detail::times(value, 1'000'000'000);
  if (unit == "min") return detail::times(value, 60'000'000'000);
  return refuse(EINVAL);
}

}  // namespace stagetwo

// SPDX-License-Identifier: Apache-2.0
#include "base/text.h"

namespace stagetwo {
namespace {

// 16 and above: not a digit.
unsigned digit_value(char c) {
  if (c >= '0' && c <= '9') return static_cast<unsigned>(c - '0');
  if (c >= 'a' && c <= 'f') return static_cast<unsigned>(c - 'a') + 10;
  if (c >= 'A' && c <= 'F') return static_cast<unsigned>(c - 'A') + 10;
  return 16;
}

// The digits with what may stand around them, but for a sign.
Result<u64> parse_digits(std::string_view text, unsigned base) {
  text = text.substr(0, text.find('\0'));
  const bool prefixed =
      text.size() > 2 && text[0] == '0' && (text[1] | 0x20) == 'x' && digit_value(text[2]) < 16;
  if (base == 0) base = prefixed ? 16 : text.starts_with('0') ? 8 : 10;
  if (base == 16 && prefixed) text.remove_prefix(2);
  u64 value = 0;
  size_t used = 0;
  bool too_large = false;
  for (; used < text.size() && digit_value(text[used]) < base; ++used) {
    too_large = too_large || __builtin_mul_overflow(value, u64{base}, &value) ||
                __builtin_add_overflow(value, u64{digit_value(text[used])}, &value);
  }
  if (too_large) return refuse(ERANGE);
  text.remove_prefix(used);
  if (used == 0 || !(text.empty() || text == "\n")) return refuse(EINVAL);
  return value;
}

}  // namespace

bool parse_u64(std::string_view text, u64* out) {
  unsigned base = 10;
  if (text.starts_with("0x") || text.starts_with("0X")) {
    base = 16;
    text.remove_prefix(2);
  }
  if (text.empty()) return false;
  u64 value = 0;
  for (const char c : text) {
    const unsigned digit = digit_value(c);
    if (digit >= base) return false;
    if (__builtin_mul_overflow(value, u64{base}, &value)) return false;
    if (__builtin_add_overflow(value, u64{digit}, &value)) return false;
  }
  *out = value;
  return true;
}

Result<u64> parse_kernel_unsigned(std::string_view text, u64 largest, unsigned base) {
  if (text.starts_with('+')) text.remove_prefix(1);
  const u64 value = ST_TRY(parse_digits(text, base));
  if (value > largest) return refuse(ERANGE);
  return value;
}

Result<s64> parse_kernel_signed(std::string_view text, unsigned base) {
  constexpr u64 kLargest = ~u64{0} >> 1;
  if (!text.starts_with('-'))
    return static_cast<s64>(ST_TRY(parse_kernel_unsigned(text, kLargest, base)));
  const u64 value = ST_TRY(parse_digits(text.substr(1), base));
  if (value > kLargest + 1) return refuse(ERANGE);
  return static_cast<s64>(~value + 1);
}

}  // namespace stagetwo

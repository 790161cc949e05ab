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

}  // namespace stagetwo

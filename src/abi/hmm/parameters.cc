// SPDX-License-Identifier: Apache-2.0
// What the module was told when it was loaded. kernel file: lib/test_hmm.c (module_param).
#include "abi/hmm/hmm.h"
#include "host/session.h"

namespace stagetwo::abi_hmm {
namespace {

constexpr u32 kFirstCoherent = 2;
constexpr u32 kUnits = 4;

unsigned digit_of(char c) {
  if (c >= '0' && c <= '9') return static_cast<unsigned>(c - '0');
  if (c >= 'a' && c <= 'f') return static_cast<unsigned>(c - 'a' + 10);
  if (c >= 'A' && c <= 'F') return static_cast<unsigned>(c - 'A' + 10);
  return 99;
}

// kstrtol with base 0: a sign, 0x or 0, digits, at most one newline.
Result<u64> parse_long(std::string_view text) {
  const bool negative = text.starts_with('-');
  if (negative || text.starts_with('+')) text.remove_prefix(1);
  unsigned base = 10;
  if (text.size() > 2 && text[0] == '0' && (text[1] | 0x20) == 'x') {
    base = 16;
    text.remove_prefix(2);
  } else if (text.starts_with('0')) {
    base = 8;
  }
  if (text.ends_with('\n')) text.remove_suffix(1);
  if (text.empty()) return refuse(EINVAL);
  u64 value = 0;
  bool too_large = false;
  for (const char c : text) {
    if (digit_of(c) >= base) return refuse(EINVAL);
    too_large = too_large || __builtin_mul_overflow(value, u64{base}, &value) ||
                __builtin_add_overflow(value, u64{digit_of(c)}, &value);
  }
  const u64 largest = (u64{1} << 63) - (negative ? 0 : 1);
  if (too_large || value > largest) return refuse(ERANGE);
  return negative ? ~value + 1 : value;
}

}  // namespace

Result<void> set_parameter(std::string_view name, std::string_view value) {
  const unsigned number = name == "spm_addr_dev0" ? 0 : name == "spm_addr_dev1" ? 1 : 2;
  if (number == 2) return refuse(ENOENT);
  host::session_word(host::kSpmWords + number).store(ST_TRY(parse_long(value)), sync::kRelaxed);
  return {};
}

bool has_unit(u32 unit) {
  if (unit < kFirstCoherent) return true;
  return unit < kUnits && host::session_word(host::kSpmWords).load(sync::kRelaxed) != 0 &&
         host::session_word(host::kSpmWords + 1).load(sync::kRelaxed) != 0;
}

}  // namespace stagetwo::abi_hmm

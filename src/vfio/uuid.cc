// SPDX-License-Identifier: Apache-2.0
#include "vfio/uuid.h"

namespace stagetwo::vfio {
namespace {

constexpr bool is_dash(size_t at) {
  return at == 8 || at == 13 || at == 18 || at == 23;
}

int digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

}  // namespace

Result<Uuid> parse_uuid(std::string_view text) {
  if (text.size() < Uuid::kTextBytes) return refuse(EINVAL);
  Uuid uuid{};
  size_t digits = 0;
  for (size_t at = 0; at < Uuid::kTextBytes; ++at) {
    if (is_dash(at)) {
      if (text[at] != '-') return refuse(EINVAL);
      continue;
    }
    const int value = digit(text[at]);
    if (value < 0) return refuse(EINVAL);
    u8& byte = uuid.bytes[digits++ / 2];
    byte = static_cast<u8>(byte << 4 | value);
  }
  return uuid;
}

void Uuid::append(TextWriter& out) const {
  for (size_t i = 0; i < sizeof(bytes); ++i) {
    if (i == 4 || i == 6 || i == 8 || i == 10) out.append_char('-');
    out.append_digits(bytes[i], 16, 2);
  }
}

}  // namespace stagetwo::vfio

// SPDX-License-Identifier: Apache-2.0
#pragma once

// CRC-32C (Castagnoli), reflected. Analogue: lib/crc32c.c. The inversions at both ends are the
// caller's: begin with ~0, or what a part before this one gave, and invert the last.

#include "base/types.h"

namespace stagetwo {

namespace detail {
struct Crc32cTable {
  u32 of[256];
  constexpr Crc32cTable() : of() {
    for (u32 byte = 0; byte < 256; ++byte) {
      u32 sum = byte;
      for (unsigned i = 0; i < 8; ++i) sum = sum >> 1 ^ ((sum & 1) != 0 ? 0x82f63b78 : 0);
      of[byte] = sum;
    }
  }
};
inline constexpr Crc32cTable kCrc32c;
}  // namespace detail

[[nodiscard]] constexpr u32 crc32c(u32 sum, const u8* bytes, u64 count) {
  for (u64 i = 0; i < count; ++i) {
    sum = sum >> 8 ^ detail::kCrc32c.of[(sum ^ bytes[i]) & 0xff];
  }
  return sum;
}

}  // namespace stagetwo

// SPDX-License-Identifier: Apache-2.0
#pragma once

// One XMM register as a value: two little-endian halves, readable as lanes of any width.

#include <cstdint>
#include <type_traits>

namespace stagetwo::vcpu {

struct alignas(16) Xmm {
  std::uint64_t lo = 0;
  std::uint64_t hi = 0;
  friend constexpr bool operator==(const Xmm&, const Xmm&) = default;
};

static_assert(sizeof(Xmm) == 16 && std::is_trivially_copyable_v<Xmm>, "layout of an FXSAVE slot");

}  // namespace stagetwo::vcpu

// SPDX-License-Identifier: Apache-2.0
#pragma once

// Between a guest register value and a host register. Internal to the SSE functions.

#include <emmintrin.h>

#include "vcpu/xmm.h"

namespace stagetwo::vcpu::sse {

inline __m128i to_host(const Xmm& value) {
  return _mm_load_si128(reinterpret_cast<const __m128i*>(&value));
}
inline Xmm from_host(__m128i value) {
  Xmm result;
  _mm_store_si128(reinterpret_cast<__m128i*>(&result), value);
  return result;
}

}  // namespace stagetwo::vcpu::sse

// SPDX-License-Identifier: Apache-2.0
#pragma once

// The LOCK forms of base/arch/guarded.h, which includes this and has the theory: one instruction
// each, full barriers, false means that it faulted and nothing was changed.

#include "base/arch/guarded.h"

// The operands of an asm stand one a line.
// clang-format off

namespace stagetwo::arch {

// *old receives what was there.
template <typename T>
ST_FOREIGN_ACCESS inline bool guarded_exchange(u64 address, T value, T* old) {
  static_assert(sizeof(T) <= 8);
  auto raw = detail::cast_bits<detail::RawOf<T>>(value);
  ST_ASM_GOTO("1: xchg %[value], %[mem]\n" ST_FAULT_ENTRY("1b", "%l[fault]")
              : [value] "+r"(raw), [mem] "+m"(detail::cell_at<detail::RawOf<T>>(address)->raw)
              :
              : "memory"
              : fault);
  *old = detail::cast_bits<T>(raw);
  return true;
fault:
  return false;
}

template <typename T>
ST_FOREIGN_ACCESS inline bool guarded_fetch_add(u64 address, T value, T* old) {
  static_assert(std::is_integral_v<T>);
  auto raw = detail::cast_bits<detail::RawOf<T>>(value);
  ST_ASM_GOTO("1: lock xadd %[value], %[mem]\n" ST_FAULT_ENTRY("1b", "%l[fault]")
              : [value] "+r"(raw), [mem] "+m"(detail::cell_at<detail::RawOf<T>>(address)->raw)
              :
              : "memory", "cc"
              : fault);
  *old = detail::cast_bits<T>(raw);
  return true;
fault:
  return false;
}

// *expected receives what was there; *swapped says whether it was as expected.
template <typename T>
ST_FOREIGN_ACCESS inline bool guarded_cmpxchg(u64 address, T* expected, T desired, bool* swapped) {
  static_assert(sizeof(T) <= 8);
  auto raw = detail::cast_bits<detail::RawOf<T>>(*expected);
  const auto wanted = detail::cast_bits<detail::RawOf<T>>(desired);
  bool equal = false;
  ST_ASM_GOTO("1: lock cmpxchg %[wanted], %[mem]\n" ST_FAULT_ENTRY("1b", "%l[fault]")
              : [old] "+a"(raw), "=@ccz"(equal),
                [mem] "+m"(detail::cell_at<detail::RawOf<T>>(address)->raw)
              : [wanted] "r"(wanted)
              : "memory"
              : fault);
  *expected = detail::cast_bits<T>(raw);
  *swapped = equal;
  return true;
fault:
  return false;
}

// Pre: `address` is 16-byte aligned, else it counts as a fault. [0] is the low half.
ST_FOREIGN_ACCESS inline bool guarded_cmpxchg16b(u64 address, u64 expected[2], const u64 desired[2],
                                                 bool* swapped) {
  u64 low = expected[0];
  u64 high = expected[1];
  bool equal = false;
  using Pair = detail::RawOf<__attribute__((vector_size(16))) long long>;
  ST_ASM_GOTO("1: lock cmpxchg16b %[mem]\n" ST_FAULT_ENTRY("1b", "%l[fault]")
              : "+a"(low), "+d"(high), "=@ccz"(equal), [mem] "+m"(detail::cell_at<Pair>(address)->raw)
              : "b"(desired[0]), "c"(desired[1])
              : "memory"
              : fault);
  expected[0] = low;
  expected[1] = high;
  *swapped = equal;
  return true;
fault:
  return false;
}

}  // namespace stagetwo::arch

// clang-format on

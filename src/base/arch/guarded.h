// SPDX-License-Identifier: Apache-2.0
#pragma once

// The single instructions that touch memory which may not be there. Each is followed by an entry of
// the fault table: "if this instruction faults, go there". Analogue: the kernel's exception table
// (kernel file: extable.c). On the hot path an access is one mov; nothing is prepared or undone.
//
// Invariants: I1  one entry stands for exactly one instruction, which commits entirely or not at
//                 all (the string move commits a prefix and says in rcx how much is left).
//             I2  entries are self-relative, so the table needs no relocation at load.
// Locking: none. Orders: x86-64 gives every plain access acquire/release; nothing stronger is
// promised except by the LOCK forms, which are full barriers. Used by host/access.h only.

#include <cstring>
#include <type_traits>

#include "base/types.h"

// The operands of an asm stand one a line.
// clang-format off

namespace stagetwo::arch {

struct FaultEntry {
  s32 access;  // from this field to the instruction
  s32 fixup;   // from this field to where to go
};
static_assert(sizeof(FaultEntry) == 8, "the table is an array of 8-byte entries");

// `?`: the entry lives and dies with the (inline) function it belongs to.
#define ST_FAULT_ENTRY(access, fixup)              \
  ".pushsection st_fault_table,\"a?\",@progbits\n" \
  ".balign 4\n"                                    \
  ".long " access " - ., " fixup " - .\n"          \
  ".popsection\n"

// g++ 12 may move the outputs of an `asm goto` past its end; an empty volatile asm holds them.
#define ST_ASM_GOTO(...)            \
  do {                              \
    asm volatile goto(__VA_ARGS__); \
    asm volatile("");               \
  } while (false)

// The address is a client's or a guest's, not an object of this program.
#if defined(__clang__)
#define ST_FOREIGN_ACCESS [[gnu::always_inline, clang::no_sanitize("undefined", "address", "thread")]]
#else
#define ST_FOREIGN_ACCESS [[gnu::always_inline]]
#endif

namespace detail {
template <size_t kBytes>
struct Raw;
template <>
struct Raw<1> { using Type = u8; };
template <>
struct Raw<2> { using Type = u16; };
template <>
struct Raw<4> { using Type = u32; };
template <>
struct Raw<8> { using Type = u64; };
template <>
struct Raw<16> { using Type [[gnu::vector_size(16)]] = long long; };

// Memory of unknown type and alignment.
template <typename R>
struct [[gnu::packed, gnu::may_alias]] Cell {
  R raw;
};
template <typename R>
inline Cell<R>* cell_at(u64 address) {
  return reinterpret_cast<Cell<R>*>(address);
}
template <typename T>
using RawOf = typename Raw<sizeof(T)>::Type;

template <typename To, typename From>
inline To cast_bits(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  __builtin_memcpy(&to, &from, sizeof(To));
  return to;
}
}  // namespace detail

// All of these: false means the access faulted and nothing was changed.

template <typename T>
ST_FOREIGN_ACCESS inline bool guarded_load(u64 address, T* out) {
  static_assert(std::is_trivially_copyable_v<T>);
  detail::RawOf<T> raw;
  if constexpr (sizeof(T) == 16) {
    ST_ASM_GOTO("1: movups %[mem], %[out]\n" ST_FAULT_ENTRY("1b", "%l[fault]")
                : [out] "=x"(raw)
                : [mem] "m"(detail::cell_at<detail::RawOf<T>>(address)->raw)
                :
                : fault);
  } else {
    ST_ASM_GOTO("1: mov %[mem], %[out]\n" ST_FAULT_ENTRY("1b", "%l[fault]")
                : [out] "=r"(raw)
                : [mem] "m"(detail::cell_at<detail::RawOf<T>>(address)->raw)
                :
                : fault);
  }
  *out = detail::cast_bits<T>(raw);
  return true;
fault:
  return false;
}

template <typename T>
ST_FOREIGN_ACCESS inline bool guarded_store(u64 address, T value) {
  static_assert(std::is_trivially_copyable_v<T>);
  const auto raw = detail::cast_bits<detail::RawOf<T>>(value);
  if constexpr (sizeof(T) == 16) {
    ST_ASM_GOTO("1: movups %[value], %[mem]\n" ST_FAULT_ENTRY("1b", "%l[fault]")
                : [mem] "=m"(detail::cell_at<detail::RawOf<T>>(address)->raw)
                : [value] "x"(raw)
                :
                : fault);
  } else {
    ST_ASM_GOTO("1: mov %[value], %[mem]\n" ST_FAULT_ENTRY("1b", "%l[fault]")
                : [mem] "=m"(detail::cell_at<detail::RawOf<T>>(address)->raw)
                : [value] "r"(raw)
                :
                : fault);
  }
  return true;
fault:
  return false;
}

// Copies upwards; either side may be the foreign one. Post: returns the bytes NOT copied.
ST_FOREIGN_ACCESS inline size_t guarded_string_move(u64 to, u64 from, size_t bytes) {
  asm volatile("1: rep movsb\n2:\n" ST_FAULT_ENTRY("1b", "2b")
               : "+D"(to), "+S"(from), "+c"(bytes)
               :
               : "memory");
  return bytes;
}

}  // namespace stagetwo::arch

// clang-format on

#include "base/arch/guarded_locked.h"

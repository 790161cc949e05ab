// SPDX-License-Identifier: Apache-2.0
#pragma once

// Broken invariants end the process with both operands printed. ST_CHECK is always on; ST_DCHECK
// only in debug builds and must have no effect on the program. Never used on input of a guest, an
// ioctl or a device: that is a refusal (base/result.h).
//
// Context: any, signal handlers included; allocates nothing, takes no lock.

#include <cstdint>

// As the library was built: an installed package says so, whatever its user does with NDEBUG.
#if !defined(ST_DEBUG_CHECKS)
#if defined(NDEBUG)
#define ST_DEBUG_CHECKS 0
#else
#define ST_DEBUG_CHECKS 1
#endif
#endif

namespace stagetwo::detail {
[[noreturn, gnu::cold]] void check_failed(const char* file, int line, const char* text);
[[noreturn, gnu::cold]] void check_op_failed(const char* file, int line, const char* text,
                                             std::uint64_t left, std::uint64_t right);

template <typename T>
constexpr std::uint64_t check_operand(T value) {
  if constexpr (requires { value.raw(); }) {
    return value.raw();
  } else if constexpr (requires { reinterpret_cast<std::uintptr_t>(value); }) {
    return static_cast<std::uint64_t>(reinterpret_cast<std::uintptr_t>(value));
  } else {
    return static_cast<std::uint64_t>(value);
  }
}
}  // namespace stagetwo::detail

#define ST_CHECK(condition)           \
  (__builtin_expect(!!(condition), 1) \
       ? static_cast<void>(0)         \
       : ::stagetwo::detail::check_failed(__FILE__, __LINE__, #condition))

// `op` is a comparison: ST_CHECK_OP(count, >, 0).
#define ST_CHECK_OP(left, op, right)                                                    \
  do {                                                                                  \
    const auto st_left = (left);                                                        \
    const auto st_right = (right);                                                      \
    if (!(st_left op st_right)) [[unlikely]]                                            \
      ::stagetwo::detail::check_op_failed(__FILE__, __LINE__, #left " " #op " " #right, \
                                          ::stagetwo::detail::check_operand(st_left),   \
                                          ::stagetwo::detail::check_operand(st_right)); \
  } while (false)

#if !ST_DEBUG_CHECKS
#define ST_DCHECK(condition) static_cast<void>(sizeof((condition) ? 1 : 0))
#else
#define ST_DCHECK(condition) ST_CHECK(condition)
#endif

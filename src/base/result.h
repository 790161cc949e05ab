// SPDX-License-Identifier: Apache-2.0
#pragma once

// What a refusal is: a positive errno that travels unchanged to `abi`, where one function negates
// it. "I lost the race" and "come back later" are never refusals; they are enums, one a protocol.
// Analogue: the kernel's negative errno returns; positive here so that nobody can forget the sign.

#include <cerrno>
#include <expected>

namespace stagetwo {

// An errno value, always > 0. A type of its own so that no byte count becomes a refusal.
enum class Errno : int {};

constexpr int to_int(Errno e) {
  return static_cast<int>(e);
}

template <typename T = void>
using Result = std::expected<T, Errno>;

// The refusal itself: `return refuse(EINVAL);`.
constexpr std::unexpected<Errno> refuse(int positive_errno) {
  return std::unexpected<Errno>(Errno{positive_errno});
}
constexpr std::unexpected<Errno> refuse(Errno e) {
  return std::unexpected<Errno>(e);
}

}  // namespace stagetwo

// Hands a refusal to the caller or yields the value: `int fd = ST_TRY(open_it());`. May be nested.
#define ST_TRY(expression) ST_TRY_NUMBERED(expression, __COUNTER__)
#define ST_TRY_NUMBERED(expression, number) ST_TRY_PASTED(expression, number)
#define ST_TRY_PASTED(expression, number) ST_TRY_NAMED(expression, st_try_result_##number)
#define ST_TRY_NAMED(expression, result)                                   \
  __extension__({                                                          \
    auto result = (expression);                                            \
    if (!result) [[unlikely]]                                              \
      return ::stagetwo::refuse(result.error());                           \
    ::stagetwo::detail::value_of(static_cast<decltype(result)&&>(result)); \
  })

namespace stagetwo::detail {
template <typename T>
constexpr T value_of(Result<T>&& result) {
  return static_cast<T&&>(*result);
}
constexpr void value_of(Result<void>&&) {}
}  // namespace stagetwo::detail

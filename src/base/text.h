// SPDX-License-Identifier: Apache-2.0
#pragma once

// Text without allocation: appends into a fixed buffer, cuts what does not fit and says so.
// Usable in signal handlers. No locale, no floating point.

#include <concepts>
#include <cstring>
#include <string_view>
#include <type_traits>

#include "base/result.h"
#include "base/types.h"

namespace stagetwo {

// Appends text to memory the caller owns. Keeps a terminating NUL whenever capacity > 0.
// I1: size() < capacity() always (the NUL has its place), or capacity() == 0.
class TextWriter {
 public:
  constexpr TextWriter(char* to, size_t capacity) : to_(to), capacity_(capacity) { terminate(); }
  TextWriter(const TextWriter&) = delete;
  TextWriter& operator=(const TextWriter&) = delete;

  TextWriter& append(std::string_view text) {
    const size_t room = capacity_ == 0 ? 0 : capacity_ - 1 - size_;
    const size_t take = text.size() < room ? text.size() : room;
    if (take != text.size()) cut_ = true;
    if (take != 0) std::memcpy(to_ + size_, text.data(), take);
    size_ += take;
    terminate();
    return *this;
  }
  TextWriter& append(const char* text) {
    return append(text == nullptr ? std::string_view("(null)") : std::string_view(text));
  }
  TextWriter& append_char(char c) { return append(std::string_view(&c, 1)); }

  template <std::integral T>
  TextWriter& append_int(T value) {
    if constexpr (std::is_signed_v<T>) {
      if (value < 0) return append_char('-').append_digits(0 - static_cast<u64>(value), 10, 1);
    }
    return append_digits(static_cast<u64>(value), 10, 1);
  }
  // With 0x; `width` digits at least.
  TextWriter& append_hex(u64 value, unsigned width = 1) {
    return append("0x").append_digits(value, 16, width);
  }
  TextWriter& append_digits(u64 value, unsigned base, unsigned width) {
    char reversed[64];
    size_t n = 0;
    do {
      reversed[n++] = "0123456789abcdef"[value % base];
      value /= base;
    } while (value != 0);
    while (n < width && n < sizeof(reversed)) reversed[n++] = '0';
    while (n > 0) append_char(reversed[--n]);
    return *this;
  }
  TextWriter& append_ptr(const volatile void* p) {
    return append_hex(static_cast<u64>(reinterpret_cast<std::uintptr_t>(p)));
  }

  void clear() {
    size_ = 0;
    cut_ = false;
    terminate();
  }
  [[nodiscard]] std::string_view view() const { return {to_, size_}; }
  [[nodiscard]] const char* c_str() const { return to_; }
  [[nodiscard]] const char* data() const { return to_; }
  [[nodiscard]] size_t size() const { return size_; }
  [[nodiscard]] bool empty() const { return size_ == 0; }
  // Did an append not fit?
  [[nodiscard]] bool cut() const { return cut_; }

 private:
  constexpr void terminate() {
    if (capacity_ != 0) to_[size_] = '\0';
  }

  char* to_;
  size_t capacity_;
  size_t size_ = 0;
  bool cut_ = false;
};

// A TextWriter with its buffer: at most N - 1 characters.
template <size_t N>
class FixedString : public TextWriter {
 public:
  FixedString() : TextWriter(buffer_, N) {}
  explicit FixedString(std::string_view text) : FixedString() { append(text); }

 private:
  char buffer_[N];
};

// A decimal, or with 0x hexadecimal, number that fills the whole text. False: it is not one.
bool parse_u64(std::string_view text, u64* out);

// A number as the kernel takes it from a file that is written to (kernel file: lib/kstrtox.c): one
// sign, digits, at most one newline; a NUL ends the text. Base 0: 0x means 16, another 0 means 8.
// Failure, in the kernel's order: ERANGE where 64 bits do not hold the digits, whatever comes after
// them; EINVAL for no digits or anything after them; ERANGE beyond `largest`.
[[nodiscard]] Result<u64> parse_kernel_unsigned(std::string_view text, u64 largest = ~u64{0},
                                                unsigned base = 0);
[[nodiscard]] Result<s64> parse_kernel_signed(std::string_view text, unsigned base = 0);

}  // namespace stagetwo

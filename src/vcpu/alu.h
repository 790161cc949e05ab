// SPDX-License-Identifier: Apache-2.0
#pragma once

// Integer arithmetic on values: result and flags, no registers, no memory. Each function takes the
// flags before and leaves the flags after.
// Spec: Intel SDM vol. 2 for each mnemonic. Flags it leaves undefined are what current AMD and
// Intel processors agree on where they do (the native test shows it), else cleared.

#include "vcpu/flags.h"

namespace stagetwo::vcpu::alu {

template <typename T>
using Signed = std::make_signed_t<T>;

// One bit of a value as a flag in place.
constexpr u64 flag_if(bool value, u64 flag) {
  return value ? flag : 0;
}
template <typename T>
constexpr bool msb(T value) {
  return (value >> (kBits<T> - 1) & 1) != 0;
}

template <typename T>
T add(LazyFlags& f, T a, T b) {
  const T r = static_cast<T>(a + b);
  f.set<T>(FlagGroup::kAdd, r, a, b);
  return r;
}
template <typename T>
T sub(LazyFlags& f, T a, T b) {
  const T r = static_cast<T>(a - b);
  f.set<T>(FlagGroup::kSub, r, a, b);
  return r;
}
template <typename T>
T logic(LazyFlags& f, T r) {
  f.set<T>(FlagGroup::kLogic, r, 0, 0);
  return r;
}
template <typename T>
T inc(LazyFlags& f, T a) {
  const T carry = f.cf();
  const T r = static_cast<T>(a + 1);
  f.set<T>(FlagGroup::kInc, r, a, carry);
  return r;
}
template <typename T>
T dec(LazyFlags& f, T a) {
  const T carry = f.cf();
  const T r = static_cast<T>(a - 1);
  f.set<T>(FlagGroup::kDec, r, a, carry);
  return r;
}

template <typename T>
T adc(LazyFlags& f, T a, T b) {
  const T carry = f.cf();
  const T r = static_cast<T>(a + b + carry);
  const T out = static_cast<T>((a & b) | ((a | b) & static_cast<T>(~r)));
  f.set_exact(result_flags(r) | flag_if(msb(out), rflags::kCf) |
              flag_if(((a ^ b ^ r) & 0x10) != 0, rflags::kAf) |
              flag_if(msb(static_cast<T>((a ^ r) & (b ^ r))), rflags::kOf));
  return r;
}
template <typename T>
T sbb(LazyFlags& f, T a, T b) {
  const T carry = f.cf();
  const T r = static_cast<T>(a - b - carry);
  const T na = static_cast<T>(~a);
  const T out = static_cast<T>((na & b) | ((na | b) & r));
  f.set_exact(result_flags(r) | flag_if(msb(out), rflags::kCf) |
              flag_if(((a ^ b ^ r) & 0x10) != 0, rflags::kAf) |
              flag_if(msb(static_cast<T>((a ^ b) & (a ^ r))), rflags::kOf));
  return r;
}

template <typename T>
constexpr unsigned shift_mask() {
  return sizeof(T) == 8 ? 0x3f : 0x1f;
}

template <typename T>
T shl(LazyFlags& f, T a, unsigned count) {
  count &= shift_mask<T>();
  if (count == 0) return a;
  const T r = count < kBits<T> ? static_cast<T>(a << count) : T{0};
  const bool carry = count <= kBits<T> && (a >> (kBits<T> - count) & 1) != 0;
  f.set_exact(result_flags(r) | flag_if(carry, rflags::kCf) |
              flag_if(msb(r) != carry, rflags::kOf));
  return r;
}
template <typename T>
T shr(LazyFlags& f, T a, unsigned count) {
  count &= shift_mask<T>();
  if (count == 0) return a;
  const T r = count < kBits<T> ? static_cast<T>(a >> count) : T{0};
  const bool carry = count <= kBits<T> && (a >> (count - 1) & 1) != 0;
  f.set_exact(result_flags(r) | flag_if(carry, rflags::kCf) |
              flag_if(count == 1 && msb(a), rflags::kOf));
  return r;
}
template <typename T>
T sar(LazyFlags& f, T a, unsigned count) {
  count &= shift_mask<T>();
  if (count == 0) return a;
  const unsigned n = count < kBits<T> ? count : kBits<T> - 1;
  const T r = static_cast<T>(static_cast<Signed<T>>(a) >> n);
  const bool carry = (static_cast<Signed<T>>(a) >> (count <= kBits<T> ? count - 1 : n) & 1) != 0;
  f.set_exact(result_flags(r) | flag_if(carry, rflags::kCf));
  return r;
}

// CF and OF of a rotate; the other flags stay.
inline void set_rotate_flags(LazyFlags& f, bool carry, bool overflow) {
  f.set_exact((f.bits() & ~(rflags::kCf | rflags::kOf)) | flag_if(carry, rflags::kCf) |
              flag_if(overflow, rflags::kOf));
}
template <typename T>
T rol(LazyFlags& f, T a, unsigned count) {
  count &= shift_mask<T>();
  if (count == 0) return a;
  const T r = std::rotl(a, static_cast<int>(count % kBits<T>));
  set_rotate_flags(f, (r & 1) != 0, msb(r) != ((r & 1) != 0));
  return r;
}
template <typename T>
T ror(LazyFlags& f, T a, unsigned count) {
  count &= shift_mask<T>();
  if (count == 0) return a;
  const T r = std::rotr(a, static_cast<int>(count % kBits<T>));
  set_rotate_flags(f, msb(r), msb(r) != msb(static_cast<T>(r << 1)));
  return r;
}
template <typename T>
T rcl(LazyFlags& f, T a, unsigned count) {
  count &= shift_mask<T>();
  count %= kBits<T> + 1;
  if (count == 0) return a;
  bool carry = f.cf();
  T r = a;
  for (unsigned i = 0; i < count; ++i) {
    const bool out = msb(r);
    r = static_cast<T>(static_cast<T>(r << 1) | T{carry});
    carry = out;
  }
  set_rotate_flags(f, carry, msb(r) != carry);
  return r;
}
template <typename T>
T rcr(LazyFlags& f, T a, unsigned count) {
  count &= shift_mask<T>();
  count %= kBits<T> + 1;
  if (count == 0) return a;
  bool carry = f.cf();
  T r = a;
  for (unsigned i = 0; i < count; ++i) {
    const bool out = (r & 1) != 0;
    r = static_cast<T>(static_cast<T>(r >> 1) | static_cast<T>(T{carry} << (kBits<T> - 1)));
    carry = out;
  }
  set_rotate_flags(f, carry, msb(r) != msb(static_cast<T>(r << 1)));
  return r;
}

}  // namespace stagetwo::vcpu::alu

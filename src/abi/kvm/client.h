// SPDX-License-Identifier: Apache-2.0
#pragma once

// The client's memory as an ioctl sees it, and the run page as two owners share it. A bad pointer
// is EFAULT, decided by host::access alone.
//
// Linux analogue: copy_from_user, copy_to_user; READ_ONCE of the shared run page.

#include <cstring>
#include <type_traits>

#include "base/result.h"
#include "base/types.h"
#include "host/access.h"

namespace stagetwo::abi_kvm {

inline Result<void> copy_in_bytes(void* to, u64 from, size_t bytes) {
  if (!host::is_user_range(Hva(from), bytes) || host::copy_from(to, Hva(from), bytes) != bytes)
    return refuse(EFAULT);
  return {};
}

inline Result<void> copy_out_bytes(u64 to, const void* from, size_t bytes) {
  if (!host::is_user_range(Hva(to), bytes) || host::copy_to(Hva(to), from, bytes) != bytes)
    return refuse(EFAULT);
  return {};
}

template <typename T>
Result<T> copy_in(u64 from) {
  static_assert(std::is_trivially_copyable_v<T>);
  T value;
  ST_TRY(copy_in_bytes(&value, from, sizeof(T)));
  return value;
}

template <typename T>
Result<void> copy_out(u64 to, const T& value) {
  static_assert(std::is_trivially_copyable_v<T>);
  return copy_out_bytes(to, &value, sizeof(T));
}

// The front of the structs that end in an array: kvm_msrs, kvm_cpuid, kvm_cpuid2.
struct CountedHeader {
  u32 count;
  u32 pad;
};

// Fields of memory that client threads change while we read: each is read once and never re-read.
template <typename T>
T read_once(const T& shared) {
  return *const_cast<const volatile T*>(&shared);
}
template <typename T>
void write_once(T& shared, T value) {
  *const_cast<volatile T*>(&shared) = value;
}

// A struct of the run page, copied once; a racing writer gives a torn copy, never two views.
template <typename T>
T snapshot(const T& shared) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) % 8 == 0 && alignof(T) >= 8);
  u64 words[sizeof(T) / 8];
  const auto* from = reinterpret_cast<const volatile u64*>(&shared);
  for (size_t i = 0; i < sizeof(T) / 8; ++i) words[i] = from[i];
  T value;
  std::memcpy(&value, words, sizeof(T));
  return value;
}

// What an ioctl returns: the one place that turns a refusal into the kernel's sign.
inline long answer(const Result<long>& result) {
  return result ? *result : -static_cast<long>(to_int(result.error()));
}

}  // namespace stagetwo::abi_kvm

// SPDX-License-Identifier: Apache-2.0
#pragma once

// Structs of a request, to and from the client. Not for other rooms.

#include <cstddef>

#include "base/result.h"
#include "host/access.h"

namespace stagetwo::abi_vfio {

inline Result<void> copy_in_bytes(void* to, u64 from, size_t bytes) {
  if (!host::is_user_range(Hva(from), bytes) || host::copy_from(to, Hva(from), bytes) != bytes) {
    return refuse(EFAULT);
  }
  return {};
}
inline Result<void> copy_out_bytes(u64 to, const void* from, size_t bytes) {
  if (!host::is_user_range(Hva(to), bytes) || host::copy_to(Hva(to), from, bytes) != bytes) {
    return refuse(EFAULT);
  }
  return {};
}

// The first `known` bytes, and argsz, their first word, says at least so much. Failure: EFAULT,
// EINVAL.
template <typename T>
[[nodiscard]] Result<void> copy_in(T* request, u64 from, size_t known = sizeof(T)) {
  ST_TRY(copy_in_bytes(request, from, known));
  if (request->argsz < known) return refuse(EINVAL);
  return {};
}

#define ST_SIZE_TO(type, member) (offsetof(type, member) + sizeof(type::member))

}  // namespace stagetwo::abi_vfio

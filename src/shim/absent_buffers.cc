// SPDX-License-Identifier: Apache-2.0
#include "shim/absent_buffers.h"

#include <limits.h>

#include <algorithm>

#include "host/access.h"
#include "host/change.h"
#include "host/run_section.h"

namespace stagetwo::shim {
namespace {

u64 fetch(const void* buffer, size_t size) {
  const auto range = host::pages_of(reinterpret_cast<u64>(buffer), size);
  return range ? host::bring_back_range(*range) : 0;
}

}  // namespace

unsigned long fetch_buffer(const void* buffer, size_t size) {
  const int error = errno;
  host::EngineSection section(host::Touches::kNothing);
  const u64 back = fetch(buffer, size);
  section.leave();
  errno = error;
  return back;
}

unsigned long fetch_buffers(const iovec* parts, int count) {
  const int error = errno;
  host::EngineSection section(host::Touches::kClientMemory);
  const int known = std::clamp(count, 0, IOV_MAX);
  u64 back = fetch(parts, static_cast<size_t>(known) * sizeof(iovec));
  for (int i = 0; i < known; ++i) {
    iovec part{};
    if (!host::read_struct(Hva(reinterpret_cast<u64>(parts + i)), &part)) break;
    back += fetch(part.iov_base, part.iov_len);
  }
  section.leave();
  errno = error;
  return back;
}

}  // namespace stagetwo::shim

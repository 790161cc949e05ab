// SPDX-License-Identifier: Apache-2.0
#include "uv/real_memory.h"

#include "host/access.h"

namespace stagetwo::uv {

bool ProcessMemory::read(u64 address, void* to, u64 bytes) {
  return host::copy_from(to, Hva(address), bytes) == bytes;
}

bool ProcessMemory::write(u64 address, const void* from, u64 bytes) {
  return host::copy_to(Hva(address), from, bytes) == bytes;
}

}  // namespace stagetwo::uv

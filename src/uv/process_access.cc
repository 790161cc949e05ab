// SPDX-License-Identifier: Apache-2.0
#include "uv/process_access.h"

#include <sys/mman.h>

#include <cstring>

#include "base/own_memory.h"
#include "base/sys.h"
#include "host/process_files.h"

namespace stagetwo::uv {

bool read_anyhow(Hva at, void* to, u64 bytes) {
  const auto memory = host::memory_file();
  if (!memory) return false;
  const auto got = sys::pread(memory->get(), to, bytes, static_cast<off_t>(at.raw()));
  return got && static_cast<u64>(*got) == bytes;
}

// The kernel makes a copy of a private page for it, of shared memory it writes nothing: that is
// mapped once more, as long as it lasts.
bool wipe_anyhow(Hva at) {
  static constexpr u8 kNothing[kPageSize] = {};
  const auto memory = host::memory_file();
  if (!memory) return false;
  const auto put = sys::pwrite(memory->get(), kNothing, kPageSize, static_cast<off_t>(at.raw()));
  if (put && *put == kPageSize) return true;
  const auto alias = map_again_apart(reinterpret_cast<const void*>(at.raw()), kPageSize);
  if (!alias) return false;
  const bool may = sys::mprotect(*alias, kPageSize, PROT_READ | PROT_WRITE).has_value();
  const auto there = static_cast<off_t>(reinterpret_cast<u64>(*alias));
  const auto wiped = may ? sys::pwrite(memory->get(), kNothing, kPageSize, there) : put;
  unmap_again(*alias, kPageSize);
  return wiped && *wiped == kPageSize;
}

}  // namespace stagetwo::uv

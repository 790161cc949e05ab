// SPDX-License-Identifier: Apache-2.0
#include "shim/into_devices.h"

#include <errno.h>
#include <poll.h>
#include <sys/syscall.h>

#include <algorithm>

#include "abi/vfio/vfio.h"
#include "addr/addr.h"
#include "base/sys.h"
#include "base/types.h"
#include "shim/engine.h"
#include "shim/next.h"

namespace stagetwo::shim {
namespace {

Hva address_of(const void* at) {
  return Hva(reinterpret_cast<u64>(at));
}

bool is_trapped(const void* buffer, size_t size) {
  const Hva first = address_of(buffer);
  return size != 0 && (abi_vfio::trapped_bytes_at(first) != 0 ||
                       abi_vfio::trapped_bytes_at(first + (size - 1)) != 0);
}

// Would a further read answer at once? What has come is not kept waiting.
bool has_more(int fd) {
  pollfd asked{fd, POLLIN, 0};
  const timespec now{};
  return sys::call(SYS_ppoll, sys::arg(&asked), 1, sys::arg(&now), 0, 8) == 1;
}

}  // namespace

bool read_into_device(int fd, void* buffer, size_t size, const off_t* at, ssize_t* result) {
  if (!is_trapped(buffer, size)) [[likely]]
    return false;
  u8 bytes[kPageSize];
  u8* const to = static_cast<u8*>(buffer);
  for (size_t done = 0; done < size;) {
    const u64 trapped = abi_vfio::trapped_bytes_at(address_of(to + done));
    const size_t left = size - done;
    // Such memory is whole pages: up to the next one it may be the kernel's.
    const size_t whole = kPageSize - (address_of(to + done).raw() & (kPageSize - 1));
    const size_t some = std::min({left, whole, trapped != 0 ? size_t{trapped} : whole});
    void* const place = trapped != 0 ? bytes : to + done;
    const ssize_t got = at != nullptr ? next::pread(fd, place, some, *at + static_cast<off_t>(done))
                                      : next::read(fd, place, some);
    const size_t came = got > 0 ? static_cast<size_t>(got) : 0;
    const bool kept = trapped == 0 || came == 0 ||
                      abi_vfio::put_to_device(address_of(to + done), {bytes, came}) == came;
    done += kept ? came : 0;
    if (came == some && kept && (done == size || has_more(fd))) continue;
    *result = done != 0 ? static_cast<ssize_t>(done) : kept ? got : as_libc(-EFAULT);
    return true;
  }
  *result = static_cast<ssize_t>(size);
  return true;
}

}  // namespace stagetwo::shim

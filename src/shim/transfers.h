// SPDX-License-Identifier: Apache-2.0
#pragma once

// Reading and writing a descriptor, by whatever name: a virtual file's is made here, one of ours
// may be refused, and for the rest the buffers are there and stay there. `call` is what the kernel
// does.
//
// Context: the client's thread. errno is the call's.

#include "shim/absent_buffers.h"
#include "shim/described.h"
#include "shim/files.h"
#include "shim/into_devices.h"
#include "shim/virtual_io.h"

namespace stagetwo::shim {

template <typename F>
ssize_t move_bytes(int fd, Io io, const void* buffer, size_t size, const off_t* at, F&& call) {
  if (ssize_t done = 0; virtual_io(fd, io, buffer, size, at, &done)) return done;
  if (ssize_t done = 0; io_described(fd, io, buffer, size, at, &done)) return done;
  if (io_refused(fd, io, at)) return -1;
  if (ssize_t done = 0;
      io == Io::kRead && read_into_device(fd, const_cast<void*>(buffer), size, at, &done))
    return done;
  if (host::owners_active() && shows_absent_memory(fd)) [[unlikely]] {
    const u64 there = offset_of(fd, at);
    return with_held([&](Buffers& b) { b.bytes(buffer, size).own_memory(there, size); }, call);
  }
  return with_buffer(fd, io == Io::kRead, at, buffer, size, call);
}

template <typename F>
ssize_t move_parts(int fd, Io io, const iovec* parts, int count, const off_t* at, F&& call) {
  if (ssize_t done = 0; virtual_io(fd, io, parts, count, at, &done)) return done;
  if (ssize_t done = 0; parts_described(fd, io, parts, count, at, &done)) return done;
  if (io_refused(fd, io, at)) return -1;
  if (host::owners_active() && shows_absent_memory(fd)) [[unlikely]] {
    const u64 there = offset_of(fd, at);
    return with_held([&](Buffers& b) { b.parts(parts, count).own_memory(there, parts, count); },
                     call);
  }
  return with_parts(fd, io == Io::kRead, at, parts, count, call);
}

}  // namespace stagetwo::shim

// SPDX-License-Identifier: Apache-2.0
#pragma once

// System calls that fail late.

#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>

namespace stagetwo::test {

// The kernel unmaps what is there before it asks the file, and no socket of this kind can be
// mapped: MAP_FAILED, ENODEV, and a hole.
inline void* map_socket_over(void* at, size_t bytes) {
  const int socket = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  void* mapped = ::mmap(at, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, socket, 0);
  const int error = errno;
  ::close(socket);
  errno = error;
  return mapped;
}

}  // namespace stagetwo::test

// SPDX-License-Identifier: Apache-2.0
#pragma once

// Reads and writes that a description of ours does itself, and what fcntl says of it.
//
// Context: the client's thread. errno is the call's.

#include <sys/uio.h>

#include "host/descriptor.h"
#include "shim/files.h"

namespace stagetwo::shim {

// The access mode that the kernel's file would have. `flags`: what F_GETFL says of ours.
[[nodiscard]] int access_of(const host::DescriptionRef& ref, const Result<long>& flags);

// Is it read or written by a description that does it itself? Then *done and errno are the call's.
bool io_described(int fd, Io io, const void* buffer, size_t size, const off_t* at, ssize_t* done);
bool parts_described(int fd, Io io, const iovec* parts, int count, const off_t* at, ssize_t* done);

int control_fd(int fd, int command, long argument);  // fcntl

}  // namespace stagetwo::shim

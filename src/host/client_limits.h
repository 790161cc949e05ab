// SPDX-License-Identifier: Apache-2.0
#pragma once

// What the engine does for itself and the client's limits are not about: in the kernel what stands
// behind a descriptor has no file that grows, and a close opens nothing.
//
// Analogue: i_size_write, fput (neither asks a limit).
// I1: the engine's file never raises SIGXFSZ in the client.
// I2: the client's limits are afterwards what they were, or what it has set meanwhile.
//
// Locking: a leaf lock. For the length of a system call the process's own limit is higher where it
// must be: up to the hard limit, and above it in a process that is privileged.

#include "base/result.h"
#include "base/types.h"

namespace stagetwo::host {

// Failure: EFBIG when the limit is lower and the process may not raise it; else ftruncate's.
[[nodiscard]] Result<void> set_file_size(int fd, u64 size);

// sys::reopen_engine_fd, in a full table too. Failure: EMFILE when the table is full and the
// process may not raise its limit; else the kernel's.
[[nodiscard]] Result<int> reopen_beyond_limit(int fd, int flags);

void client_limits_after_fork_child();

}  // namespace stagetwo::host

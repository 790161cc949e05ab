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
// must be: up to the hard limit, and above it in a process that is privileged. Where that is not
// enough for a descriptor there is one number that the engine keeps for it.

#include "base/result.h"
#include "base/types.h"

namespace stagetwo::host {

// Failure: EFBIG when the limit is lower and the process may not raise it; else ftruncate's.
[[nodiscard]] Result<void> set_file_size(int fd, u64 size);

// What open() opens, an engine descriptor, in a full table too. Failure: EMFILE when the table is
// full, the process may not raise its limit and the kept number is lent; else open()'s.
using Open = Result<int> (*)(const void* what);
[[nodiscard]] Result<int> open_beyond_limit(Open open, const void* what);
template <typename F>
[[nodiscard]] Result<int> open_beyond_limit(const F& open) {
  return open_beyond_limit([](const void* what) { return (*static_cast<const F*>(what))(); },
                           &open);
}

// Takes a number, for times when there is none. Where there is none already: the next time.
void keep_a_number();
// After a descriptor was closed that may have had the kept number. A load when it has not.
void take_number_back();

void client_limits_after_fork_child();

}  // namespace stagetwo::host

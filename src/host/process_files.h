// SPDX-License-Identifier: Apache-2.0
#pragma once

// The files of /proc in which the kernel says what this process's memory is like. Opened while the
// engine wakes and kept (host/kept_fd.h): a process that leaves for another root, changes its user
// or lowers RLIMIT_NOFILE afterwards could open none.
//
// Context: any thread. Allocates nothing. Failure: the kernel's, asked again next time.

#include "base/result.h"
#include "base/types.h"
#include "host/kept_fd.h"

namespace stagetwo::host {

// Idempotent. What cannot be opened is tried again at its first use.
void open_process_files();

[[nodiscard]] Result<FdUse> maps_file();
[[nodiscard]] Result<FdUse> pagemap_file();
[[nodiscard]] Result<FdUse> memory_file();  // /proc/self/mem, for reading and writing

// The number of a line of /proc/self/status, such as "VmLck:". Failure: EINVAL (no such line).
[[nodiscard]] Result<u64> status_kilobytes(const char* label);

}  // namespace stagetwo::host

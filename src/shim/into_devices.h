// SPDX-License-Identifier: Apache-2.0
#pragma once

// A read whose buffer is a device's registers, which the client has mapped: the kernel cannot store
// there (abi/vfio/mappings.h), so the bytes come to us and are stored one register after the other.
// Of read() and pread() only: another call's buffer there (readv, recv) is EFAULT.
//
// Analogue: copy_to_user() of memory that is a BAR's.
// Context: the client's thread. errno is the call's.

#include <sys/types.h>

namespace stagetwo::shim {

// True: some of the buffer is such memory, and *result is libc's. `at`: of pread, or nullptr.
[[nodiscard]] bool read_into_device(int fd, void* buffer, size_t size, const off_t* at,
                                    ssize_t* result);

}  // namespace stagetwo::shim

// SPDX-License-Identifier: Apache-2.0
#pragma once

// Where shared memory has data (lseek) and how much of it (stat), while an owner has pages of it:
// the file has holes there, and they are none. Analogue: swap entries of shmem, which are data and
// blocks of the file (kernel files: mm/filemap.c, mm/shmem.c).
//
// Context: the client's thread, awake or not. errno is the call's.

#include <sys/types.h>

#include "base/types.h"

namespace stagetwo::shim {

// Does the file have holes of ours, perhaps? Answers the object; 0: none.
[[nodiscard]] u64 has_our_holes(int fd);
// lseek with SEEK_DATA or SEEK_HOLE. Pre: the object is of has_our_holes().
off_t seek_data(int fd, u64 object, off_t offset, int whence);
// What stat says too little of a file, in its units.
[[nodiscard]] u64 kept_blocks(u64 device, u64 inode);

}  // namespace stagetwo::shim

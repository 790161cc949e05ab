// SPDX-License-Identifier: Apache-2.0
#pragma once

// Numbers of memory calls that the kernel knows and an older libc's headers do not.

#include <sys/mman.h>

#if !defined(MADV_COLD)
#define MADV_COLD 20  // Linux 5.4
#endif
#if !defined(MADV_POPULATE_READ)
#define MADV_POPULATE_READ 22  // Linux 5.14
#define MADV_POPULATE_WRITE 23
#endif
#if !defined(MADV_DONTNEED_LOCKED)
#define MADV_DONTNEED_LOCKED 24  // Linux 5.18
#endif
#if !defined(MREMAP_DONTUNMAP)
#define MREMAP_DONTUNMAP 4  // Linux 5.7
#endif
#if !defined(MLOCK_ONFAULT)
#define MLOCK_ONFAULT 1
#endif

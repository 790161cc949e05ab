// SPDX-License-Identifier: Apache-2.0
#pragma once

// The calls that change what an address of the client means: the bell rings before them
// (host/change.h). Asleep they go straight on. With --hugetlb=standin, requests for huge pages are
// answered by the stand-in (host/hugetlb_standin.h), awake or not.

#include <sys/mman.h>
#include <sys/types.h>
#include <sys/uio.h>

namespace stagetwo::shim {

// Who makes the call in the end: the next library's function, or the kernel's when it is libc
// itself that calls (shim/libc_calls.h).
enum class Via { kNext, kKernel };

void* map(void* at, size_t size, int prot, int flags, int fd, off_t offset, Via via = Via::kNext);
int memory_file(const char* name, unsigned flags);
int unmap(void* at, size_t size, Via via = Via::kNext);
void* remap(void* old_at, size_t old_size, size_t new_size, int flags, void* new_at,
            Via via = Via::kNext);
// `key`: of pkey_mprotect, or -1.
int protect(void* at, size_t size, int prot, int key, Via via = Via::kNext);
int advise(void* at, size_t size, int advice, Via via = Via::kNext);

// madvise on several ranges of the process `pidfd` names; only those of this one ring.
ssize_t advise_parts(int pidfd, const iovec* parts, size_t count, int advice, unsigned flags);
// mincore: a page that a device has is there, as in the kernel; one on a swap device is not.
int say_resident(void* at, size_t size, unsigned char* to);
// Another file offset at an address.
int remap_pages(void* at, size_t size, int prot, size_t page, int flags);
// mlockall. Of what is the engine's nothing is locked: it has holes that mean something, and gives
// its pages back one by one (base/own_memory.h).
int lock_all(int flags);
// What is absent behind PROT_NONE comes back first: afterwards nobody may give it rights.
int seal(void* at, size_t size, unsigned long flags);

}  // namespace stagetwo::shim

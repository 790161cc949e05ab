// SPDX-License-Identifier: Apache-2.0
#pragma once

// The calls that change what an address of the client means: the bell rings before them
// (host/change.h). Asleep they go straight on. With --hugetlb=standin, requests for huge pages are
// answered by the stand-in (host/hugetlb_standin.h), awake or not.

#include <sys/mman.h>
#include <sys/types.h>

namespace stagetwo::shim {

void* map(void* at, size_t size, int prot, int flags, int fd, off_t offset);
int memory_file(const char* name, unsigned flags);
int unmap(void* at, size_t size);
void* remap(void* old_at, size_t old_size, size_t new_size, int flags, void* new_at);
// `key`: of pkey_mprotect, or -1.
int protect(void* at, size_t size, int prot, int key);
int advise(void* at, size_t size, int advice);

}  // namespace stagetwo::shim

// SPDX-License-Identifier: Apache-2.0
#pragma once

// The calls that change what an address of the client means: the bell rings before them
// (host/change.h). Asleep they go straight on.

#include <sys/mman.h>
#include <sys/types.h>

namespace stagetwo::shim {

void* map(void* at, size_t size, int prot, int flags, int fd, off_t offset);
int unmap(void* at, size_t size);
void* remap(void* old_at, size_t old_size, size_t new_size, int flags, void* new_at);
// `key`: of pkey_mprotect, or -1.
int protect(void* at, size_t size, int prot, int key);
int advise(void* at, size_t size, int advice);

}  // namespace stagetwo::shim

// SPDX-License-Identifier: Apache-2.0
#pragma once

// Which addresses are the engine's own: what base/alloc.h has mapped, and the object this code is
// in with its data. A client that hands one of them to a device by mistake, or because it goes
// through all of /proc/self/maps, must not have the page taken from under the engine that would
// have to bring it back.
//
// Locking: a leaf lock of its own. A child of fork starts with an empty list: what it inherited of
// the parent's is read there, and owned by nobody.
// Context: no signal handler.

#include "base/result.h"
#include "base/types.h"

namespace stagetwo {

// mmap for the engine itself, at a place of the kernel's or rather of ours: apart from what the
// kernel gives to the client. A client that has unmapped a part of its memory may map it again with
// MAP_FIXED whenever it likes, for it knows what its own threads do; nothing of ours must have come
// there meanwhile. Not noted. Never locked, whatever the client has said of what will be mapped: it
// has holes that mean something, and its pages are given back one by one.
[[nodiscard]] Result<void*> map_apart(size_t bytes, int prot, int flags, int fd = -1,
                                      long offset = 0);
// Is it such a place? No other mapping of ours comes there for long after this one has gone.
[[nodiscard]] bool is_apart(const void* at);
// As map_apart() for a second mapping of pages of a shared mapping, with its rights. Noted as long
// as it is there. Failure: that of mremap(2) of no bytes: EINVAL for private memory and for huge
// pages, EFAULT, ENOMEM.
[[nodiscard]] Result<void*> map_again_apart(const void* page, size_t bytes);
void unmap_again(void* at, size_t bytes);

// False: no memory to remember it.
[[nodiscard]] bool note_own_memory(const void* at, size_t bytes);
void forget_own_memory(const void* at, size_t bytes);

struct OwnMemory {
  u64 start = 0;
  u64 end = 0;  // both 0: none
};
// The first part of [start, end) that is the engine's.
[[nodiscard]] OwnMemory own_memory_in(u64 start, u64 end);
// Raised with every part that is not the engine's any more: what somebody saw mapped before, and
// what own_memory_in() says after, may be two things.
[[nodiscard]] u32 own_memory_forgotten();

}  // namespace stagetwo

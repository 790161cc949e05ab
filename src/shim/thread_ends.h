// SPDX-License-Identifier: Apache-2.0
#pragma once

// The end of a thread. The kernel then reads the thread's robust list, marks the locks on it,
// clears the word of set_tid_address(2) and wakes who waits; a page that is absent it does not wait
// for (kernel file: fs/userfaultfd.c, PF_EXITING), and the lock stays locked for ever. So the pages
// come back first and stay until the thread is gone (host/held_pages.h).
//
// Seen: libc's threads, where libc gives back their stack; syscall(SYS_exit). The others are a row
// of docs/what-is-not-seen.md.
//
// Context: the thread, last of all: no code of the client's runs in it any more. errno is kept. No
// page ever taken: one relaxed load.

#include "base/types.h"

namespace stagetwo::shim {

void before_thread_ends();

// Is this how libc gives back the unused part of the stack of a thread that ends? It lies below the
// calling frame, and nearly reaches it.
[[nodiscard]] bool gives_own_stack_back(u64 at, u64 size, int advice);

}  // namespace stagetwo::shim

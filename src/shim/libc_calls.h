// SPDX-License-Identifier: Apache-2.0
#pragma once

// What libc does to the address space by itself: free() of a large block, realloc, the trimming of
// an arena, the release of a thread's stack; and the dynamic loader: dlopen, dlclose. They call
// their own functions inside, where nobody can stand in front of them, so that the functions
// themselves are changed, once, when the engine wakes: the instruction before their system call
// becomes a jump to a gate of ours, which takes the way of the interposed function and comes back
// behind the system call (docs/decisions/0014).
//
// I1: a function is changed only when every one of its instructions is known
//     (base/arch/syscall_site.h); else it stays as it is and the guarded access is what is left.
// I2: no thread sees half of a change, and no page is writable and executable at once: a copy of
//     the page takes the page's place.
// I3: registers, stack, red zone and errno are as after the system call itself.
//
// Context: see_libc_calls() once, while waking, before the engine counts as awake. The gates run
// wherever libc calls the function: with locks of its allocator held, in a thread that ends, in a
// child of vfork. So a change waits for nobody who could want memory of libc's.

#include "base/text.h"

namespace stagetwo::shim {

// Changes what can be changed. `--libc=leave` leaves all of it.
void see_libc_calls();

// "seen: munmap …; not seen: brk (unknown instructions)", for the user.
void append_libc_calls(FixedString<512>& line);

}  // namespace stagetwo::shim

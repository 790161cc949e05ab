// SPDX-License-Identifier: Apache-2.0
#pragma once

// libc counts its threads, and whoever is the last of them to end calls exit(0): so a process ends
// whose first thread has left by pthread_exit(). A thread of the engine's is made as any other and
// is counted with them; it serves the others and ends after them, so that none would ever be the
// last. It is therefore taken out of the count for as long as it runs.
//
// Invariants: I1  the count is that of the client's threads, but for moments in which it is larger.
//             I2  it comes to nothing by a client's thread: what ends the process is not the
//                 engine's. But for one that ends itself at the moment in which the last of the
//                 client's does: then it is the last, and calls exit().
// Differs from a count of our own: threads that libc makes inside (timers, getaddrinfo_a,
// thrd_create) and those from before the library was loaded are in libc's.
// Where libc does not show its count (it does, for debuggers) nothing is changed.
// Locking: none; a word of libc's, changed as libc changes it.

#include "base/types.h"

namespace stagetwo::host {

// Where the count is, or null. Context: once, before the first thread of the engine's.
void set_thread_count(u32* count);

// Takes a thread out that has just been made. Context: the client's thread that made it, which
// therefore has not ended; no signal handler may run in between.
void leave_thread_count();

// Puts this one back, which then returns to libc. While a process ends nobody is in the count any
// more: then it does not come back.
void rejoin_thread_count();

}  // namespace stagetwo::host

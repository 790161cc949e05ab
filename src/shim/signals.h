// SPDX-License-Identifier: Apache-2.0
#pragma once

// The client's signal handlers once the engine is awake. Every handler the
// client has or installs is kept in a table and the kernel is given a wrapper with the same mask
// and flags: in the engine it records (host/run_section.h), elsewhere it calls the client's handler
// with the kernel's own arguments. SIG_DFL and SIG_IGN stay with the kernel. SIGSEGV and SIGBUS
// belong to host/backstop.h, which chains in the same way.
//
// I1: the client reads back exactly what it set.
// Locking: one record per signal is read without a lock by handlers and written under a lock with
// all signals blocked.

#include <signal.h>
#include <sys/types.h>

namespace stagetwo::shim {

// Called once, while waking.
void wrap_signals();
void signals_after_fork_child();

// libc's functions, on top of the table. Pre: awake.
int set_action(int signal, const struct sigaction* set, struct sigaction* old);

// The system call, whose struct is the kernel's own; the size is of its signal set.
long raw_set_action(int signal, const void* set, void* old, size_t size);

}  // namespace stagetwo::shim

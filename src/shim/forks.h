// SPDX-License-Identifier: Apache-2.0
#pragma once

// How children are made. libc's fork() runs handlers, ours innermost; of the other ways (`_Fork`,
// clone without shared memory, the system calls by number) it runs none. The engine does before and
// after all of them the same (shim/engine.h): absent pages are there, and the child owns nothing of
// ours.
// A child that shares the memory (vfork, a thread) is none of these.
//
// Context: the client's thread, signal handlers included. errno is libc's.

#include <sys/types.h>

namespace stagetwo::shim {

using ForkHandler = void (*)();
// Idempotent. False: no memory.
bool see_forks();
// What pthread_atfork calls.
int register_fork_handlers(ForkHandler before, ForkHandler parent, ForkHandler child,
                           void* library);

pid_t fork_without_handlers();
int clone_process(int (*run)(void*), void* stack, int flags, void* argument, pid_t* parent_id,
                  void* tls, pid_t* child_id);

// By number. False: no new process of its own memory, or one on a stack of its own; the call goes
// on.
bool forks_by_number(long number, long a, long b);
long fork_by_number(long number, long a, long b, long c, long d, long e);

}  // namespace stagetwo::shim

// SPDX-License-Identifier: Apache-2.0
#pragma once

// Asleep until an emulated device is opened, a descriptor of ours comes from another process
// (shim/received.h) or, under a limit, memory is made that a guest may be given
// (shim/shared_files.h): every entry point looks at one word and goes on to the next function.
// Waking reads and wraps the client's signal handlers, puts the backstop before
// SIGSEGV and SIGBUS, tells the rooms about fork, and reads the options; it happens once.
//
// I1: asleep, nothing is allocated, no thread is started, no handler is touched, nothing is
// printed.

#include <errno.h>
#include <sys/stat.h>

#include "base/result.h"
#include "host/descriptor.h"

namespace stagetwo::shim {

// One relaxed load.
bool awake();
// Idempotent; a second thread waits for the first. Failure: what kept the engine from starting.
Result<void> wake();

// Around a fork while the engine sleeps. False: it is awake, by now, and nothing has begun; else no
// thread wakes it until the end, in both processes.
bool begin_sleeping_fork();
void end_sleeping_fork(bool in_child);
// Around every call that makes a process with a copy of this one's memory; libc's fork calls them
// by itself. Pre: awake. A child has no page owners: what they hold comes back first, and what
// another thread of the parent was in the middle of is gone.
void before_fork();
void after_fork_in_parent();
void after_fork_in_child();

// Is this a child that uses its parent's memory until it is another program (vfork, posix_spawn)?
// What it leaves there stays. Pre: awake.
bool in_borrowed_memory();

// Could `fd` be one of ours? One fstat, no reference taken; *behind is filled in when it could.
bool may_be_ours(int fd, struct ::stat* behind);
// Does the number stand for the file that it was `seen` as? Zeroes: it was not open.
bool stands_behind(int fd, const struct ::stat& seen);

// Is it a pidfd of this process? Its entry in /proc says which process it names.
bool names_this_process(int pidfd);

// What a libc function returns for it, with errno set.
inline long as_libc(long answer) {
  if (answer >= 0) return answer;
  errno = static_cast<int>(-answer);
  return -1;
}
template <typename T>
long as_libc(const Result<T>& result) {
  if constexpr (std::is_void_v<T>) {
    return result ? 0 : as_libc(-static_cast<long>(to_int(result.error())));
  } else {
    return result ? static_cast<long>(*result)
                  : as_libc(-static_cast<long>(to_int(result.error())));
  }
}

}  // namespace stagetwo::shim

// SPDX-License-Identifier: Apache-2.0
#include "shim/forks.h"

#include <errno.h>
#include <linux/sched.h>
#include <sys/syscall.h>

#include "host/access.h"
#include "host/run_section.h"
#include "shim/engine.h"
#include "shim/next.h"
#include "sync/mutex.h"

extern "C" {
extern void* __dso_handle;  // the linker's name for this object
}

namespace stagetwo::shim {
namespace {

void end(bool asleep, bool in_child) {
  if (asleep) {
    end_sleeping_fork(in_child);
  } else if (in_child) {
    after_fork_in_child();
  } else {
    after_fork_in_parent();
  }
}

// `call` returns in both processes.
template <typename F>
long around(F&& call) {
  const bool asleep = begin_sleeping_fork();
  if (!asleep) before_fork();
  const long child = call();
  const int error = errno;
  end(asleep, child == 0);
  errno = error;
  return child;
}

// How this thread's fork began.
thread_local bool asleep = false;

void prepare() {
  asleep = begin_sleeping_fork();
  if (!asleep) before_fork();
}
void in_parent() {
  end(asleep, false);
}
void in_child() {
  end(asleep, true);
}

sync::Mutex registering{sync::Rank::kLeaf};
bool registered TA_GUARDED(registering) = false;

// What the child runs on its new stack. It has a copy of the parent's, where this stands.
struct Start {
  int (*run)(void*);
  void* argument;
  bool asleep;
};
int start_child(void* given) {
  const auto* start = static_cast<const Start*>(given);
  end(start->asleep, true);
  return start->run(start->argument);
}

}  // namespace

// Who registers first is prepared last and is back first. Our handlers have to be that one: what a
// program's own do with its memory before the fork, they may give to a device, and a child has no
// device. So ours go in front of the first handler of anybody, awake or not.
bool see_forks() {
  const sync::MutexGuard guard(registering);
  if (!registered) {
    registered = next::__register_atfork(prepare, in_parent, in_child, &__dso_handle) == 0;
  }
  return registered;
}

int register_fork_handlers(ForkHandler before, ForkHandler parent, ForkHandler child,
                           void* library) {
  if (!see_forks()) return ENOMEM;
  return next::__register_atfork(before, parent, child, library);
}

pid_t fork_without_handlers() {
  return static_cast<pid_t>(around([] { return long{next::_Fork()}; }));
}

int clone_process(int (*run)(void*), void* stack, int flags, void* argument, pid_t* parent_id,
                  void* tls, pid_t* child_id) {
  if ((flags & CLONE_VM) != 0 || run == nullptr) {
    return next::clone(run, stack, flags, argument, parent_id, tls, child_id);
  }
  Start start{run, argument, begin_sleeping_fork()};
  if (!start.asleep) before_fork();
  const int child = next::clone(start_child, stack, flags, &start, parent_id, tls, child_id);
  const int error = errno;
  end(start.asleep, false);
  errno = error;
  return child;
}

bool forks_by_number(long number, long a, long b) {
  if (number == SYS_fork) return true;
  if (number == SYS_clone) return (a & CLONE_VM) == 0 && b == 0;
  if (!awake() || number != SYS_clone3 || b < static_cast<long>(CLONE_ARGS_SIZE_VER0)) return false;
  struct {
    u64 flags, pidfd, child_id, parent_id, exit_signal, stack;
  } how{};
  host::EngineSection section(host::Touches::kClientMemory);
  const bool read = host::read_struct(Hva(static_cast<u64>(a)), &how);
  section.leave();
  return read && (how.flags & CLONE_VM) == 0 && how.stack == 0;
}

long fork_by_number(long number, long a, long b, long c, long d, long e) {
  return around([&] { return next::syscall(number, a, b, c, d, e, 0); });
}

}  // namespace stagetwo::shim

// SPDX-License-Identifier: Apache-2.0
#pragma once

// What catches a guarded access that faults: the handler of SIGSEGV and SIGBUS. A fault at an
// instruction of the fault table (base/arch/guarded.h), or inside a registered run-time range, goes
// on at its fix-up; everything else belongs to the client and reaches it as if we were not here.
//
// Invariants: I1  a fault that is ours is never seen by the client, one that is not always is: same
//                 siginfo, same context, same mask, same stack (our handler is installed with the
//                 mask and the stack flag of the client's action).
//             I2  the handler takes no lock, allocates nothing, and touches no client memory.
// Locking: `install` and `exchange_client_action` serialise themselves; `handle` takes nothing.
// Lifetime: once installed, until the process ends; a child of fork keeps it.

#include <signal.h>

#include <optional>

#include "addr/addr.h"
#include "base/result.h"
#include "base/types.h"

namespace stagetwo::host::backstop {

// Reads the client's actions and puts ours before them. Idempotent. Called at the first open of an
// emulated path; until then the client's actions are untouched. Failure: the kernel's errno.
[[nodiscard]] Result<void> install();

// Has install() succeeded? A relaxed load.
[[nodiscard]] bool installed();

// What the wrapped sigaction() of the client does for SIGSEGV and SIGBUS: remembers `set` (if not
// null) as the client's action and reports the previous one in *old (if not null).
// Failure: EINVAL for another signal or before install(); the kernel's errno.
[[nodiscard]] Result<void> exchange_client_action(int signal, const struct sigaction* set,
                                                  struct sigaction* old);

// Tries the fix-up. True: the context was changed, return from the signal. Async-signal-safe.
[[nodiscard]] bool handle(int signal, const siginfo_t* info, void* ucontext);

// Guarded code that was made at run time: a fault at `pc` in [start, start + size) goes on at
// fixup(pc), or at no fix-up if that is 0. Failure: ENOSPC when all places are taken.
using FixupOf = u64 (*)(u64 pc);
struct CodeRange {
  u64 start = 0;
  u64 size = 0;
  FixupOf fixup = nullptr;
};
inline constexpr unsigned kMaxCodeRanges = 16;
[[nodiscard]] Result<void> add_code_range(const CodeRange& range);
// Post: no later fault uses the range. Pre: no thread executes in it.
void remove_code_range(u64 start);

// A store of the client's to memory it may read and not write. True: it was answered otherwise, and
// `ucontext` is the processor after it. Called in a section of the engine, with its signal handled
// and no other fault's held back; one for the process, for ever.
using StoreTrap = bool (*)(Hva at, void* ucontext);
void set_store_trap(StoreTrap trap);

// The page of this thread's last fault if it was hardware poison; asking forgets it.
[[nodiscard]] std::optional<Hva> take_poison();

// In a child of fork: a lock that another thread of the parent held is free.
void after_fork_child();

// Faults fixed up so far in this process.
[[nodiscard]] u64 fixed_count();

}  // namespace stagetwo::host::backstop

// SPDX-License-Identifier: Apache-2.0
#pragma once

// Passing a thread that does not run: accesses that the kernel takes back (base/arch/restartable.h)
// and the barrier that makes it do so.
//
//   owner                                          invalidator
//   section = restartable_section(); line.let_go() asked = 1;
//   access: [nothing asked; access]                restart_barrier();
//   line.hold(): says so; is something asked?      has it let go? passed
//
// Post of the barrier: an access that looked at its line before the barrier began has committed
// or never will; one that looks later sees what was stored before the barrier. The same for every
// other word: to a thread the barrier is a full fence at some moment between begin and return.
//
// Analogue: membarrier(PRIVATE_EXPEDITED_RSEQ). Where libc did not register the thread (glibc
// before 2.35, glibc.pthread.rseq=0, a client with a registration of its own), the kernel refuses
// the barrier, or the target is built for ThreadSanitizer: no section, no barrier; who waits,
// polls. Locking: none. Nothing can fail but as said. In a scheduled run the scheduler is the
// barrier.

#include "base/types.h"

namespace stagetwo::sync {

// The calling thread's word for arch::Restart::section; null: its accesses cannot be taken back.
// The first call registers the process for the barrier.
[[nodiscard]] u64* restartable_section();
// The thread names no section any more: before the code that has the sections may be unmapped.
void forget_restartable_section(u64* section);

// Context: anything but a restartable access; a system call, not longer than the barrier itself.
// Several callers share one barrier. False: there is none.
[[nodiscard]] bool restart_barrier();

struct RestartCounts {
  u64 issued = 0;  // barriers the kernel made
  u64 shared = 0;  // calls that somebody else's barrier served
};
[[nodiscard]] RestartCounts restart_counts();

// For tests: as on a machine without them.
class NoRestartableSections {
 public:
  NoRestartableSections();
  ~NoRestartableSections();
  NoRestartableSections(const NoRestartableSections&) = delete;
  NoRestartableSections& operator=(const NoRestartableSections&) = delete;
};

}  // namespace stagetwo::sync

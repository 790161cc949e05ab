// SPDX-License-Identifier: Apache-2.0
#pragma once

// Where userfaultfd is denied, a touch of a hidden page is a SIGSEGV (host/page_owner.h), and the
// kernel ends a thread that blocks it. So it is never blocked there: in the masks the kernel has,
// another signal's bit says that the client blocks SIGSEGV. Being a bit of the same mask, it
// follows siglongjmp, sigreturn and inheritance by itself, and the client is shown SIGSEGV.
//
//   client's mask      kernel's mask
//   SIGSEGV            SIGSTKFLT, which Linux never sends
//   SIGSTKFLT          what SIGSEGV is: the client does not have it apart
//
// I1: a fault of the client's own in a thread that blocks SIGSEGV ends the process, as the kernel
//     would; one that is sent to it waits, really blocked, until it is unblocked or fetched.
// Differs from the kernel: a child of posix_spawn inherits the kernel's mask.
//
// Also the stacks on which the kernel must be able to put a signal: nothing of them is hidden so.
//
// Context: any thread; the masks' functions are async-signal-safe.

#include <signal.h>

#include "addr/addr.h"
#include "base/types.h"

namespace stagetwo::host {

// Are touches signals here? Decided once, while waking: opens userfaultfd, which a filter of the
// program's may deny later.
void choose_how_touches_come();
[[nodiscard]] bool touches_are_signals();

using SignalMask = u64;
inline constexpr SignalMask kFaultBit = SignalMask{1} << (SIGSEGV - 1);
inline constexpr SignalMask kStandInBit = SignalMask{1} << (SIGSTKFLT - 1);

[[nodiscard]] constexpr SignalMask mask_in_kernel(SignalMask clients) {
  const SignalMask others = clients & ~(kFaultBit | kStandInBit);
  return (clients & kFaultBit) != 0 ? others | kStandInBit : others;
}
[[nodiscard]] constexpr SignalMask mask_of_client(SignalMask kernels) {
  const SignalMask others = kernels & ~(kFaultBit | kStandInBit);
  const bool blocks = (kernels & (kFaultBit | kStandInBit)) != 0;
  return blocks ? others | kFaultBit | kStandInBit : others;
}

// Of the calling thread, until it ends; `kept`: libc keeps it then, for the next thread.
void note_stack(HvaRange stack, bool kept);
// Of threads that have ended: it is unmapped, or other memory.
void forget_stacks(HvaRange range);
void note_alternate_stack(HvaRange stack);
// What the kernel writes whenever it lets the calling thread run (restartable sequences), and our
// handler before it can resolve anything: libc's record of the thread, and our variables of it.
[[nodiscard]] HvaRange data_of_thread();
// What of the calling thread's own data (TLS) no touch of the kernel's may find hidden: it writes
// there before the thread runs on, and ends the process if it cannot. Part of a stack as far as
// is_stack() is concerned.
void note_thread_data();
// Between these a thread is being made whose stack nobody knows yet.
void begin_thread();
void end_thread();

// Where touches are signals: would every thread survive one? Waits a little for those that start or
// are in the middle of something, and learns the stacks of those it does not know. Context: no
// lock.
[[nodiscard]] bool may_hide_pages();
// Is the page part of a stack that is known?
[[nodiscard]] bool is_stack(Hva page);
// Is the page part of the calling thread's own data?
[[nodiscard]] bool is_own_data(Hva page);
// Data of libc and of the loader, which the engine runs under its locks and threads before they
// have a handler: no owner takes it. Noted while waking.
void note_library_data();
[[nodiscard]] bool is_library_data(Hva page);
// What of `range` is the calling thread's own stack. However a touch of it came, nobody could
// answer it while this thread is in the engine.
[[nodiscard]] HvaRange own_stack_in(HvaRange range);

}  // namespace stagetwo::host

// SPDX-License-Identifier: Apache-2.0
#pragma once

// One userfaultfd of this process: who touches a missing or write-protected page of a watched span
// waits until we have filled it. Thin and typed; the protocol is in host/page_owner.h.
// Analogue: userfaultfd(2). Own definitions, because Debian 12's headers know no UFFDIO_MOVE.
//
// It sees user-mode touches and those of system calls. Where the machine's administrator allows
// only the former (vm.unprivileged_userfaultfd = 0 and no access to /dev/userfaultfd), a system
// call on a missing page answers EFAULT: `serves_kernel()`.
//
// Context: any thread; nothing allocates. Failure: the kernel's errno, unchanged.
// Lifetime: opened at the first use, closed by nobody; a child of fork opens its own.

#include "addr/addr.h"
#include "base/result.h"
#include "base/types.h"

namespace stagetwo::host::userfault {

// Opens it. Idempotent. Failure: EPERM, ENOSYS and whatever a filter of the client's says.
[[nodiscard]] Result<void> open();
// Does it also hold back system calls? Pre: open.
[[nodiscard]] bool serves_kernel();

// Failure of watch(): EBUSY (the client's own userfaultfd), EINVAL (a kind of memory it refuses).
[[nodiscard]] Result<void> watch(HvaRange range);             // missing and write-protected
[[nodiscard]] Result<void> watch_protection(HvaRange range);  // write-protected only
// Of whatever is mapped there now.
void forget(HvaRange range);
// Private memory there belongs to the same pages as its neighbours of the same kind from now on, as
// after its first store: what a border of ours divides can become one mapping again. No page comes.
// Since Linux 6.8; before, nothing happens.
void bind(Hva page);
// The same for a piece beside memory that is watched.
void bind_beside(HvaRange piece);
// Does any userfaultfd watch the page's mapping? Changes nothing. Where the kernel cannot say
// (before Linux 5.13) it does.
[[nodiscard]] bool is_watched(Hva page);

// Is the page's mapping perhaps watched by the client? As is_watched() where it has one
// (note_client(): host/userfault_requests.h).
[[nodiscard]] bool client_watches(Hva page);

// All of these wake nobody: whoever waits for the page goes on with wake(). The first three fill a
// missing page.
//
// One page: from `from`, which is empty then, to `to`, which was. ENOENT: `from` is empty or `to`
// is not mapped; EEXIST: `to` is not, and `from` is still there; EBUSY, EINVAL: this page or these
// mappings cannot.
[[nodiscard]] Result<void> move(Hva to, Hva from);
// The same for `pages` neighbours, holes in the source among them; answers how many, from the first
// one on, are where they belong: the others have not moved. Less than all says nothing of why.
[[nodiscard]] u64 move_run(Hva to, Hva from, u64 pages);
// EEXIST: it is not missing; ENOENT: not watched.
[[nodiscard]] Result<void> copy(Hva to, const void* bytes);
// Neighbours; answers how many came, the first ones.
[[nodiscard]] u64 copy_run(Hva to, const void* bytes, u64 pages);
[[nodiscard]] Result<void> zero(Hva to);
// Every touch of a missing page is SIGBUS from now on, EFAULT for a system call (Linux 6.6).
[[nodiscard]] Result<void> poison(Hva page);
[[nodiscard]] Result<void> write_protect(HvaRange pages, bool on);
// Whoever waits for a page of the range touches it again.
void wake(HvaRange range);

// Waits for touches. Answers how many stand in `out`.
struct Touch {
  Hva page;
  bool write_protected;  // else missing
};
inline constexpr unsigned kMaxTouches = 16;
[[nodiscard]] unsigned wait_for_touches(Touch* out);

// For tests: behave as where it is denied.
void debug_deny(bool deny);
// The same where it is for user mode only. Pre: not open.
void debug_user_mode_only();

}  // namespace stagetwo::host::userfault

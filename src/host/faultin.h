// SPDX-License-Identifier: Apache-2.0
#pragma once

// Makes one page of the client present before anybody holds a translation to it, and answers with
// an errno instead of a signal. Analogue: hva_to_pfn / get_user_pages (kernel file: kvm_main.c).
// Differs: nothing is pinned and nothing is returned but the answer; the translation is the address
// itself.
//
// Context: outside every read section and with no ack line RUNNING: it may block for as long as the
// client's own userfaultfd resolver or file system takes. No lock held.

#include "addr/addr.h"
#include "base/result.h"
#include "base/types.h"

namespace stagetwo::host {

// Who is asked first. kKernel: MADV_POPULATE, an errno and never a signal. kTouch: the processor,
// by a guarded access; a page that is there costs no system call then, a new one costs what the
// host's own first touch costs, and only a refusal is dearer (a signal, and then the kernel is
// asked for its errno). Pre of kTouch: SIGSEGV and SIGBUS are not blocked (host/run_section.h).
enum class Ask : u8 { kKernel, kTouch };

// Post: on success the page of `at` was present and permitted `access` at some moment during the
// call. Who is touched first is touched at `at`: give the address that is wanted.
// Failure: EFAULT (no mapping, no permission, beyond the end of a file), EHWPOISON. The kernel's
// own answers of MADV_POPULATE (ENOMEM, EINVAL, EFAULT) are all EFAULT here, as KVM's are.
[[nodiscard]] Result<void> faultin(Hva at, Access access, Ask first = Ask::kKernel);

// Is MADV_POPULATE_READ/WRITE there (Linux 5.14)? Without it a guarded touch stands in.
[[nodiscard]] bool has_populate();

// For tests: signals that answered a question of faultin's own, so that who counts accesses which
// came too late (host/backstop.h) can tell them apart.
[[nodiscard]] u64 debug_refused_touches();
// For tests: behave as on a kernel without MADV_POPULATE.
void debug_without_populate(bool without);

}  // namespace stagetwo::host

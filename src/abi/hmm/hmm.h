// SPDX-License-Identifier: Apache-2.0
#pragma once

// The façade of the room: /dev/hmm_dmirror0 to 3, the kernel's HMM test device.
// Linux analogue: dmirror_fops (kernel file: lib/test_hmm.c). Units 2 and 3 (device-coherent) are
// there when the module was told where their memory is: both of spm_addr_dev0 and spm_addr_dev1 are
// given and not 0. Without, their names are nobody's and open() says ENOENT, as the kernel does.
//
// The first check that fails answers, in the kernel's order; outputs are written on success only.

#include <string_view>

#include "base/result.h"
#include "base/types.h"

namespace stagetwo::abi_hmm {

// The kernel takes a free number; this is one of those it gives out at run time.
inline constexpr u32 kMajor = 240;

// A parameter of the module test_hmm, as on the kernel's command line. The addresses name memory of
// the emulated machine: any that are not 0 will do. Failure: ENOENT (no such parameter), EINVAL,
// ERANGE. Context: host::SessionLock held.
[[nodiscard]] Result<void> set_parameter(std::string_view name, std::string_view value);
[[nodiscard]] bool has_unit(u32 unit);

// open("/dev/hmm_dmirror<unit>", flags). Pre: has_unit(). Failure: EMFILE, ENFILE, ENOMEM.
[[nodiscard]] Result<int> open_device(u32 unit, int flags);

// open("/sys/kernel/debug/gup_test", flags): the kernel's driver for page references, which the HMM
// suite uses to bring pages back by pinning them (kernel file: mm/gup_test.c).
[[nodiscard]] Result<int> open_gup_test(int flags);

// Around a fork of the client (pthread_atfork).
void before_fork();
void after_fork_parent();
void after_fork_child();

}  // namespace stagetwo::abi_hmm

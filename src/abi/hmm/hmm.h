// SPDX-License-Identifier: Apache-2.0
#pragma once

// The façade of the room: /dev/hmm_dmirror0 and 1, the kernel's HMM test device.
// Linux analogue: dmirror_fops (kernel file: lib/test_hmm.c). Units 2 and 3 (device-coherent) exist
// in the kernel only when the module was given physical memory; there is none here, so their names
// are nobody's and open() says ENOENT, as the kernel does without the parameter.
//
// The first check that fails answers, in the kernel's order; outputs are written on success only.

#include "base/result.h"
#include "base/types.h"

namespace stagetwo::abi_hmm {

// The kernel takes a free number; this is one of those it gives out at run time.
inline constexpr u32 kMajor = 240;

// open("/dev/hmm_dmirror<unit>", flags). Failure: EMFILE, ENFILE, ENOMEM.
[[nodiscard]] Result<int> open_device(u32 unit, int flags);

// open("/sys/kernel/debug/gup_test", flags): the kernel's driver for page references, which the HMM
// suite uses to bring pages back by pinning them (kernel file: mm/gup_test.c).
[[nodiscard]] Result<int> open_gup_test(int flags);

}  // namespace stagetwo::abi_hmm

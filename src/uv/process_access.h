// SPDX-License-Identifier: Apache-2.0
#pragma once

// The process's pages whatever it may do there itself (mprotect), and without a signal: as a
// debugger reads and writes. Analogue: FOLL_FORCE (kernel file: mm/gup.c).
// Context: any thread; may sleep until an absent page is back.

#include "addr/addr.h"
#include "base/types.h"

namespace stagetwo::uv {

// False: nothing is mapped there.
[[nodiscard]] bool read_anyhow(Hva at, void* to, u64 bytes);
// The page at `at` is zeros. False: nothing is mapped there, or a file nobody here may write to.
[[nodiscard]] bool wipe_anyhow(Hva at);

}  // namespace stagetwo::uv

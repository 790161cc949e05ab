// SPDX-License-Identifier: Apache-2.0
#pragma once

// Words of shared memory whose other accesses are plain ones, which a reader is told of by other
// means than an order: nothing here is a schedule point.

#include "base/types.h"

namespace stagetwo {

// At once: whoever marks the word meanwhile finds or leaves it whole. Pre: both are aligned.
inline void copy_word(u64* to, const u64* from) {
  __atomic_store_n(to, __atomic_load_n(from, __ATOMIC_RELAXED), __ATOMIC_RELAXED);
}

// What the program does before stands before what it does behind, to who looks when it is gone.
inline void in_program_order() {
  __atomic_signal_fence(__ATOMIC_SEQ_CST);
}

}  // namespace stagetwo

// SPDX-License-Identifier: Apache-2.0
#pragma once

// One page of this process that a child of fork finds empty (MADV_WIPEONFORK). It holds what must
// not be inherited in the middle of an operation: the arena's lock and free lists, and the stamp
// that says "this memory belongs to the process that wrote it".
//
// Mapped at first use; where the kernel refuses the wipe, a child inherits the page as it is, and
// process_stamp() then compares the pid instead.
//
// Lifetime: until the process ends. Context: any.

#include "base/types.h"

namespace stagetwo {

inline constexpr size_t kProcessPageWords = 512;

// The page as words, all zero in a fresh process and in a child. nullptr: no memory for it.
// Words [0, 8) belong to process_page.cc, the next ones to own_memory.cc, the rest to alloc.cc.
u64* process_page();
inline constexpr size_t kOwnMemoryWord = 8;
inline constexpr size_t kOwnMemoryWords = 8;

// A number that is not 0, constant in one process, and different in a child of it.
u32 process_stamp();

}  // namespace stagetwo

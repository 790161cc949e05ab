// SPDX-License-Identifier: Apache-2.0
#pragma once

// Pages at an address that is a multiple of more than a page, for structures that find their head
// by arithmetic. A part of base/alloc.h, whose invariants and context hold: one failpoint, counted
// in alloc_use(), given back by unmap_pages().

#include "base/alloc.h"

namespace stagetwo {

// Zeroed private pages at a multiple of `align`. Pre: `align` is a power of two of pages; `bytes`
// is a multiple of a page. Failure: ENOMEM.
[[nodiscard]] Result<void*> map_aligned_pages(size_t bytes, size_t align, const char* site);

}  // namespace stagetwo

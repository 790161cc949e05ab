// SPDX-License-Identifier: Apache-2.0
#pragma once

// How large is the page the kernel has behind an address: may a secondary MMU borrow it with one
// large entry? Analogue: host_pfn_mapping_level (kernel file: mmu.c). Differs: the kernel walks the
// process's page table, we ask it.
//
//   hugetlb stand-in           its own record, after its page was made present
//   transparent huge page      PAGEMAP_SCAN (Linux 6.7) over the 2 MiB around the address
//   hugetlb page               the same; its size from PROCMAP_QUERY (Linux 6.11)
//   before Linux 6.7           hugetlb mappings as smaps shows them; transparent ones are unknown
//
// I1: the answer was true at some moment during the call; the caller's invalidation snapshot, taken
//     before, tells whether it still is. Splitting a transparent page moves no address, so a large
//     entry over it stays right, only larger than the kernel's.
// I2: unknown is 1.
// Context: no lock, no section; may sleep. One question to the kernel where the pages are small,
// two for huge ones, each with an open and a close (2 us); the old way reads a text.

#include "addr/addr.h"
#include "base/types.h"

namespace stagetwo::host {

// Levels as pt counts them: 1 is 4 KiB, 2 is 2 MiB, 3 is 1 GiB. Pre: `page` is present.
[[nodiscard]] unsigned mapping_level(Hva page);

// For tests: behave as a kernel without the ioctl. Asked for anew with `false`.
void debug_without_pagemap_scan(bool without);
void debug_without_procmap_query(bool without);

}  // namespace stagetwo::host

// SPDX-License-Identifier: Apache-2.0
#pragma once

// What the process's own page table says: which mapping covers an address and with what rights,
// and what stands behind each page, without faulting anything in. Analogue: vma_lookup() and the
// page-table walk of hmm_range_fault() without faults (kernel file: mm/hmm.c). Differs: the kernel
// is asked (PROCMAP_QUERY or the text of maps; pagemap and PAGEMAP_SCAN), and the write bit of an
// entry, which it tells nobody, is concluded.
//
// I1: an answer was true at some moment during the call. Whoever acts on it takes the snapshot of
//     its gate first, as for every lookup.
// I2: rights are those the client asked for: a page that an owner hides behind PROT_NONE
//     (host/page_owner.h) answers with the rights it had.
//
// Context: no section; may sleep. Allocates nothing.

#include <optional>

#include "addr/addr.h"
#include "base/result.h"
#include "base/types.h"

namespace stagetwo::host {

// What the kernel shows of requests that it is at work for: the queues of an io_uring, the ended
// ones of an io_context.
enum class KernelRing : u8 { kNone, kIoUring, kIoContext };

struct Mapping {
  HvaRange range;
  Prot prot;
  bool shared = false;
  bool file_backed = false;   // shared anonymous memory is a file's, too
  u64 page_size = kPageSize;  // of the kind of memory: more for hugetlb only
  // Of a file's mapping: which file (the kernel's inner numbers: st_dev and st_ino of it), and what
  // stands at range.start().
  u64 device = 0;
  u64 inode = 0;
  u64 offset = 0;
  // For is_special() and ring_at(): told by the text of maps alone.
  bool special = false;
  KernelRing ring = KernelRing::kNone;
};

// The mapping that covers `at`, cut to the pages with the same answer. Failure: EFAULT (none), or
// what kept the kernel from answering.
[[nodiscard]] Result<Mapping> mapping_at(Hva at);
// The same without I2: as the kernel shows it to the client.
[[nodiscard]] Result<Mapping> shown_mapping_at(Hva at);
// The first mapping that ends above `at`, as the kernel shows it. Failure: as below.
[[nodiscard]] Result<Mapping> shown_mapping_from(Hva at);
// Of `bytes` from `at` on, those in its first one; a page where there is none.
[[nodiscard]] u64 in_one_mapping(Hva at, u64 bytes);
// The first mapping of a file that ends above `at`, as the kernel shows it; of shared ones only, if
// `shared`. Failure: EFAULT (there is none), or what kept the kernel from answering.
[[nodiscard]] Result<Mapping> next_file_mapping(Hva at, bool shared);

// Did the kernel map it for itself (the vdso and its data)? Such pages have no struct page, or may
// not grow, and go nowhere (VM_SPECIAL, kernel file: include/linux/mm.h).
[[nodiscard]] bool is_special(Hva at);
// Is what is mapped at `at` a ring of the kernel's? By the name that the kernel gives it.
[[nodiscard]] KernelRing ring_at(Hva at);

// Is some of it locked in memory? It is if the kernel does not say.
[[nodiscard]] bool is_locked(HvaRange range);

// One entry of the page table. Nothing set: there is no entry.
struct PageState {
  bool present = false;
  bool swapped = false;    // on the swap device, or held back by the kernel's own migration
  bool anonymous = false;  // private to the process: not a page of a file
  bool exclusive = false;  // mapped once
  bool zero = false;       // the page of zeros
  bool huge = false;       // part of a huge entry
  bool guarded = false;    // a store is reported to a userfaultfd

  // Would a store go through without a fault? Pre: it is an entry of `mapping`.
  // Of a shared file mapping whose file system wants to hear of the first store it cannot be known.
  [[nodiscard]] bool writable(const Mapping& mapping) const {
    if (!present || zero || guarded || !mapping.prot.write) return false;
    return mapping.shared || (anonymous && exclusive);
  }
};

// States of the pages from `first` on. Pre: count <= kMaxPageStates. Failure: the kernel's.
// The zero page and huge entries are told apart since Linux 6.7 (PAGEMAP_SCAN); before, a zero
// page looks like one that is shared with a child.
inline constexpr unsigned kMaxPageStates = 64;
[[nodiscard]] Result<void> page_states(Hva first, unsigned count, PageState* out);

// Which of the pages from `first` on have no entry: never touched, or given back. Bit n is set for
// page n, the others are cleared. Pre: count <= kMostMissing. Failure: the kernel's.
inline constexpr unsigned kMostMissing = 512;
[[nodiscard]] Result<void> missing_pages(Hva first, unsigned count, u64* bits);
// Have all of them none? False also where the kernel does not say.
[[nodiscard]] bool is_untouched(HvaRange range);

// How many pages of `range`, from the first on, are there: not the page of zeros, and nobody waits
// for a store to them (userfaultfd). `own`: nor are they a file's. What the mapping permits goes
// through there without bringing anything. One question, whatever the range. 0 also where the
// kernel does not say (before Linux 6.7).
[[nodiscard]] u64 present_pages(HvaRange range, bool own);

// The number of the huge page of memory (2 MiB) that `at` is in, from the range's first one on.
[[nodiscard]] constexpr u64 huge_block(HvaRange range, Hva at) {
  constexpr unsigned kHugeShift = 21;
  return (at.raw() >> kHugeShift) - (range.start().raw() >> kHugeShift);
}

// Which pages of `range` have memory of their own: bit n is set for page n, the others are cleared.
// Of a shared mapping, those of its file that are in memory, whether this process sees them or not;
// else what the page table has, without the page of zeros. Answers how many. Context: above; may
// take a millisecond a gigabyte. Failure: ENOMEM (part of it is not mapped), the kernel's.
[[nodiscard]] Result<u64> resident_pages(HvaRange range, bool shared, u64* bits,
                                         u64* huge = nullptr);

}  // namespace stagetwo::host

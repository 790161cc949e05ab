// SPDX-License-Identifier: Apache-2.0
#pragma once

// How a pinned page keeps its identity: the one table. Not for other rooms: see host/pin.h.
//
// "Home" is the client's address; "alias" a second mapping of the same file's page, the engine's
// own; "store" a place nobody but the engine knows, not inherited by fork.
//
//   kind              reached by   munmap, mapping over, DONTNEED     mremap   rights lost    punch
//   private           home         moved to the store (mremap: same   follows  through        -
//                                  page); copied where it refuses              /proc/self/mem
//   private, locked   home         copied to the store: a move takes  follows  the same       -
//                                  the lock from the mapping
//   private, a file's home         copied to the store: in a mapping  follows  the same copied
//                                  of its own the file's end takes it                (an end)
//   private hugetlb   home         copied to the store                follows  the same       -
//   shared            alias        nothing: the file keeps the page   nothing  nothing copied
//   shared hugetlb    alias, by a  the same                           nothing  nothing copied
//                     second open
//   special (VM_IO, VM_PFNMAP, memfd_secret): EFAULT, as the kernel says
//
// fork: a private page is shared copy-on-write with the child afterwards. Home is an address of the
// parent, so parent and device go on seeing one and the same page, whichever of the two processes
// is given the copy; the kernel copies for the child at once, and nobody can tell. The store is not
// inherited. A shared page is the child's, too, in the kernel as here.
// Transparent huge pages: nothing of the kind is told apart; the kernel splits what a move cuts.
// The hugetlb stand-in is ordinary memory, private or of a memfd. Our own device mappings are
// memfds; their alias is a second open, so that it does not count as the client's (DESIGN.md, rule
// 12). Pages of guest_memfd will be reached through `mem`'s own mapping: an alias.
//
// Tried and rejected: making the client's private memory a shared mapping of a memfd of ours when
// it is pinned (an alias would then do for everything): a child of fork would share what it must
// copy, MADV_DONTNEED would keep what it must forget, and raw system calls would meet both.

#include "host/process_map.h"

namespace stagetwo::host {

enum class PinKind : u8 { kPrivate, kPrivateHuge, kShared, kSharedHuge };

struct PinRules {
  bool has_alias;    // else it is reached at home
  bool second_open;  // the alias cannot be made by mremap, or must not hold the client's file
  bool breaks_cow;   // a page of the file, of zeros or shared with a child is made the client's own
  bool can_move;     // to the store without a copy
};
inline constexpr PinRules kPinRules[] = {
    {.has_alias = false, .second_open = false, .breaks_cow = true, .can_move = true},
    {.has_alias = false, .second_open = false, .breaks_cow = true, .can_move = false},
    {.has_alias = true, .second_open = false, .breaks_cow = false, .can_move = false},
    {.has_alias = true, .second_open = true, .breaks_cow = false, .can_move = false},
};

constexpr PinKind kind_of(const Mapping& mapping) {
  const bool huge = mapping.page_size != kPageSize;
  if (mapping.shared) return huge ? PinKind::kSharedHuge : PinKind::kShared;
  return huge ? PinKind::kPrivateHuge : PinKind::kPrivate;
}
constexpr const PinRules& rules_of(PinKind kind) {
  return kPinRules[static_cast<unsigned>(kind)];
}

// May a page of this mapping be pinned so? Analogue: check_vma_flags() and
// writable_file_mapping_allowed(). Failure: EFAULT.
[[nodiscard]] Result<void> may_pin(const Mapping& mapping, bool write, bool long_term);

}  // namespace stagetwo::host

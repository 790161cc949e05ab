// SPDX-License-Identifier: Apache-2.0
#pragma once

// The part of address_space.h that must be seen by its users: accesses of their own types. Included
// by address_space.h only.

#include "stage2/address_space.h"
#include "sync/futex.h"

namespace stagetwo::stage2 {

template <typename F>
FaultOutcome GuestMemory::with_page(Fault& fault, Mode mode, F&& access) {
  // A change that nobody announced can take the page between the kernel's answer and the access;
  // twice in a row it is not there for us.
  constexpr int kMaxVanished = 2;
  for (int vanished = 0; vanished <= kMaxVanished;) {
    const FaultOutcome outcome = find_resident(fault, mode, vanished == 0);
    if (outcome == FaultOutcome::kRetry && mode == Mode::kMayBlock) {
      sync::yield_thread();  // progress: what we wait for needs nothing of this thread
      continue;
    }
    if (outcome != FaultOutcome::kFixed) return outcome;
    const Memslots::Reader section(slots_);
    if (is_stale(fault)) {
      if (mode == Mode::kMustNotBlock) return FaultOutcome::kRetry;
      continue;
    }
    if (access(fault.page + page_offset(fault.gpa))) {
      if (fault.access == Access::kWrite) Memslots::mark_dirty(*fault.slot, fault.gfn, fault.ring);
      return FaultOutcome::kFixed;
    }
    if (mode == Mode::kMustNotBlock) return FaultOutcome::kRetry;
    ++vanished;
  }
  return FaultOutcome::kToUser;
}

template <typename T>
FaultOutcome GuestMemory::cmpxchg(Gpa at, T* expected, T desired, bool* swapped, DirtyRing* ring,
                                  u32 address_space) {
  Fault fault{.gpa = at, .access = Access::kWrite, .address_space = address_space, .ring = ring};
  return with_page(fault, Mode::kMayBlock,
                   [&](Hva hva) { return host::cmpxchg(hva, expected, desired, swapped); });
}

template <typename T>
FaultOutcome GuestMemory::try_cmpxchg(Gpa at, T* expected, T desired, bool* swapped,
                                      DirtyRing* ring, u32 address_space) {
  Fault fault{.gpa = at, .access = Access::kWrite, .address_space = address_space, .ring = ring};
  return with_page(fault, Mode::kMustNotBlock,
                   [&](Hva hva) { return host::cmpxchg(hva, expected, desired, swapped); });
}

}  // namespace stagetwo::stage2

// SPDX-License-Identifier: Apache-2.0
#include "base/guard.h"
#include "stage2/address_space.h"
#include "stage2/slot_users.h"

// The half of the bell that asks who used a page, and what a VM looks at before each run.
//
// An entry is marked accessed when a translation is filled from it, so a page that a vCPU holds in
// its soft TLB looks old until that is flushed. clear_flush_young waits for the flush. clear_young
// only asks for one, and not for each page: who marks pages one by one would have the vCPUs do
// nothing but flush. What is owed is asked for by the next question a millisecond later, or by the
// vCPU itself before it runs:
//
//   who marks pages idle                    | vCPU
//   A of page 1 off; asks for a flush       | at its next poll: flushes
//   A of page 2 off; owed                   | uses page 2: cached, A stays off
//   ...                                     | KVM_RUN: owed, asks; enters, flushes
//                                           | uses page 2: fills, sets A
//
// So a page may look colder than it is for that long, and never hotter (as the kernel allows).
//
// A guest whose frames are kept is not young and is left alone: which of them it uses is nobody's
// to know (kernel file: book3s_64_mmu_radix.c, kvm_age_radix).

namespace stagetwo::stage2 {

bool GuestMemory::mark_old(HvaRange range) {
  if (private_.keeps_frames()) [[unlikely]]
    return false;
  return age_flush_.mark_old(lines_, [&] {
    return any_user(slots_, range,
                    [this](u32 space, GfnRange frames) { return tdp_.age(space, frames); });
  });
}

bool GuestMemory::clear_young(HvaRange range) {
  const bool young = mark_old(range);
  age_flush_.ask_if_due(lines_);
  return young;
}

bool GuestMemory::clear_flush_young(HvaRange range) {
  const bool young = mark_old(range);
  // A page that somebody else has made old may be in a soft TLB all the same.
  if (ST_GUARD(young_flush, young || age_flush_.outstanding(lines_))) {
    age_flush_.settle([this] { tdp_.flush(); });
  }
  return young;
}

bool GuestMemory::test_young(HvaRange range) {
  if (private_.keeps_frames()) [[unlikely]]
    return false;
  age_flush_.ask_if_due(lines_);
  return any_user(slots_, range,
                  [this](u32 space, GfnRange frames) { return tdp_.test_young(space, frames); });
}

// The addresses are the client's, or the engine's own of private pages.
void GuestMemory::collect_young(HvaRange range, u64* bits) {
  if (private_.keeps_frames()) [[unlikely]]
    return;
  static_cast<void>(age_flush_.mark_old(lines_, [&] {
    const auto collect = [&](u32 space, GfnRange frames) {
      return tdp_.collect_young(space, frames, range, bits);
    };
    const bool young = any_user(slots_, range, collect);
    return private_.any_user(range, collect) || young;
  }));
  age_flush_.ask_if_due(lines_);
}

bool GuestMemory::borrows(HvaRange range) {
  const Memslots::Reader section(slots_);
  return section.overlaps(range);
}

void GuestMemory::before_run() {
  if (age_flush_.owed()) [[unlikely]]
    age_flush_.ask(lines_);
  if (wants_nx() == tdp_.nx_huge_pages()) [[likely]]
    return;
  // What was mapped under the other rule goes. Analogue: set_nx_huge_pages (kernel file: mmu.c),
  // which does it for every VM when the parameter is written.
  slots_.between_updates([this] {
    if (!tdp_.set_nx_huge_pages(wants_nx())) return;
    tdp_.invalidate_all_roots();
    flush_and_wait();
    tdp_.zap_invalidated_roots();
  });
}

}  // namespace stagetwo::stage2

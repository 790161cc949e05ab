// SPDX-License-Identifier: Apache-2.0
#pragma once

// The pages of a slot that come from a guest_memfd. Analogue: struct kvm_memory_slot's gmem half
// (kernel file: kvm_host.h). Listens to the object: what it gives up leaves the VM's table first.
//
// Invariant: the slot is immutable, so which page a frame has never changes; only whether the
// object still is there does, once (mem::Binding::is_open). Locking: made and ended under
// slots_lock; the bell rings under the object's lock. Lifetime: from before a fault can find the
// slot until no reader and no vCPU is left in it.

#include "addr/addr.h"
#include "base/result.h"
#include "mem/guest_memfd.h"
#include "stage2/tdp_types.h"

namespace stagetwo::stage2 {

class PrivateMemory;
struct Slot;

class FilePages final : public mem::ObjectObserver {
 public:
  // Failure: EINVAL, ENOMEM (mem::GuestMemfd::bind).
  [[nodiscard]] static Result<FilePages*> bind(PrivateMemory& memory, mem::GuestMemfd& object,
                                               const Slot& slot, u64 offset, bool file_only);
  // Pre: nobody uses a translation of the slot. Null is allowed.
  static void unbind(FilePages* pages);

  FilePages(PrivateMemory& memory, Gfn base, Half half)
      : memory_(memory), base_(base), half_(half) {}

  [[nodiscard]] bool is_open() const { return binding_.is_open(); }
  // Pre: gfn is in the slot.
  [[nodiscard]] Hva gfn_to_hva(Gfn gfn) const {
    return binding_.at() + ((gfn - base_) << kPageShift);
  }

  [[nodiscard]] HvaRange hvas() const {
    return {binding_.at(), binding_.pages().count() << kPageShift};
  }
  // The frames whose private pages are at these addresses of the engine's. Pre: they overlap.
  [[nodiscard]] GfnRange gfns_of(HvaRange range) const;

  void going(mem::PageRange pages) override;
  void gone(mem::PageRange pages) override;
  void left(mem::PageRange pages) override;

 private:
  [[nodiscard]] GfnRange frames_of(mem::PageRange pages) const {
    return {base_ + (pages.first - binding_.pages().first), pages.count()};
  }
  [[nodiscard]] HvaRange hvas_of(mem::PageRange pages) const {
    return {gfn_to_hva(frames_of(pages).start()), pages.count() << kPageShift};
  }

  PrivateMemory& memory_;
  const Gfn base_;
  const Half half_;  // the entries that lead here
  mem::Binding binding_;
};

}  // namespace stagetwo::stage2

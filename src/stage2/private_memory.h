// SPDX-License-Identifier: Apache-2.0
#pragma once

// The private half of a VM's memory: which frames are private, which pages a slot has from a
// guest_memfd, and what changes of either do to the table. A part of GuestMemory, which has one.
// Analogue: kvm_vm_set_mem_attributes, kvm_gmem_* as KVM sees them (kernel files: kvm_main.c,
// guest_memfd.c, mmu.c). The races stand in private_memory.cc.
//
// Invariants: I1  an entry is of the half its frame's attribute names.
//             I2  a notifier of a host address takes shared entries only, an object that gives
//             pages
//                 up those that lead to it only, a conversion those of the half that is left.
//             I3  a kept frame's entry is gone before its keeper does anything with the page.
// Locking: conversions and bindings under slots_lock; pages_going() under the object's lock; what a
// fault asks takes the lock of the attributes, shared. Lifetime: as its GuestMemory.

#include "addr/addr.h"
#include "base/result.h"
#include "stage2/attributes.h"
#include "stage2/fault.h"
#include "stage2/frame_keeper.h"
#include "stage2/given_up.h"
#include "stage2/slot_update.h"
#include "stage2/tdp_types.h"

namespace stagetwo::stage2 {

class GuestMemory;

class PrivateMemory final : private MemfdBinder {
 public:
  PrivateMemory(GuestMemory& vm, bool has_attributes) : vm_(vm), on_(has_attributes) {}
  PrivateMemory(const PrivateMemory&) = delete;
  PrivateMemory& operator=(const PrivateMemory&) = delete;

  // Have the frames of this VM attributes? Without, all are shared.
  [[nodiscard]] bool on() const { return on_; }
  // Can the guest have bytes that are nobody else's?
  [[nodiscard]] bool has_secrets() const { return on_ || is_kept(); }
  [[nodiscard]] const MemoryAttributes& attributes() const { return attributes_; }

  // KVM_SET_MEMORY_ATTRIBUTES: makes frames private, or shared. Pre: on().
  // Post: no access begins any more in the half that was left. Failure: ENOMEM; nothing changed.
  [[nodiscard]] Result<void> set_attributes(GfnRange frames, bool to_private);

  // What a fault asks. After its snapshot: who reads an answer before it changes installs nothing.
  [[nodiscard]] bool is_private(const Fault& fault) const {
    return on_ && !fault.own && attributes_.is_private(fault.gfn);
  }
  [[nodiscard]] static FaultOutcome refuse_fault(Fault& fault, int error) {
    fault.error = error;
    return FaultOutcome::kMemoryFault;
  }
  // The page of a slot's file. Context: a read section of the slots.
  [[nodiscard]] static FaultOutcome look_up(Fault& fault, const Slot& slot);
  // Do frames of the entry of `level` that covers gfn differ?
  [[nodiscard]] bool is_mixed(Gfn gfn, unsigned level) const;
  // Of which entries a notifier of host addresses speaks.
  [[nodiscard]] Half of_notifiers() const { return on_ ? Half::kShared : Half::kBoth; }

  // How often private pages were given up: converted, punched, unbound, released. Who keeps what he
  // has read of them compares, and forgets it.
  [[nodiscard]] u64 times_given_up() const { return given_up_.count(); }
  [[nodiscard]] const GivenUp& given_up() const { return given_up_; }

  // The object's bell, by way of FilePages: frames of one slot, and the engine's addresses of their
  // pages. Post of going: no translation of the pages is in use, nor made until gone.
  void pages_going(GfnRange frames, HvaRange pages, Half half);
  void pages_gone(HvaRange pages);
  // After pages_going(): they are elsewhere, and have not been given up.
  void pages_left(HvaRange pages);

  // fn(address space, frames) -> bool for those whose private pages are at these addresses of the
  // engine's; was one of the answers yes? Outside of every section.
  template <typename F>
  bool any_user(HvaRange pages, F&& fn) const;
  // Of a slot, or of none: where its private pages are, if they can leave memory.
  [[nodiscard]] static HvaRange pages_under_limit(const Slot* slot);

  // Frames that somebody keeps (frame_keeper.h). Pre: no vCPU yet, no attributes.
  void set_keeper(FrameKeeper* keeper) { keeper_ = keeper; }
  [[nodiscard]] bool is_kept() const { return keeper_ != nullptr; }
  [[nodiscard]] bool keeps_frames() const { return is_kept() && keeper_->keeps(); }
  // kFixed and no fault.home: the page is the client's. Context: as look_up().
  [[nodiscard]] FaultOutcome look_up_kept(Fault& fault, const Slot& slot);
  // Of a fault that is_later. Context: as handle_fault().
  [[nodiscard]] FaultOutcome bring(Fault& fault);
  // The keeper's word that frames become others. Post of going: no translation of them is in use,
  // nor made until gone. Nested, by several threads. Context: no lock; waits for vCPUs that run.
  void frames_going(GfnRange frames);
  void frames_gone();

  // For the slots of a VM that may have files; null otherwise.
  [[nodiscard]] SlotPolicy with_binder(SlotPolicy policy) {
    if (policy.guest_memfd) policy.binder = this;
    return policy;
  }

 private:
  Result<void> bind(Slot* slot, const Region& region) override;
  void unbind(Slot* slot) override;

  [[nodiscard]] bool find_user(u32 space, HvaRange pages, Gfn* at, GfnRange* frames) const;
  template <typename F>
  void for_each_slot(GfnRange frames, F&& fn);
  template <typename F>
  void for_each_part(GfnRange frames, F&& fn) const;
  [[nodiscard]] bool close_frames(GfnRange frames);
  void zap_half(GfnRange frames, Half half);
  void recover_shared(GfnRange frames);
  [[nodiscard]] Result<void> convert(GfnRange frames, bool to_private);
  void tell_pinned(GfnRange frames);

  GuestMemory& vm_;
  const bool on_;
  FrameKeeper* keeper_ = nullptr;  // immutable once there is a vCPU
  MemoryAttributes attributes_;
  GivenUp given_up_;
  sync::Atomic<u64> files_{0};  // slots that have one
};

// The slots are few, and who asks has asked for their own addresses before.
template <typename F>
bool PrivateMemory::any_user(HvaRange pages, F&& fn) const {
  if (files_.load(sync::kAcquire) == 0) return false;
  bool any = false;
  for (u32 space = 0; space < kMaxAddressSpaces; ++space) {
    GfnRange frames;
    for (Gfn at{}; find_user(space, pages, &at, &frames);) any |= fn(space, frames);
  }
  return any;
}

}  // namespace stagetwo::stage2

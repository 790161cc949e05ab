// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "base/guard.h"
#include "base/trace.h"
#include "stage2/address_space.h"

// Frames that somebody keeps (docs/decisions/0042-frames-with-a-keeper.md). A kept page has an
// address the client does not know, and goes for reasons no notifier rings for; so its frame is
// named instead: the gate is closed for the place the frame's slot has for it, and who installs a
// kept page asks for that place.
//
//   vCPU, fault                            | the keeper, about the frame
//   snapshot s                             |
//   find(): kept, at P; home H             |
//                                          | frames_going: gate up for H; zaps; what was read of
//                                          | it is stale; flush, wait
//   mmu_lock shared: count != 0 -> retry   | the page leaves P, or becomes another's
//                                          | frames_gone: sequence up, count down
//   (or later: s is old -> retry)          |
//
//   snapshot s'                            |
//   find(): not kept any more              |
//
// One frame at a time, so no entry of such a VM is large: of two neighbours one may be kept, and
// the other lie in the client's memory, sealed or shared.

namespace stagetwo::stage2 {

FaultOutcome PrivateMemory::look_up_kept(Fault& fault, const Slot& slot) {
  fault.home = {};
  fault.is_later = false;
  switch (keeper_->find(fault.gfn, &fault.page)) {
    case FrameKeeper::Where::kProcess:
      return FaultOutcome::kFixed;
    case FrameKeeper::Where::kKept:
      break;
    case FrameKeeper::Where::kLater:
      fault.is_later = true;
      return FaultOutcome::kRetry;
    case FrameKeeper::Where::kMmio:
      return FaultOutcome::kMmio;
    case FrameKeeper::Where::kStopped:
      fault.is_private = true;
      return refuse_fault(fault, EHWPOISON);
  }
  const bool readonly = (slot.flags & kReadonly) != 0;
  if (readonly && fault.access == Access::kWrite) return FaultOutcome::kMmio;
  fault.home = slot.gfn_to_hva(fault.gfn);
  fault.slot_flags = slot.flags;
  fault.is_private = true;
  fault.map_writable = !readonly;
  fault.max_level = 1;
  return FaultOutcome::kFixed;
}

FaultOutcome PrivateMemory::bring(Fault& fault) {
  fault.is_later = false;
  const FaultOutcome brought = keeper_->bring(fault.gfn);
  if (brought != FaultOutcome::kMemoryFault) return brought;
  fault.is_private = true;
  return refuse_fault(fault, EHWPOISON);
}

// fn(address space, frames, where the slot has them) for the slots there are. Slots may come and go
// meanwhile: one that comes has no kept frame yet, one that goes takes its entries along.
template <typename F>
void PrivateMemory::for_each_part(GfnRange frames, F&& fn) const {
  for (u32 space = 0; space < kMaxAddressSpaces; ++space) {
    for (Gfn at = frames.start(); at < frames.end();) {
      GfnRange part;
      Hva start;
      {
        const Memslots::Reader section(vm_.slots_);
        const Slot* slot = section.find_from(space, at);
        if (slot == nullptr || slot->base_gfn >= frames.end()) break;
        const Gfn first = std::max(at, slot->base_gfn);
        part = GfnRange(first, std::min(slot->gfns().end(), frames.end()) - first);
        start = slot->gfn_to_hva(first);
      }
      fn(space, part, start);
      at = part.end();
    }
  }
}

void PrivateMemory::frames_going(GfnRange frames) {
  bool closed = false;
  for_each_part(frames, [&](u32, GfnRange part, Hva start) {
    const u64 first = start.raw() >> kPageShift, last = first + part.size() - 1;
    closed ? vm_.gate_.extend(first, last) : vm_.gate_.begin(first, last);
    closed = true;
  });
  // Each going has its gone.
  if (!closed) vm_.gate_.begin(0, 0);
  pt::Gather removed;
  if (ST_GUARD(kept_zap, true)) {
    for_each_part(frames, [&](u32 space, GfnRange part, Hva) {
      static_cast<void>(vm_.tdp_.zap_leafs(space, part, &removed, true));
    });
  }
  // Also where there was no entry: what a vCPU has read may be older than that.
  given_up_.frames(frames);
  vm_.tdp_.flush();
  // KVM's own accesses on the guest's behalf.
  vm_.slots_.wait_for_readers();
  vm_.give_back(&removed);
}

void PrivateMemory::frames_gone() {
  vm_.gate_.end();
}

}  // namespace stagetwo::stage2

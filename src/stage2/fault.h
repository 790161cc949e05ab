// SPDX-License-Identifier: Apache-2.0
#pragma once

// The fault that travels: asked by `vcpu`, found out by `stage2`, answered by `host`. Each room
// fills its part and touches no other. Analogue: struct kvm_page_fault (kernel file:
// mmu_internal.h).
//
// Lifetime: on the stack of the thread that faults. The answer is a borrow: it may be used only
// after GuestMemory::install() accepted it, and only until the thread's next poll that asks for a
// flush.

#include "addr/addr.h"
#include "base/types.h"
#include "sync/invalidation_gate.h"

namespace stagetwo::stage2 {

struct Slot;

struct Fault {
  // Asked.
  Gpa gpa{};
  Access access = Access::kRead;
  u32 address_space = 0;  // 1: in system management mode, where the VM has it

  // Found out.
  const Slot* slot = nullptr;  // valid only once install() accepted
  u32 slot_flags = 0;
  Gfn gfn{};
  sync::InvalidationGate::Snapshot snapshot{};

  // Answered.
  Hva page{};             // host address of the page
  bool writable = false;  // stores may go through this translation
};

enum class FaultOutcome : u8 {
  kFixed,   // answered; install() decides whether it still holds
  kRetry,   // an invalidation or a slot change came between: let it pass, ask again
  kMmio,    // no slot, or a write to a READONLY one: the access is the VMM's
  kToUser,  // the slot's host address has no page for this access: EFAULT
  kPoison,  // the host page is broken hardware: EHWPOISON
};

}  // namespace stagetwo::stage2

// SPDX-License-Identifier: Apache-2.0
#pragma once

// The fault that travels: asked by `vcpu`, found out by `stage2`, answered by `host` and the
// stage-2 table. Each part is filled by whom its heading names and touched by no other. Analogue:
// struct kvm_page_fault (kernel file: mmu_internal.h), RET_PF_*.
//
// Levels are counted as pt counts them: 1 is 4 KiB, 2 is 2 MiB, 3 is 1 GiB.
// Lifetime: on the stack of the thread that faults. The answer is a borrow: it may be used only
// until the thread's next poll that asks for a flush.

#include "addr/addr.h"
#include "base/types.h"
#include "sync/invalidation_gate.h"

namespace stagetwo::stage2 {

class DirtyRing;
struct Slot;

struct Fault {
  // Asked.
  Gpa gpa{};
  Access access = Access::kRead;
  u32 address_space = 0;  // 1: in system management mode, where the VM has it
  bool own = false;       // KVM's own: at the client's address, whatever the attributes say
  bool prefetch = false;  // KVM_PRE_FAULT_MEMORY: nobody accesses, an entry is not marked accessed
  DirtyRing* ring = nullptr;  // of the vCPU that asks, where the VM has rings

  // Found out by GuestMemory, in this order: what changes later makes the answer stale.
  sync::InvalidationGate::Snapshot snapshot{};
  u64 residency = 0;           // what is known to be present was made so under this number
  u64 mmio_generation = 0;     // of the slots, from before they were looked at
  const Slot* slot = nullptr;  // null: none. Good while the gate accepts the snapshot
  u32 slot_flags = 0;
  Gfn gfn{};

  // Found out on the way to the host.
  bool map_writable = false;  // the host address permits stores, known for certain
  bool is_private = false;    // the frame is: the page is the guest's alone
  bool from_file = false;     // the page is a guest_memfd's
  bool is_later = false;      // its keeper is to bring it first (stage2/frame_keeper.h)
  Hva home{};                 // of a page that is kept: where the slot has its frame; else 0
  u8 max_level = 1;           // what slot, write tracking and the host's own mapping permit

  // Decided by the mapper.
  u8 wanted_level = 1;                // what slot, host and attributes allow
  u8 goal_level = 1;                  // the same, less where NX splits
  bool huge_page_disallowed = false;  // by the NX policy: the table will be on its list

  // Answered.
  Hva page{};             // host address of the 4 KiB page
  bool writable = false;  // stores may go through this translation
  int error = 0;          // of kMemoryFault
  u8 level = 5;           // of the entry it was found in, or where the way to it ends
};

enum class FaultOutcome : u8 {
  kFixed,        // there is an entry now, or was a moment ago
  kSpurious,     // there was one already that permits the access
  kRetry,        // an invalidation, a slot change or another fault came between: ask again
  kEmulate,      // a store to a write-tracked page or a device's registers: KVM makes it, and tells
                 // the tracker, or the device
  kMmio,         // no slot, or a write to a READONLY one: the access is the VMM's
  kToUser,       // the slot's host address has no page for this access: EFAULT
  kPoison,       // the host page is broken hardware: EHWPOISON
  kMemoryFault,  // what the guest asks of private memory is the VMM's to arrange: fault.error
  kNoMemory,     // no memory for a table: ENOMEM
};

}  // namespace stagetwo::stage2

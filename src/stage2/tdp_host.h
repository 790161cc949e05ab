// SPDX-License-Identifier: Apache-2.0
#pragma once

// What the table asks of the VM around it: flushes, grace periods, and facts about slots. It is
// implemented by GuestMemory, and by small worlds in tests. Analogue: the calls of tdp_mmu.c back
// into mmu.c and kvm_main.c (kvm_flush_remote_tlbs, synchronize_rcu, mmu_invalidate_retry_gfn,
// kvm_lpage_info, mark_page_dirty_in_slot).
//
// Locking: each call says what may be held. None may take a lock above Rank::kSecondary except
// synchronize().

#include "stage2/fault.h"
#include "stage2/memslots.h"
#include "sync/epoch.h"

namespace stagetwo::stage2 {

class MmuContext;

class TdpHost {
 public:
  // After it returns no translation that was filled before is in use: every line that ran has
  // acknowledged. Context: mmu_lock may be held in any way.
  virtual void flush_tlbs() = 0;

  // The first half of that: every line is asked, none is waited for. Context: as flush_tlbs().
  virtual void ask_for_flush() = 0;
  // Where a root waits until every line has passed a request that came after it was retired. The
  // domain goes before the tables do.
  [[nodiscard]] virtual sync::EpochDomain& epochs() = 0;

  // The grace period of a table that was unlinked: flush_tlbs(), and every other read section that
  // began before has ended: shared sections of mmu_lock, readers of the slots.
  // Context: no lock of Rank::kPassage or below.
  virtual void synchronize() = 0;
  // The second half of synchronize(), for what no line can reach any more.
  virtual void wait_for_sections() = 0;

  // May what was found for `fault` since its snapshot not be installed for these host addresses?
  // Asked under mmu_lock, shared at least, for the page, and then for all a large entry covers;
  // false means that fault.slot lives until the section ends. Pre: fault.slot is one.
  [[nodiscard]] virtual bool must_retry(const Fault& fault, HvaRange range) = 0;

  // Do frames of the entry of `level` that covers gfn differ in their memory attributes? Under
  // mmu_lock, shared at least.
  [[nodiscard]] virtual bool attributes_mixed(const Fault& fault, unsigned level) = 0;

  // The page was made writable for a vCPU and is dirty from now on. Inside a read section.
  virtual void mark_dirty(MmuContext& context, const Slot& slot, Gfn gfn) = 0;

  // Is the frame in a slot that is logged? Under mmu_lock, alone. A hint: a slot that changes
  // meanwhile may be answered for either way.
  [[nodiscard]] virtual bool is_logged(u32 address_space, Gfn gfn) = 0;

  // The number of the slots' set; has kUpdateInProgress while an update is under way.
  [[nodiscard]] virtual u64 slots_generation() = 0;

  // For the audit, under mmu_lock, alone. The slot of a frame; no slot changes.
  [[nodiscard]] virtual const Slot* audit_slot(u32 address_space, Gfn gfn) = 0;
  // The same. A page of a slot with a log may be stored to without a fault: whoever gave that right
  // has marked it, or is about to, in a read section that is not over.
  virtual void audit_right(const Slot& slot, u64 page) = 0;

 protected:
  ~TdpHost() = default;
};

}  // namespace stagetwo::stage2

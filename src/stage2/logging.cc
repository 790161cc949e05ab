// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "base/guard.h"
#include "host/mapping_level.h"
#include "stage2/address_space.h"

// What begins and ends with a slot's dirty log, in the tables. Analogue: kvm_mmu_slot_apply_flags,
// kvm_arch_mmu_enable_log_dirty_pt_masked (kernel files: x86.c, mmu.c).
//
//   begin   large pages are split (eager_page_split), every entry loses the right to store; the
//           caller flushes. From then on each first store faults and marks its page.
//   harvest the pages whose marks were taken lose it again.
//   end     nothing is given back here: the next store takes its right without a lock. Tables in
//           whose place the host has a large page are zapped, and the next access maps it.
//
// Initially-set logs begin with every page marked, so that nothing needs protection until it is
// cleared; splitting waits until then, too.

namespace stagetwo::stage2 {

void GuestMemory::logging_changed(const Slot&, const Slot& fresh, bool all_marked) {
  // Faults that passed the gate before it closed know the old slot: they may still install a right
  // to store that nobody marks, and use the slot, which ends with this change.
  if (ST_GUARD(slot_users_wait, true)) tdp_.wait_for_shared();
  // What is read-only never becomes dirty, nor writable again.
  if ((fresh.flags & kReadonly) != 0) return;
  if ((fresh.flags & kLogDirtyPages) == 0) return recover_huge(fresh, fresh.gfns());
  if (all_marked) return;
  if (eager_split_.load(sync::kRelaxed)) tdp_.try_split_huge(fresh, fresh.gfns(), 1);
  tdp_.write_protect_slot(fresh, 1);
}

void GuestMemory::protect_pages(const Slot& slot, u64 first_page, const u64* masks, u64 count,
                                bool split) {
  if (split && eager_split_.load(sync::kRelaxed)) {
    for (u64 i = 0; i < count; ++i) {
      if (masks[i] == 0) continue;
      const u64 first = first_page + i * 64 + static_cast<u64>(__builtin_ctzll(masks[i]));
      while (i + 1 < count && masks[i + 1] != 0) ++i;
      const u64 end = first_page + i * 64 + 64 - static_cast<u64>(__builtin_clzll(masks[i]));
      tdp_.try_split_huge(slot, GfnRange(slot.base_gfn + first, end - first), 1);
    }
  }
  tdp_.write_protect_masked(slot, first_page, masks, count);
}

// The host is asked once for each range that has a table of small entries, outside every lock.
void GuestMemory::recover_huge(const Slot& slot, GfnRange range) {
  Gfn at = range.start();
  while (tdp_.find_small(slot, &at, range.end())) {
    Fault asked{};
    asked.gfn = at;
    const unsigned allowed = attributes_mixed(asked, 2) ? 1 : slot.max_level(at);
    const unsigned level =
        allowed > 1 ? std::min(allowed, host::mapping_level(slot.gfn_to_hva(at))) : 1;
    const u64 frames = pt::span_of<Format>(std::max(level, 2U));
    const Gfn first(at.raw() & ~(frames - 1));
    if (level > 1) tdp_.recover_huge(slot, GfnRange(first, frames), level);
    at = first + frames;
  }
}

}  // namespace stagetwo::stage2

// SPDX-License-Identifier: Apache-2.0
#include "base/guard.h"
#include "stage2/tdp_mmu.h"

// NX huge pages: a huge entry is not executable, an instruction fetch gets a small one, and the
// table that came of it is remembered, so that it can become a huge entry again when nobody fetches
// there any more. Policy only, on a machine of ours: no processor has to be protected.
//
//   exec fault on a huge entry      link_child() (tdp_map.cc): splits, sets the table's flag, and
//                                   lists it where a huge entry would have been possible
//   data fault below such a table   map(): the flag keeps it small
//   recovery                        recover_nx(): the oldest tables are zapped; the next access
//                                   decides again
//
// Recovery holds mmu_lock alone, as whoever lists a table shares it: what is on the list is linked
// (I5), and a table it zaps is taken off by remove_table().

namespace stagetwo::stage2 {

void TdpMmu::recover_nx(u64 ratio) TA_NO_ANALYSIS {
  const auto with_list = [this](auto&& fn) {
    const sync::MutexGuard pages(pages_lock_);
    return fn();
  };
  pt::Gather removed;
  {
    sync::BigWriterGuard alone(mmu_lock_);
    const u64 splits = with_list([this]() TA_REQ(pages_lock_) { return possible_nx_.count(); });
    for (u64 left = ratio == 0 ? 0 : (splits + ratio - 1) / ratio; left > 0; --left) {
      TablePage* const table =
          with_list([this]() TA_REQ(pages_lock_) { return possible_nx_.front(); });
      if (table == nullptr) break;
      // While its slot is logged it would come back small; it is recovered with the rest of the
      // slot when logging ends.
      if (ST_GUARD(nx_skips_logged, host_.is_logged(table->address_space, table->gfn)) ||
          !zap_table(*table, &removed)) {
        with_list([this, table]() TA_REQ(pages_lock_) {
          table->nx_huge_page_disallowed.store(false, sync::kRelaxed);
          if (table->possible_nx.linked()) possible_nx_.remove(table);
        });
      }
      if (mmu_lock_.contended()) yield_alone(alone, &removed);
    }
  }
  flush_and_release(&removed);
}

}  // namespace stagetwo::stage2

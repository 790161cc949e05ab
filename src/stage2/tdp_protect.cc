// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "base/guard.h"
#include "base/trace.h"
#include "stage2/tdp_mmu.h"

// Write protection for the dirty log: an entry without W makes the next store fault, the fault sets
// W, and whoever set it marks the page. Analogue: kvm_tdp_mmu_wrprot_slot, clear_dirty_pt_masked.
//
// Only W is taken, never MMU-writable: a store may have it back without a lock, and nobody
// concludes from an entry without W that nobody stores. So nothing is flushed here; whoever reads
// the marks flushes before he answers his client:
//
//   vCPU                                    | harvest
//   W set by compare-and-exchange           |
//   marks the page                          |
//   stores                                  | takes the mark: the page is in this harvest
//                                           | W off
//   stores again, by its cached translation | flush: waits
//   polls: drops the translation            | returns: this harvest's pages hold every store so far
//   next store: no W: sets it, marks        |
//
//   W set by compare-and-exchange           |
//                                           | takes the marks: the page is not among them; W stays
//   marks the page, stores                  | flush: waits; returns
//                                           | next harvest: takes the mark
//
// Marked first and made writable second, the mark could be taken in between: W would stay, and the
// stores that follow would be nobody's (mutation mark_after_write).
//
// When a log begins, a fault may be on its way that found the slot without one: it would make an
// entry writable and mark nothing.
//
//   vCPU, fault                             | the log begins
//   finds the old slot                      |
//   mmu_lock shared; the gate accepts       |
//                                           | closes the addresses; publishes the slot with its log
//   installs an entry with W; unlock        | waits: readers of slots (the fast way), sections of
//                                           | mmu_lock (the slow way)
//   the next fault: the gate says retry     | takes W from every entry, the new one too; flushes
//
// The whole slot is protected sharing the lock, entry by entry, beside faults. The masked version
// holds it alone, once for a whole harvest: it needs no compare-and-exchange to lose, as no leaf is
// replaced meanwhile; A, D and a restored W may still come, so W goes by an atomic and.

namespace stagetwo::stage2 {

void TdpMmu::write_protect_slot(const Slot& slot, unsigned min_level) TA_NO_ANALYSIS {
  sync::BigReaderGuard shared(mmu_lock_);
  for_each_root([&](TdpRoot& root) TA_NO_ANALYSIS {
    if (root.address_space != slot.id >> 16) return;
    for (TdpCursor at = cursor(root, slot.gfns(), min_level); at.valid(); at.next()) {
      if (at.progressed() && mmu_lock_.contended()) {
        shared.drop();
        ST_MARK(tdp_protect_yields);
        shared.retake();
        at.mark_yielded();
        continue;
      }
      // In invalid roots too: until it has been flushed, a vCPU may store through one.
      while (at.is_leaf() && Format::is_writable(at.old())) {
        const Word was = at.old();
        if (!at.compare_exchange(Format::write_protected(was))) continue;
        trace::emit(trace::Event::kvm_tdp_mmu_spte_changed, trace::Room::stage2, at.frame(),
                    at.level(), was, at.old());
      }
    }
  });
}

// Goes from table to table: most words of marks lie in one.
void TdpMmu::protect_word(const TdpRoot& root, Gfn base, u64 mask) {
  while (mask != 0) {
    const auto bit = static_cast<unsigned>(__builtin_ctzll(mask));
    const u64 frame = base.raw() + bit;
    const auto found = pt::find<Format>(root.page->entries, policy_.root_level, frame);
    // The frames that the same large entry, or entries of the same table, stand for.
    const unsigned level = std::max(found.level, 2U);
    const u64 end = pt::span_floor<Format>(frame, level) + pt::span_of<Format>(level) - base.raw();
    const u64 here = end >= 64 ? mask : mask & ((u64{1} << end) - 1);
    mask &= ~here;
    // A large leaf without W faults for each of its frames; what is not present faults anyway.
    for (u64 bits = found.level > 1 ? here & -here : here; bits != 0; bits &= bits - 1) {
      Entry& entry = found.entry[static_cast<unsigned>(__builtin_ctzll(bits)) - bit];
      const Word word = entry.load(sync::kRelaxed);
      if (Format::is_leaf(word) && Format::is_writable(word)) {
        entry.fetch_and(~Format::kWrite, sync::kAcqRel);
      }
    }
  }
}

void TdpMmu::write_protect_masked(const Slot& slot, u64 first_page, const u64* masks, u64 count) {
  const sync::BigWriterGuard alone(mmu_lock_);
  for_each_root([&](TdpRoot& root) TA_NO_ANALYSIS {
    if (root.address_space != slot.id >> 16) return;
    for (u64 i = 0; i < count; ++i) {
      if (masks[i] != 0) protect_word(root, slot.base_gfn + first_page + i * 64, masks[i]);
    }
  });
}

}  // namespace stagetwo::stage2

// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "base/guard.h"
#include "base/trace.h"
#include "stage2/tdp_mmu.h"

// Large entries become small before they are logged, and large again when logging ends. Analogue:
// kvm_tdp_mmu_try_split_huge_pages, kvm_tdp_mmu_zap_collapsible_sptes.
//
// Splitting changes no translation: the new table has all 512 children of the leaf, with its rights
// and its A and D, before one compare-and-exchange puts it in the leaf's place. So nothing is
// flushed, and no access of the guest faults on account of it:
//
//   split                                   | vCPU
//   reads leaf L, fills T from it           |
//                                           | walk: sets D in L
//   L is no longer what was read: the       |
//   exchange fails; fills T again           |
//   L -> T                                  | walk: finds L or T, both allow the same
//
//   split                                   | another split, or a fault
//                                           | L -> T'
//   exchange fails, no leaf any more: keeps |
//   T for the next one                      |
//
// From the top down: the walk descends into what it has just linked. Tables are taken in hand
// outside the lock, kBatch at a time; where there is no memory the split stops, and faults split
// what they need. No table is put below an invalid root, whose tree is being taken apart.
//
// Recovery (the way of Linux 6.12): a table whose range could be one large leaf is zapped, and the
// next access maps it large. Each zap flushes before others may install: the entry is frozen
// meanwhile (tdp_zap.cc).

namespace stagetwo::stage2 {

bool TdpMmu::split_leaf(TdpCursor& at, TablePage& child, u32 address_space) {
  while (at.is_leaf()) {
    const Word leaf = at.old();
    fill_split(child, leaf, at.level());
    const bool linked = link(at, child, address_space);
    trace::emit(trace::Event::kvm_mmu_split_huge_page, trace::Room::stage2, at.frame(), leaf,
                at.level());
    if (linked) return true;
  }
  return false;
}

void TdpMmu::split_range(TdpRoot& root, GfnRange range, unsigned target_level, TableCache& tables,
                         sync::BigReaderGuard& shared) TA_NO_ANALYSIS {
  TablePage* spare = nullptr;
  for (TdpCursor at = cursor(root, range, target_level + 1); at.valid(); at.next()) {
    const bool empty = spare == nullptr && tables.count() == 0;
    if (empty || (at.progressed() && mmu_lock_.contended())) {
      shared.drop();
      ST_MARK(tdp_split_yields);
      const bool enough = !empty || tables.top_up(TableCache::kCapacity).has_value();
      shared.retake();
      if (!enough || root.invalid.load(sync::kRelaxed)) break;
      at.mark_yielded();
      continue;
    }
    if (!at.is_leaf()) continue;
    if (spare == nullptr) spare = tables.take();
    if (split_leaf(at, *spare, root.address_space)) spare = nullptr;
  }
  if (spare != nullptr) tables.put_back(spare);
}

void TdpMmu::try_split_huge(const Slot& slot, GfnRange range,
                            unsigned target_level) TA_NO_ANALYSIS {
  TableCache tables(pool_);
  sync::BigReaderGuard shared(mmu_lock_);
  for_each_root([&](TdpRoot& root) TA_NO_ANALYSIS {
    if (root.address_space != slot.id >> 16 || root.invalid.load(sync::kRelaxed)) return;
    split_range(root, range, target_level, tables, shared);
  });
}

bool TdpMmu::may_be_large(const Slot& slot, Gfn gfn, unsigned level) {
  if (slot.max_level(gfn) < level) return false;
  Fault fault{};
  fault.slot = &slot;
  fault.slot_flags = slot.flags;
  fault.gfn = gfn;
  return !host_.attributes_mixed(fault, level);
}

bool TdpMmu::find_small(const Slot& slot, Gfn* at, Gfn end) {
  if (*at >= end) return false;
  const GfnRange left(*at, end - *at);
  u64 first = ~u64{0};
  const sync::BigReaderGuard shared(mmu_lock_);
  for_each_root([&](TdpRoot& root) TA_NO_ANALYSIS {
    if (root.address_space != slot.id >> 16) return;
    for (TdpCursor c = cursor(root, left, 2); c.valid() && c.frame() < first; c.next()) {
      if (c.level() == 2 && c.is_table()) first = std::max(c.frame(), left.start().raw());
    }
  });
  if (first == ~u64{0}) return false;
  *at = Gfn(first);
  return true;
}

void TdpMmu::recover_huge(const Slot& slot, GfnRange range, unsigned host_level) TA_NO_ANALYSIS {
  pt::Gather removed;
  {
    sync::BigReaderGuard shared(mmu_lock_);
    for_each_root([&](TdpRoot& root) TA_NO_ANALYSIS {
      if (root.address_space != slot.id >> 16 || root.invalid.load(sync::kRelaxed)) return;
      for (TdpCursor at = cursor(root, range, 2); at.valid(); at.next()) {
        if (at.progressed() && mmu_lock_.contended()) {
          shared.drop();
          flush_and_release(&removed);
          shared.retake();
          if (root.invalid.load(sync::kRelaxed)) return;
          at.mark_yielded();
          continue;
        }
        // Not beyond the slot, nor beyond what the host has in one piece.
        if (at.level() > host_level || !slot.gfns().contains(Gfn(at.frame()))) continue;
        if (!at.is_table() || !may_be_large(slot, Gfn(at.frame()), at.level())) continue;
        while (at.is_table() && !zap_entry_frozen(at, &removed)) {
        }
      }
    });
  }
  flush_and_release(&removed);
}

}  // namespace stagetwo::stage2

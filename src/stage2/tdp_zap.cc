// SPDX-License-Identifier: Apache-2.0
#include "base/check.h"
#include "base/guard.h"
#include "base/trace.h"
#include "stage2/tdp_mmu.h"
#include "sync/futex.h"

// Removal. Three phases stand in every path: change the entries, flush, release what was unlinked.
// Who replaces a table entry owns the table below it, and nobody else does.
//
// Alone (mmu_lock held exclusively) no other thread installs or removes. Lock-free readers may
// still set A and D in a leaf, or make a write-protected one writable: whatever they write, in a
// linked table or in one just unlinked, is written by compare-and-exchange against a present leaf,
// so it never brings an entry back; and whatever they filled is flushed before the caller's pages
// go. That is also why a table that is wholly inside the range is taken out with its entries as
// they are: nobody can install below it, and the flush makes every walk that is inside leave.
//
// Shared, another fault may be on its way down with the address of a table that is being removed.
// So every entry of the removed table is frozen until it sticks; a later compare-and-exchange finds
// a word it does not expect:
//
//   fault, shared                          | removal, shared
//   reads the parent: table T              |
//                                          | parent: T -> FROZEN (zap_entry_frozen) or a leaf
//   links a child C below T                |
//                                          | sweeps T: each entry -> FROZEN, finds C: owns it
//   lists C as possible NX? asks the flag  | flag off, unlisted, both under the pages lock
//   under the pages lock                   |
//   links a child D below T: finds FROZEN  |
//   -> gives D back, retries               |
//
// Between FROZEN and nonpresent lies the flush: whoever finds the entry nonpresent, and installs
// another page, knows that nobody uses the old one. A fault that finds FROZEN retries.
//
// A holder that works long yields (yield_alone): flush, drop, retake, and go on from the root at
// the next frame; only after progress, or two zaps could yield to each other for ever.
//
// Between unlocking and the flush another removal may come, find the entry gone, and conclude that
// nobody uses the page. So removals are numbered, and an unflushed one is owed by whoever looks:
//
//   removal 1                              | removal 2, of the same page
//   alone: entry -> nonpresent; number up  |
//   unlock                                 |
//                                          | alone: nothing there; number 1 not flushed: owed
//   flush; number 1 flushed                | flush, then the page is the client's

namespace stagetwo::stage2 {
namespace {

constexpr u64 kTablesPerGrace = 512;

// May a lock-free reader or writer still change the entry? Then it is taken by an exchange.
bool is_volatile(Word word) {
  if (Format::is_restorable(word) || !Format::is_accessed(word)) return true;
  return Format::is_writable(word) && !Format::is_dirty(word);
}

bool is_of(Word leaf, Half half) {
  return half == Half::kBoth || Format::is_private(leaf) == (half == Half::kPrivate);
}

// May the whole table go? Only one of small entries is looked through.
bool has_only(Word table, unsigned level, Half half) {
  if (level != 2) return false;
  const auto* entries = pt::DirectMemory<Word>::entries(Format::output(table));
  for (unsigned i = 0; i < kTableEntries; ++i) {
    const Word word = entries[i].load(sync::kRelaxed);
    if (Format::is_leaf(word) && !is_of(word, half)) return false;
  }
  return true;
}

// Exchanges the entry to FROZEN until this thread is the one who froze it.
Word freeze(Entry& entry) {
  for (;;) {
    const Word was = entry.exchange(Format::kFrozen, sync::kAcqRel);
    if (!Format::is_frozen(was)) return was;
    // Another thread froze it, and is about to write nonpresent.
    sync::spin_hint();
  }
}

}  // namespace

void TdpMmu::remove_table(Word word, Removal how, pt::Gather* removed) {
  TablePage* page = TablePage::of(pt::DirectMemory<Word>::entries(Format::output(word)));
  ST_CHECK(page->use == TableUse::kLinked);
  if (page->nx_huge_page_disallowed.load(sync::kRelaxed)) {
    const sync::MutexGuard pages(pages_lock_);
    page->nx_huge_page_disallowed.store(false, sync::kRelaxed);
    if (page->possible_nx.linked()) possible_nx_.remove(page);
  }
  // A table of level 1 whose entries nobody can add to goes as it is.
  if (how == Removal::kShared || page->level > 1) {
    for (unsigned i = 0; i < kTableEntries; ++i) {
      Entry& entry = page->entries[i];
      const bool freezes = ST_GUARD(sweep_freezes, how != Removal::kAlone);
      const Word was = freezes ? freeze(entry) : entry.load(sync::kAcquire);
      // Of a table of level 1 no entry is a table, whatever its bits say.
      if (page->level > 1 && Format::is_table(was)) remove_table(was, how, removed);
    }
  }
  page->use = TableUse::kRemoved;
  trace::emit(trace::Event::kvm_mmu_prepare_zap_page, trace::Room::stage2, page->gfn.raw(),
              page->level);
  removed->add_table(&page->gather, page->gfn.raw(), page->frames());
}

bool TdpMmu::zap_leafs(u32 address_space, GfnRange range, pt::Gather* removed, bool may_yield,
                       Half half) {
  sync::BigWriterGuard alone(mmu_lock_);
  // Invalid roots too: until it has been flushed, a vCPU may run on one.
  for_each_root([&](TdpRoot& root) TA_NO_ANALYSIS {
    if (root.address_space == address_space)
      zap_range(root, range, removed, may_yield, half, alone);
  });
  if (removed->flush_owed()) note_removed();
  return removed->flush_owed() ||
         ST_GUARD(pending_flush, flushed_.load(sync::kAcquire) != removed_.load(sync::kRelaxed));
}

void TdpMmu::note_flushed(u64 removals) {
  u64 known = flushed_.load(sync::kRelaxed);
  while (known < removals && !flushed_.compare_exchange(known, removals, sync::kAcqRel)) {
  }
}

void TdpMmu::flush() {
  const u64 removals = removed_.load(sync::kAcquire);
  host_.flush_tlbs();
  note_flushed(removals);
}

void TdpMmu::zap_range(TdpRoot& root, GfnRange range, pt::Gather* removed, bool may_yield,
                       Half half, sync::BigWriterGuard& alone) {
  u64 zapped = 0;
  for (TdpCursor at = cursor(root, range); at.valid(); at.next()) {
    if (may_yield && at.progressed() && mmu_lock_.contended()) {
      yield_alone(alone, removed);
      at.mark_yielded();
      continue;
    }
    const Word was = at.old();
    if (!Format::is_present(was)) {
      const unsigned index = TablePage::index_of(at);
      const u64 unused = TablePage::of(at.table())->next_used(index) - index;
      at.jump(at.frame() + unused * at.frames());
      continue;
    }
    if (Format::is_table(was, at.level())) {
      const bool whole =
          at.frame() >= range.start().raw() && at.frame() + at.frames() <= range.end().raw();
      // Not too much in one step: tables of up to 1 GiB.
      if (!whole || at.level() > Format::kLargestLeaf) continue;
      if (half != Half::kBoth && !has_only(was, at.level(), half)) continue;
      at.store(Format::kNonpresent);
      remove_table(was, Removal::kAlone, removed);
    } else if (ST_GUARD(names_its_half, !is_of(was, half))) {
      continue;
    } else if (is_volatile(was)) {
      static_cast<void>(at.exchange(Format::kNonpresent));
    } else {
      at.store(Format::kNonpresent);
    }
    removed->add_range(at.frame(), at.frames());
    ++zapped;
  }
  trace::emit(trace::Event::st_zap, trace::Room::stage2, range.start().raw(), range.end().raw() - 1,
              zapped);
}

void TdpMmu::yield_alone(sync::BigWriterGuard& alone, pt::Gather* removed) TA_NO_ANALYSIS {
  if (removed->flush_owed()) {
    note_removed();
    flush();
  }
  if (!removed->has_tables()) removed->flushed();
  alone.drop();
  ST_MARK(tdp_zap_yields);
  if (removed->table_count() >= kTablesPerGrace) flush_and_release(removed);
  alone.retake();
}

bool TdpMmu::zap_entry_frozen(TdpCursor& at, pt::Gather* removed) {
  const Word was = at.old();
  ST_DCHECK(Format::is_present(was));
  if (!at.compare_exchange(Format::kFrozen)) return false;
  if (Format::is_table(was, at.level())) remove_table(was, Removal::kShared, removed);
  removed->add_range(at.frame(), at.frames());
  host_.flush_tlbs();
  ST_CHECK(Format::is_frozen(at.exchange(Format::kNonpresent)));  // I2
  return true;
}

bool TdpMmu::zap_table(TablePage& table, pt::Gather* removed) {
  const Word linked = Format::make_table(reinterpret_cast<u64>(table.entries));
  Word was = linked;
  if (table.parent == nullptr ||
      !table.parent->compare_exchange(was, Format::kNonpresent, sync::kAcqRel)) {
    return false;
  }
  remove_table(linked, Removal::kAlone, removed);
  note_removed();
  return true;
}

void TdpMmu::flush_and_release(pt::Gather* removed) {
  if (removed->empty()) return;
  const u64 removals = removed_.load(sync::kAcquire);
  if (ST_GUARD(tdp_grace, true)) host_.synchronize();
  note_flushed(removals);
  release(removed);
}

void TdpMmu::release(pt::Gather* removed) {
  removed->flushed();
  removed->release<TablePage, &TablePage::gather>([this](TablePage* p) { pool_.give_back(p); });
}

}  // namespace stagetwo::stage2

// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include <memory>

#include "base/check.h"
#include "base/guard.h"
#include "base/sys.h"
#include "base/text.h"
#include "base/trace.h"
#include "stage2/tdp_mmu.h"

// One routine for every fault (docs/decisions/0011-one-fault-routine.md): page_fault() is prolog,
// map, epilog. The prolog takes mmu_lock, which is the read section of the walk as well, asks
// whether the answer is stale, and fixes the level; the epilog unlocks, and flushes and releases
// what the map unlinked. In between, each decision taken from a value that was read without the
// lock held alone is taken again by the compare-and-exchange that installs:
//
//   fault                                  | another thread
//   entry: nonpresent                      |
//                                          | links a table, or installs a leaf, or freezes
//   compare-and-exchange: fails -> retry   |
//
//   fault for a 2M leaf                    | freezes the goal entry (zap_entry_frozen)
//   reads FROZEN at the goal level: it is  |
//   looked at before the level is, or the  |
//   leaf would be composed over FROZEN and |
//   the removal undone -> retry            |
//
//   fault for 4K                           | takes the table of the goal out
//   reads the 2M entry: a table            |
//                                          | 2M entry: nonpresent
//   reads it again before it descends: the |
//   walk ends at 2M; a 4K leaf there would |
//   be followed as a table -> retry        |
//
//   exec fault, huge disallowed            | turns logging off, zaps tables
//   links a 4K table C, flag set           |
//                                          | unlinks C; flag off, not on the list (pages lock)
//   pages lock: the flag is asked again:   |
//   off -> C is not listed                 |
//
// The lookup-install race of host pages is closed as in the kernel. Both critical sections exclude
// each other:
//
//   fault                                  | change of the address space
//   snapshot; looks the page up            |
//                                          | gate.begin; mmu_lock alone: zap; unlock; flush
//   mmu_lock shared; must_retry: yes       |
//     (count up, or the sequence moved)    | the system call; gate.end
//
//   mmu_lock shared; must_retry: no;       |
//   installs; unlock                       | gate.begin; mmu_lock alone: zaps what was installed
//
// Nothing is held of the host's page: a borrow ends with the entry, so the epilog lets go of
// nothing.

namespace stagetwo::stage2 {
namespace {

// After so many lost races in a row a fault takes the lock alone.
constexpr u32 kPatience = 8;
constexpr int kFastAttempts = 4;

bool allows(Word leaf, Access access) {
  if (access == Access::kWrite) return Format::is_writable(leaf);
  return access != Access::kExec || Format::is_executable(leaf);
}

u64 page_of_leaf(Word leaf, unsigned level, Gfn gfn) {
  return Format::output(leaf) + ((gfn.raw() & (pt::span_of<Format>(level) - 1)) << kPageShift);
}

}  // namespace

// --- what needs no lock ---

Walk TdpMmu::walk(MmuContext& context, u32 address_space, Gfn gfn, Access access) {
  const TdpRoot* root = context.roots_[address_space];
  if (root == nullptr || !covers(gfn)) return {};
  for (int attempt = 0; attempt < kFastAttempts; ++attempt) {
    const auto found = pt::find<Format>(root->page->entries, policy_.root_level, gfn.raw());
    if (!Format::is_leaf(found.word, found.level)) {
      if (!Format::is_mmio(found.word)) return {.level = static_cast<u8>(found.level)};
      const u64 generation = host_.slots_generation();
      const bool current =
          (generation & kUpdateInProgress) == 0 &&
          Format::mmio_generation(found.word) == (generation & Format::kMmioGenerationMask);
      trace::emit(trace::Event::check_mmio_spte, trace::Room::stage2, found.word, generation,
                  Format::mmio_generation(found.word));
      return {.kind = current ? Walk::Kind::kMmio : Walk::Kind::kMiss,
              .level = static_cast<u8>(found.level)};
    }
    if (!allows(found.word, access)) return {.level = static_cast<u8>(found.level)};
    const Word used =
        found.word | Format::kAccessed | (access == Access::kWrite ? Format::kDirty : Word{0});
    Word expected = found.word;
    // Never an unconditional or: it would bring bits into an entry that was taken away.
    if (used != found.word && !found.entry->compare_exchange(expected, used, sync::kAcqRel)) {
      continue;
    }
    return {.kind = Walk::Kind::kHit,
            .level = static_cast<u8>(found.level),
            .writable = Format::is_writable(used),
            .executable = Format::is_executable(used),
            .is_private = Format::is_private(used),
            .page = Hva(page_of_leaf(used, found.level, gfn))};
  }
  return {};
}

bool TdpMmu::fast_page_fault(MmuContext& context, Fault& fault, FaultOutcome* outcome) {
  const TdpRoot* root = context.roots_[fault.address_space];
  if (root == nullptr || fault.slot == nullptr || !covers(fault.gfn)) return false;
  for (int attempt = 0; attempt < kFastAttempts; ++attempt) {
    const auto found = pt::find<Format>(root->page->entries, policy_.root_level, fault.gfn.raw());
    if (!Format::is_leaf(found.word, found.level)) return false;
    if (allows(found.word, fault.access)) {
      *outcome = FaultOutcome::kSpurious;
      context.counts.fast.raise();
      return true;
    }
    // Only what no reason of ours forbids; a right the host or a tracker withholds stays withheld.
    if (fault.access != Access::kWrite ||
        ST_GUARD(fast_only_mmu_writable, !Format::is_restorable(found.word))) {
      return false;
    }
    // While logging, a huge entry must be split first: one bit stands for one frame.
    if (found.level > 1 && (fault.slot_flags & kLogDirtyPages) != 0) return false;
    const Word fixed = Format::written(found.word);
    Word expected = found.word;
    // Dirty (O5): no store goes through the right that is made here before the page is marked,
    // since the caller translates again only after this; and first the right, then the mark:
    // tdp_protect.cc says why.
    const bool mark_last = ST_GUARD(mark_after_write, true);
    if (!mark_last) host_.mark_dirty(context, *fault.slot, fault.gfn);
    const bool swapped = found.entry->compare_exchange(expected, fixed, sync::kAcqRel);
    trace::emit(trace::Event::fast_page_fault, trace::Room::stage2, fault.gpa.raw(), found.word,
                fixed, swapped);
    if (!swapped) continue;
    // In the read section that saw the slot: a harvest that took the write right away before waits
    // for it, and then reads the bit.
    if (mark_last) host_.mark_dirty(context, *fault.slot, fault.gfn);
    context.counts.fast.raise();
    *outcome = FaultOutcome::kFixed;
    return true;
  }
  return false;
}

// --- prolog and epilog ---

bool TdpMmu::is_stale(const MmuContext& context, const Fault& fault) const {
  const TdpRoot* root = context.roots_[fault.address_space];
  // Obsolete, or given up at a poll since the fault began: the caller loads another one.
  if (root == nullptr || root->invalid.load(sync::kRelaxed)) return true;
  // No slot: the entry carries the generation that says so.
  return fault.slot != nullptr && host_.must_retry(fault, HvaRange(fault.page, kPageSize));
}

void TdpMmu::adjust_level(Fault& fault) {
  fault.goal_level = fault.wanted_level = 1;
  fault.huge_page_disallowed = false;
  if (fault.slot == nullptr || fault.max_level == 1) return;
  // The slot is asked again: tracking may have begun since.
  unsigned level = std::max(1U, std::min({unsigned{fault.max_level}, Format::kLargestLeaf,
                                          fault.slot->max_level(fault.gfn)}));
  while (level > 1 && host_.attributes_mixed(fault, level)) --level;
  fault.wanted_level = fault.goal_level = static_cast<u8>(level);
  if (level > 1 && fault.access == Access::kExec && nx_huge_pages()) {
    fault.huge_page_disallowed = true;
    fault.goal_level = 1;
  }
}

FaultOutcome TdpMmu::prolog_and_map(MmuContext& context, Fault& fault, pt::Gather* removed) {
  // Lookup and install (O1): nothing that was looked up before an overlapping change ended is
  // installed; what is installed before one begins, its zap finds, because it holds the lock alone.
  if (ST_GUARD(stale_fault, is_stale(context, fault))) {
    trace::emit(trace::Event::st_gate_retry, trace::Room::stage2, fault.page.raw(),
                fault.snapshot.sequence);
    ST_MARK(stage2_stale_fault);
    return FaultOutcome::kRetry;
  }
  adjust_level(fault);
  // A change of any page that a large entry would cover is a change of what it maps. The kernel
  // need not ask: whoever changes a part of a huge page splits it, and says so for the whole.
  if (fault.goal_level > 1) {
    const u64 bytes = pt::span_of<Format>(fault.goal_level) << kPageShift;
    const HvaRange range(Hva(align_down(fault.page.raw(), bytes)), bytes);
    if (ST_GUARD(stale_range, host_.must_retry(fault, range))) return FaultOutcome::kRetry;
  }
  trace::emit(trace::Event::kvm_mmu_spte_requested, trace::Room::stage2, fault.gfn.raw(),
              fault.page.raw() >> kPageShift, fault.goal_level);
  const FaultOutcome outcome = map(context, fault, removed);
  context.losses_ = outcome == FaultOutcome::kRetry ? context.losses_ + 1 : 0;
  return outcome;
}

FaultOutcome TdpMmu::page_fault(MmuContext& context, Fault& fault) {
  // Beyond what the guest can address there is no slot, and no entry to remember that in.
  if (!covers(fault.gfn)) return FaultOutcome::kMmio;
  pt::Gather removed;
  FaultOutcome outcome = FaultOutcome::kRetry;
  if (context.losses_ < kPatience) [[likely]] {
    const sync::BigReaderGuard shared(mmu_lock_);
    outcome = prolog_and_map(context, fault, &removed);
  } else {
    ST_MARK(tdp_fault_alone);
    const sync::BigWriterGuard alone(mmu_lock_);
    outcome = prolog_and_map(context, fault, &removed);
  }
  flush_and_release(&removed);
  return outcome;
}

// --- map ---

FaultOutcome TdpMmu::map(MmuContext& context, Fault& fault, pt::Gather* removed) {
  TdpCursor at = cursor(*context.roots_[fault.address_space], GfnRange(fault.gfn, 1));
  for (; at.valid(); at.next()) {
    // A table that NX made is not replaced by the huge leaf of a data access.
    if (at.level() == fault.goal_level && at.level() > 1 && at.is_table() &&
        TablePage::of(pt::DirectMemory<Word>::entries(Format::output(at.old())))
            ->nx_huge_page_disallowed.load(sync::kRelaxed)) {
      --fault.goal_level;
    }
    // Before the level is looked at: a frozen goal is not a place to map.
    if (ST_GUARD(frozen_before_leaf, Format::is_frozen(at.old()))) {
      ST_MARK(tdp_frozen_entry);
      return FaultOutcome::kRetry;
    }
    if (at.level() == fault.goal_level) break;
    if (at.is_table()) continue;
    if (!link_child(context, fault, at)) return FaultOutcome::kRetry;
  }
  // A table vanished between its two reads: the walk ended above the goal.
  if (ST_GUARD(leaf_only_at_goal, !at.valid() || at.level() != fault.goal_level)) {
    ST_MARK(tdp_walk_ended_high);
    return FaultOutcome::kRetry;
  }
  return install(context, fault, at, removed);
}

void TdpMmu::fill_split(TablePage& table, Word leaf, unsigned level) const {
  // Small entries are executable again: what a split under the NX policy is for.
  const Word also = nx_huge_pages() && level == 2 ? Format::kExec : Word{0};
  for (unsigned i = 0; i < kTableEntries; ++i) {
    // Nobody sees the table yet, so its words begin here; the link publishes them.
    std::construct_at(table.entries + i, pt::split_child<Format>(leaf, level, i) | also);
  }
  table.note_all_used();
}

bool TdpMmu::link(TdpCursor& at, TablePage& table, u32 address_space) {
  table.gfn = Gfn(at.frame());
  table.level = static_cast<u8>(at.level() - 1);
  table.address_space = static_cast<u8>(address_space);
  table.parent = at.entry();
  table.use = TableUse::kLinked;
  const Word was = at.old();
  TablePage::of(at.table())->note_used(TablePage::index_of(at));
  // Publication (O6): the table is whole before the exchange, which releases it.
  if (!at.compare_exchange(Format::make_table(reinterpret_cast<u64>(table.entries)))) {
    table.use = TableUse::kCached;
    return false;
  }
  trace::emit(trace::Event::kvm_tdp_mmu_spte_changed, trace::Room::stage2, at.frame(), at.level(),
              was, at.old());
  return true;
}

bool TdpMmu::link_child(MmuContext& context, const Fault& fault, TdpCursor& at) {
  TablePage* child = context.tables_.take();
  const bool list = fault.huge_page_disallowed && fault.wanted_level >= at.level();
  child->nx_huge_page_disallowed.store(fault.huge_page_disallowed, sync::kRelaxed);
  const bool split = Format::is_leaf(at.old(), at.level());
  if (split) {
    fill_split(*child, at.old(), at.level());
    trace::emit(trace::Event::kvm_mmu_split_huge_page, trace::Room::stage2, at.frame(), at.old(),
                at.level());
  }
  if (!link(at, *child, fault.address_space)) {
    context.tables_.put_back(child);
    ST_MARK(tdp_link_lost);
    return false;
  }
  if (list) {
    const sync::MutexGuard pages(pages_lock_);
    // It was linked before it is listed: whoever unlinked it in between has taken the flag off.
    const bool went =
        ST_GUARD(nx_recheck_under_lock, !child->nx_huge_page_disallowed.load(sync::kRelaxed));
    if (!went) possible_nx_.push_back(child);
  }
  return true;
}

Word TdpMmu::compose(const Fault& fault, Word old, unsigned level) const {
  const bool tracked = fault.slot->is_write_tracked(fault.gfn);
  const bool logging = (fault.slot_flags & kLogDirtyPages) != 0;
  const bool write = fault.access == Access::kWrite;
  Format::Attributes a;
  a.host_writable = fault.map_writable && (fault.slot_flags & kReadonly) == 0;
  a.mmu_writable = a.host_writable && !tracked;
  // While logging, a right to store that was not asked for would mark the page for nothing.
  a.write = a.mmu_writable && (write || !logging);
  a.dirty = a.write && write;
  a.accessed = !fault.prefetch;
  a.exec = level == 1 || !nx_huge_pages();
  a.is_private = fault.is_private;
  const u64 page = fault.page.raw() & ~((pt::span_of<Format>(level) << kPageShift) - 1);
  Word leaf = Format::make_leaf(page, level, a);
  // Of the same page: what the entry allowed stays allowed. A right that is taken away is flushed,
  // and nobody flushes for an install.
  if (Format::is_leaf(old, level) && Format::may_follow(old, leaf) && !tracked) leaf |= old;
  return leaf;
}

void TdpMmu::warn_unexpected_level(const TablePage& page, const Fault& fault) {
  if (warned_.exchange(true, sync::kRelaxed)) return;
  FixedString<160> text;
  text.append("stagetwo: a stage-2 table of level ").append_int(page.level);
  text.append(" stands where one of level ").append_int(fault.goal_level);
  text.append(" is expected; the fault is retried\n");
  sys::write_stderr(text.data(), text.size());
}

FaultOutcome TdpMmu::install(MmuContext& context, Fault& fault, TdpCursor& at,
                             pt::Gather* removed) {
  TablePage* table = TablePage::of(at.table());
  if (ST_GUARD(unexpected_level, table->level != fault.goal_level)) {
    // Most likely passes by itself; a VM is not ended for one vCPU that retries.
    warn_unexpected_level(*table, fault);
    return FaultOutcome::kRetry;
  }
  if (fault.slot == nullptr) return install_mmio(context, fault, at);

  const Word old = at.old();
  const Word leaf = compose(fault, old, at.level());
  fault.level = static_cast<u8>(at.level());
  fault.writable = Format::is_writable(leaf);
  const bool protected_store = fault.access == Access::kWrite && !fault.writable;
  if (leaf == old || (Format::is_leaf(old, at.level()) && Format::may_follow(old, leaf) &&
                      allows(old, fault.access))) {
    return protected_store ? FaultOutcome::kEmulate : FaultOutcome::kSpurious;
  }
  ST_CHECK(Format::may_follow(old, leaf));  // I4
  if (ST_GUARD(notes_used, true)) table->note_used(TablePage::index_of(at));
  if (!at.compare_exchange(leaf)) {
    ST_MARK(tdp_install_lost);
    return FaultOutcome::kRetry;
  }
  trace::emit(trace::Event::kvm_mmu_set_spte, trace::Room::stage2, at.frame(), leaf, at.level(),
              reinterpret_cast<u64>(at.entry()));
  if (Format::is_table(old, at.level())) remove_table(old, Removal::kShared, removed);
  if (fault.writable && !(Format::is_leaf(old, at.level()) && Format::is_writable(old)) &&
      (fault.slot_flags & kLogDirtyPages) != 0) {
    host_.mark_dirty(context, *fault.slot, fault.gfn);
  }
  return protected_store ? FaultOutcome::kEmulate : FaultOutcome::kFixed;
}

// "No slot here", true as long as the slots' number is the same. Needs no stale check: a number
// that is no longer the slots' matches nothing.
FaultOutcome TdpMmu::install_mmio(MmuContext& context, const Fault& fault, TdpCursor& at) {
  if ((fault.mmio_generation & kUpdateInProgress) != 0) return FaultOutcome::kMmio;
  const Word word = Format::make_mmio(fault.mmio_generation);
  // What is present is another generation's: a slot was there, or is now.
  if (Format::is_present(at.old())) return FaultOutcome::kRetry;
  if (at.old() != word && at.compare_exchange(word)) {
    context.counts.mmio_spte_created.raise();
    trace::emit(trace::Event::mark_mmio_spte, trace::Room::stage2,
                reinterpret_cast<u64>(at.entry()), fault.gfn.raw(), 0, fault.mmio_generation);
  }
  return FaultOutcome::kMmio;
}

}  // namespace stagetwo::stage2

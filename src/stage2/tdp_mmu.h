// SPDX-License-Identifier: Apache-2.0
#pragma once

// The stage-2 tables of one VM. Analogue: the TDP MMU (kernel files: tdp_mmu.c, mmu.c). Faults
// install entries in parallel by compare-and-exchange while they share mmu_lock; what takes
// translations away holds it alone, or freezes entry by entry.
//
// Invariants (checked by check_world(), and each by a test that fails without its guard):
//   I1  every entry is legal; a leaf has its slot's host address and no right the slot lacks.
//   I2  nobody but who froze an entry writes it (frozen_before_leaf).
//   I3  a leaf stands only at the level its fault aimed at (leaf_only_at_goal, unexpected_level).
//   I4  a leaf is never replaced in one step by a leaf of another page.
//   I5  a table is on the possible-NX list only while it is linked (nx_recheck_under_lock).
//   I6  what was found before an overlapping change began or ended is not installed: not for
//       the page (stale_fault), nor for anything else a large leaf covers (stale_range).
//   I7  an unlinked table is given back after a grace period, by who unlinked it (tdp_grace).
//   I8  what is present is in a line that its table's header names (notes_used).
// Locking: mmu_lock_ (secondary), pages_lock_ inside it (tdp_pages). Holding mmu_lock_ in any way
// is a read section of the tables; so is a line that runs and a Memslots::Reader (decision 0011).
// Lifetime: contexts end before it; the destructor gives everything back and cannot fail.

#include "stage2/mmu_context.h"
#include "stage2/tdp_host.h"
#include "stage2/tdp_types.h"
#include "sync/big_reader_mutex.h"

namespace stagetwo::stage2 {

class TdpMmu {
 public:
  TdpMmu(TdpHost& host, const TdpPolicy& policy)
      : host_(host), policy_(policy), nx_huge_pages_(policy.nx_huge_pages) {}
  ~TdpMmu();
  TdpMmu(const TdpMmu&) = delete;
  TdpMmu& operator=(const TdpMmu&) = delete;

  // --- roots (tdp_roots.cc) ---
  // Post: the context has a root of the address space that was valid during the call.
  // Context: no lock, the line does not run. Failure: ENOMEM.
  [[nodiscard]] Result<void> load_root(MmuContext& context, u32 address_space);
  // Forgets roots that were invalidated; at every poll or entry that asked for a flush.
  void drop_obsolete_roots(MmuContext& context);
  // Post: no fault installs into a root that was there before; every line is asked to leave them.
  // O(roots) and O(lines); waits for no line. Analogue: kvm_tdp_mmu_invalidate_roots.
  void invalidate_all_roots() TA_EXCL(mmu_lock_, pages_lock_);
  // May a translation of the frames be in use, of whatever root? Pre: nobody maps any now.
  [[nodiscard]] bool in_use(u32 address_space, GfnRange range) TA_EXCL(mmu_lock_, pages_lock_);
  // Takes invalidated roots apart that no line walks any more; small ones wait for who is last.
  void zap_invalidated_roots() TA_EXCL(mmu_lock_, pages_lock_);

  // --- faults (tdp_map.cc) ---
  // Context: the line runs, or another read section. Sets A, and D for a write.
  [[nodiscard]] Walk walk(MmuContext& context, u32 address_space, Gfn gfn, Access access);
  // Makes a write-protected entry writable where that needs no lock. False: the slow way.
  // Pre: fault.slot, gfn and access are set. Context: a read section; no lock is taken.
  [[nodiscard]] bool fast_page_fault(MmuContext& context, Fault& fault, FaultOutcome* outcome);
  // Installs what was found. Pre: context.top_up() succeeded, nothing was taken since.
  // Context: no lock, the line does not run. Outcomes: kFixed kSpurious kRetry kEmulate kMmio.
  [[nodiscard]] FaultOutcome page_fault(MmuContext& context, Fault& fault) TA_EXCL(mmu_lock_);

  // --- removal (tdp_zap.cc) ---
  // Takes every translation of the range away; what was unlinked goes into the bag. Waits for
  // installers even where nothing is mapped. True: a flush is owed, by this removal or by an
  // earlier one that is not known to be flushed, before the pages may be used for anything else.
  // `half`: entries of the other one stay.
  [[nodiscard]] bool zap_leafs(u32 address_space, GfnRange range, pt::Gather* removed,
                               bool may_yield, Half half = Half::kBoth)
      TA_EXCL(mmu_lock_, pages_lock_);
  // TdpHost::flush_tlbs(), remembered: what was removed before owes no flush any more.
  void flush();
  // The second half of a removal. release(): TdpHost::synchronize() has happened.
  void flush_and_release(pt::Gather* removed) TA_EXCL(mmu_lock_);
  void release(pt::Gather* removed) TA_EXCL(mmu_lock_);
  // Part of TdpHost::wait_for_sections(): shared sections of mmu_lock that began before have ended.
  void wait_for_shared() const TA_EXCL(mmu_lock_) { mmu_lock_.wait_for_shared(); }

  // --- the dirty log (tdp_protect.cc, tdp_split.cc) ---
  // After it every store to the slot faults, once the caller has flushed: leaves of min_level and
  // above lose W. Context: no lock; every fault that knew the slot without logging is over.
  void write_protect_slot(const Slot& slot, unsigned min_level) TA_EXCL(mmu_lock_, pages_lock_);
  // The same for some pages: bit n of masks[i] is page first_page + 64 i + n of the slot, in which
  // all of them lie. A large leaf loses W for all its frames.
  void write_protect_masked(const Slot& slot, u64 first_page, const u64* masks, u64 count)
      TA_EXCL(mmu_lock_, pages_lock_);
  // Leaves above target_level become equal smaller ones where there is memory. Nothing is flushed.
  void try_split_huge(const Slot& slot, GfnRange range, unsigned target_level)
      TA_EXCL(mmu_lock_, pages_lock_);
  // Moves *at on to the first frame before `end` that a table of small entries covers. False: there
  // is none.
  [[nodiscard]] bool find_small(const Slot& slot, Gfn* at, Gfn end) TA_EXCL(mmu_lock_, pages_lock_);
  // Zaps the tables of the range in whose place a leaf of up to host_level could be, so that the
  // next access maps it. Pre: the host has pages of that level there.
  void recover_huge(const Slot& slot, GfnRange range, unsigned host_level)
      TA_EXCL(mmu_lock_, pages_lock_);

  // --- ageing (tdp_age.cc) ---
  // Was a page of the range used? age() also clears A. A cached translation sets it no more.
  [[nodiscard]] bool test_young(u32 address_space, GfnRange range) TA_EXCL(mmu_lock_, pages_lock_);
  bool age(u32 address_space, GfnRange range) TA_EXCL(mmu_lock_, pages_lock_);
  // age() of the leaves into `pages`, and sets bit n where page n of it was used.
  bool collect_young(u32 space, GfnRange, HvaRange pages, u64* bits)
      TA_EXCL(mmu_lock_, pages_lock_);

  // --- NX huge pages (tdp_nx.cc) ---
  // True: it changed, and the caller invalidates all roots.
  bool set_nx_huge_pages(bool on) { return nx_huge_pages_.exchange(on, sync::kRelaxed) != on; }
  [[nodiscard]] bool nx_huge_pages() const { return nx_huge_pages_.load(sync::kRelaxed); }
  // Zaps one in `ratio` of the tables that only NX keeps small, the oldest first; 0: none.
  void recover_nx(u64 ratio) TA_EXCL(mmu_lock_, pages_lock_);

  // --- what there is (tdp_audit.cc) ---
  [[nodiscard]] PageCounts count_pages() TA_EXCL(mmu_lock_, pages_lock_);
  // I1 to I5, by a walk of everything; faults may be under way. Ends the process otherwise.
  void check_world() TA_EXCL(mmu_lock_, pages_lock_);
  [[nodiscard]] const TablePool& tables() const { return pool_; }
  [[nodiscard]] u32 root_count() TA_EXCL(pages_lock_);

 private:
  friend class MmuContext;
  friend struct TdpTestAccess;
  friend struct TdpPoolAccess;

  // Roots. next_root() swaps references; *more: one is behind it. One added meanwhile is not seen.
  [[nodiscard]] TdpRoot* find_root(u32 address_space) TA_REQ(pages_lock_);
  [[nodiscard]] TdpRoot* next_root(TdpRoot* after, bool* more) TA_EXCL(pages_lock_);
  void put_root(TdpRoot* root) TA_EXCL(pages_lock_);
  void release_context(MmuContext& context);
  static void root_is_left(void* root);
  void zap_unwalked_roots();
  void zap_root(TdpRoot& root, sync::BigReaderGuard& shared);
  template <typename F>
  void for_each_root(F&& fn) {
    bool more = true;
    for (TdpRoot* at = nullptr; (at = next_root(at, &more)) != nullptr;) fn(*at);
  }
  [[nodiscard]] bool covers(Gfn gfn) const {
    return gfn.raw() < pt::frame_limit<Format>(policy_.root_level);
  }
  [[nodiscard]] TdpCursor cursor(const TdpRoot& root, GfnRange range, unsigned min_level = 1) const;

  [[nodiscard]] bool is_stale(const MmuContext& context, const Fault& fault) const;
  void adjust_level(Fault& fault);
  [[nodiscard]] FaultOutcome prolog_and_map(MmuContext& context, Fault& fault, pt::Gather* removed)
      TA_REQ_SHARED(mmu_lock_);
  [[nodiscard]] FaultOutcome map(MmuContext& context, Fault& fault, pt::Gather* removed)
      TA_REQ_SHARED(mmu_lock_);
  [[nodiscard]] bool link_child(MmuContext& context, const Fault& fault, TdpCursor& at)
      TA_REQ_SHARED(mmu_lock_);
  [[nodiscard]] FaultOutcome install(MmuContext& context, Fault& fault, TdpCursor& at,
                                     pt::Gather* removed) TA_REQ_SHARED(mmu_lock_);
  [[nodiscard]] static FaultOutcome install_mmio(MmuContext& context, const Fault& fault,
                                                 TdpCursor& at);
  [[nodiscard]] Word compose(const Fault& fault, Word old, unsigned level) const;
  void warn_unexpected_level(const TablePage& page, const Fault& fault);
  // Fills a table with what a split of `leaf`, at `level`, has. Pre: the table is not linked.
  void fill_split(TablePage& table, Word leaf, unsigned level) const;
  // The table becomes the child of the entry, if that still is at.old(). Pre: filled completely.
  [[nodiscard]] static bool link(TdpCursor& at, TablePage& table, u32 address_space);

  void protect_word(const TdpRoot& root, Gfn base, u64 mask) TA_REQ(mmu_lock_);
  // False: the entry is no leaf any more.
  [[nodiscard]] bool split_leaf(TdpCursor& at, TablePage& child, u32 address_space)
      TA_REQ_SHARED(mmu_lock_);
  void split_range(TdpRoot& root, GfnRange range, unsigned target_level, TableCache& tables,
                   sync::BigReaderGuard& shared);
  [[nodiscard]] bool may_be_large(const Slot& slot, Gfn gfn, unsigned level);

  // Removal. remove_table: the caller has replaced `word`, which led to it, in its parent.
  void zap_range(TdpRoot& root, GfnRange range, pt::Gather* removed, bool may_yield, Half half,
                 sync::BigWriterGuard& alone) TA_REQ(mmu_lock_);
  void note_removed() TA_REQ(mmu_lock_) {
    removed_.store(removed_.load(sync::kRelaxed) + 1, sync::kRelease);
  }
  void note_flushed(u64 removals);
  void yield_alone(sync::BigWriterGuard& alone, pt::Gather* removed);
  void remove_table(Word word, Removal how, pt::Gather* removed) TA_EXCL(pages_lock_);
  // Freezes an entry, takes apart what was below, flushes, and only then makes it nonpresent, so
  // that nothing is installed between removal and flush. False: the entry changed, at.old() is new.
  [[nodiscard]] bool zap_entry_frozen(TdpCursor& at, pt::Gather* removed) TA_REQ_SHARED(mmu_lock_);
  // Unlinks one table by its parent. False: it was already. Analogue: kvm_tdp_mmu_zap_sp.
  bool zap_table(TablePage& table, pt::Gather* removed) TA_REQ(mmu_lock_);
  void check_table(TablePage& table, bool walked, PageCounts* found);
  TdpHost& host_;
  const TdpPolicy policy_;
  sync::Atomic<bool> nx_huge_pages_;  // relaxed: whoever changes it then invalidates the roots
  TablePool pool_;
  sync::BigReaderMutex mmu_lock_{sync::Rank::kSecondary};
  sync::Mutex pages_lock_{sync::Rank::kTdpPages};
  List<TdpRoot, &TdpRoot::link> roots_ TA_GUARDED(pages_lock_);
  List<TablePage, &TablePage::possible_nx> possible_nx_ TA_GUARDED(pages_lock_);
  sync::Atomic<u32> waiting_roots_{0};  // to be taken apart; under pages_lock_, read relaxed
  // Removals, and how many of them are known to be flushed. removed_: raised under mmu_lock_ alone,
  // after the entries were written (release), read by who is about to flush (acquire). flushed_:
  // raised after a flush (release), read under mmu_lock_ alone (acquire).
  sync::Atomic<u64> removed_{0};
  sync::Atomic<u64> flushed_{0};
  sync::Atomic<bool> warned_{false};  // once a VM; relaxed
};

}  // namespace stagetwo::stage2

// SPDX-License-Identifier: Apache-2.0
#include "base/check.h"
#include "base/trace.h"
#include "stage2/file_pages.h"
#include "stage2/tdp_mmu.h"

// The world checker of the tables, and the counts that are kept nowhere: both walk. The checker
// follows every table from every root, so it sees a leaf that stands where a table belongs, a table
// that two entries share, and a table that nobody leads to.
//
// It holds mmu_lock alone, which keeps out whoever installs and whoever removes, but not the
// lock-free way to the right to store:
//
//   vCPU, fast_page_fault                   | the audit
//   W by compare-and-exchange               |
//                                           | mmu_lock alone: W, and no mark
//   the mark; the read section ends         |
//
// So the walk writes the rights down (audit_right), and the marks are looked at when the read
// sections of then have ended (GuestMemory::check_world).
//
// An old root that every line has left is nobody's, and its leaves may be of slots that went. It is
// left when the epochs no longer have it, which is before whoever collects it comes to it:
//
//   vCPU, loads a root                      | slot update, then the audit
//   collect: the old root leaves the ring   |
//                                           | DELETE: a leaf of its slot there; flush; the slot
//                                           | is gone; collect: nothing in the ring
//                                           | the audit: a leaf of no slot
//   root_is_left: takes it apart            |

namespace stagetwo::stage2 {
namespace {

// A leaf against the slot it claims to be of.
void check_leaf(TdpHost& host, bool nx_huge_pages, const Slot* slot, Word leaf, u64 frame,
                unsigned level) {
  ST_CHECK(slot != nullptr);
  const u64 frames = pt::span_of<Format>(level);
  ST_CHECK(Gfn(frame) >= slot->base_gfn);
  ST_CHECK(Gfn(frame) + frames <= slot->gfns().end());
  // Tests have private entries of slots without a file.
  if (slot->file != nullptr && (slot->file_only || Format::is_private(leaf))) {
    ST_CHECK_OP(Format::output(leaf), ==, slot->file->gfn_to_hva(Gfn(frame)).raw());
  } else if (!Format::is_private(leaf)) {
    ST_CHECK_OP(Format::output(leaf), ==, slot->gfn_to_hva(Gfn(frame)).raw());
  }
  if ((slot->flags & kReadonly) != 0) ST_CHECK(!Format::is_host_writable(leaf));
  // D is set by stores through a writable entry; write protection leaves it.
  if (Format::is_dirty(leaf)) ST_CHECK(Format::is_mmu_writable(leaf));
  if (level > 1) ST_CHECK(!nx_huge_pages || !Format::is_executable(leaf));
  if ((slot->flags & kLogDirtyPages) == 0 || !Format::is_writable(leaf)) return;
  // Whoever gave the right marks the page, and whoever took the mark took the right as well.
  // A large leaf has it only while every page of it is marked from the beginning.
  ST_CHECK(level == 1 || slot->dirty != nullptr);
  for (u64 i = 0; slot->dirty != nullptr && i < frames; ++i) {
    host.audit_right(*slot, Gfn(frame) - slot->base_gfn + i);
  }
}

}  // namespace

void TdpMmu::check_table(TablePage& table, bool walked, PageCounts* found) {
  ST_CHECK(table.level >= 1);
  ST_CHECK(table.use == TableUse::kLinked);
  ST_CHECK(!table.marked);
  table.marked = true;
  ++found->tables;
  if (table.possible_nx.linked()) {
    ST_CHECK(table.nx_huge_page_disallowed.load(sync::kRelaxed));
    ++found->nx_lpage_splits;
  }
  const u64 span = pt::span_of<Format>(table.level);
  for (unsigned i = 0; i < kTableEntries; ++i) {
    const Word word = table.entries[i].load(sync::kAcquire);
    const u64 frame = table.gfn.raw() + i * span;
    ST_CHECK(!Format::is_frozen(word));
    ST_CHECK(!Format::is_present(word) ||
             (table.used.load(sync::kRelaxed) & TablePage::line_of(i)) != 0);  // I8
    ST_CHECK(Format::is_legal(word, table.level));
    ST_CHECK(!Format::is_mmio(word) || table.level == 1);
    if (Format::is_leaf(word, table.level)) {
      if (!walked) continue;
      check_leaf(host_, nx_huge_pages(), host_.audit_slot(table.address_space, Gfn(frame)), word,
                 frame, table.level);
    } else if (Format::is_table(word, table.level)) {
      TablePage* child = TablePage::of(pt::DirectMemory<Word>::entries(Format::output(word)));
      ST_CHECK_OP(unsigned{child->level}, ==, table.level - 1U);
      ST_CHECK_OP(child->gfn.raw(), ==, frame);
      ST_CHECK_OP(child->address_space, ==, table.address_space);
      ST_CHECK(child->parent == &table.entries[i]);
      check_table(*child, walked, found);
    }
  }
}

void TdpMmu::check_world() {
  const sync::BigWriterGuard alone(mmu_lock_);
  // Its last user takes a root off the list without the lock above: none comes or goes meanwhile.
  const sync::MutexGuard pages(pages_lock_);
  PageCounts found;
  roots_.for_each([&](TdpRoot& root) {
    ST_CHECK_OP(unsigned{root.page->level}, ==, policy_.root_level);
    ST_CHECK_OP(u32{root.page->address_space}, ==, root.address_space);
    // The MMU's own, unless it is invalid and zapped.
    const bool valid = !root.invalid.load(sync::kRelaxed);
    ST_CHECK(!valid || root.refs.load(sync::kRelaxed) >= 1);
    const bool left = ST_GUARD(audit_asks_epochs, !valid && !host_.epochs().is_waiting(&root));
    check_table(*root.page, !left, &found);
  });
  u64 linked = 0;
  pool_.for_each([&linked](TablePage& page) {
    if (page.use == TableUse::kLinked) ++linked;
    ST_CHECK(page.marked == (page.use == TableUse::kLinked));
    page.marked = false;
    ST_CHECK(!page.possible_nx.linked() || page.use == TableUse::kLinked);
  });
  ST_CHECK_OP(linked, ==, found.tables);
  ST_CHECK_OP(possible_nx_.count(), ==, found.nx_lpage_splits);
}

PageCounts TdpMmu::count_pages() TA_NO_ANALYSIS {
  PageCounts counts;
  sync::BigReaderGuard shared(mmu_lock_);
  for_each_root([&](TdpRoot& root) TA_NO_ANALYSIS {
    if (root.invalid.load(sync::kRelaxed)) return;
    ++counts.tables;
    const GfnRange everything(Gfn(0), pt::frame_limit<Format>(policy_.root_level));
    for (TdpCursor at = cursor(root, everything); at.valid(); at.next()) {
      // Nobody's fault waits for a statistic.
      if (at.progressed() && mmu_lock_.contended()) {
        shared.drop();
        ST_MARK(tdp_count_yields);
        shared.retake();
        at.mark_yielded();
        continue;
      }
      if (at.is_table()) ++counts.tables;
      if (!at.is_leaf()) continue;
      ++(at.level() == 1 ? counts.pages_4k : at.level() == 2 ? counts.pages_2m : counts.pages_1g);
    }
  });
  const sync::MutexGuard pages(pages_lock_);
  counts.nx_lpage_splits = possible_nx_.count();
  return counts;
}

}  // namespace stagetwo::stage2

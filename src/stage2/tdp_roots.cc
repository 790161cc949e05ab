// SPDX-License-Identifier: Apache-2.0
#include "base/check.h"
#include "base/guard.h"
#include "base/trace.h"
#include "stage2/tdp_mmu.h"

// Roots come and go while others walk them. A root is found only under the pages lock, where its
// count is raised; a count that has reached zero is never raised again, so whoever brought it there
// is alone with the root:
//
//   iterator                              | the last user
//                                         | refs 1 -> 0
//   pages lock: sees the root in the list |
//   refs is 0: skips it                   |
//   unlock                                | pages lock: unlinks it, unlock, frees it
//
// Only invalid roots end: a valid one still has the reference the MMU itself holds. Invalidation
// is the slot updater's whole exclusive section, so it costs as much as there are roots, whatever
// is mapped:
//
//   fault                                 | slot update
//   mmu_lock shared; root valid; installs |
//   unlock                                | mmu_lock alone: every root invalid; unlock
//   mmu_lock shared; root invalid: retry  | asks every line; request n
//   next entry or poll: another root      | mmu_lock shared: takes old trees apart, in pieces
//
// Nobody need wait for the lines there. What must not be in use any more is the slot that goes: if
// no root, valid or not, has an entry of it, and no removal is unflushed, no vCPU holds a
// translation of it (in_use). The rest of an old root is right as long as it stands: a change of
// the addresses below it, or a harvest, visits invalid roots, too, and flushes. So a root is taken
// apart, and with it the evidence, only when every line has passed its request:
//
//   vCPU, preempted in its section        | slot updates
//   walks root A, holds slot 1            |
//                                         | slot 2 moves: A invalid, request 7; slot 2 has no entry
//                                         | line: 6. A stays; nobody waits
//                                         | slot 1 goes: A has an entry of it: flush, waits
//   polls: drops A, request 8             | line: 8, A is taken apart; slot 1 is gone
//
// A line that passed walks an old root no more, but its thread may still have it in its context,
// outside, for the lock-free fast path: in a read section. Those are waited for before tables are
// given back; one that begins later finds nothing below the root.
//
// Nobody installs below an invalid root, so what is taken out of it need not be frozen; a table of
// level 1 is given back without a look at its entries. Removal by others (a notifier, alone; NX
// recovery) may still come, hence the exchanges.

namespace stagetwo::stage2 {
namespace {

// Tables that wait for one grace period. Bounds what an unmapping of everything holds back.
constexpr u64 kTablesPerGrace = 512;
// Above so many tables in the pool roots are not left standing for a line that does not poll.
constexpr u64 kTablesToLeave = 1024;

bool try_ref(TdpRoot& root) {
  u32 refs = root.refs.load(sync::kRelaxed);
  while (refs != 0) {
    if (root.refs.compare_exchange(refs, refs + 1, sync::kAcqRel)) return true;
  }
  return false;
}

}  // namespace

TdpCursor TdpMmu::cursor(const TdpRoot& root, GfnRange range, unsigned min_level) const {
  return {root.page->entries, policy_.root_level, min_level, range.start().raw(),
          range.end().raw()};
}

TdpRoot* TdpMmu::find_root(u32 address_space) {
  for (TdpRoot* root = roots_.front(); root != nullptr; root = roots_.next(root)) {
    if (root->address_space == address_space && !root->invalid.load(sync::kRelaxed)) return root;
  }
  return nullptr;
}

TdpRoot* TdpMmu::next_root(TdpRoot* after, bool* more) {
  TdpRoot* next = nullptr;
  if (*more) {
    const sync::MutexGuard pages(pages_lock_);
    next = after == nullptr ? roots_.front() : roots_.next(after);
    while (next != nullptr && !try_ref(*next)) next = roots_.next(next);
    *more = next != nullptr && roots_.next(next) != nullptr;
  }
  if (after != nullptr) put_root(after);
  return next;
}

void TdpMmu::put_root(TdpRoot* root) {
  if (root->refs.fetch_sub(1, sync::kAcqRel) != 1) return;
  ST_CHECK(root->invalid.load(sync::kRelaxed));
  {
    const sync::MutexGuard pages(pages_lock_);
    roots_.remove(root);
    root->page->use = TableUse::kRemoved;
  }
  // Whoever walked it had a reference, so there is nobody to wait for.
  pool_.give_back(root->page);
  destroy(root);
}

Result<void> TdpMmu::load_root(MmuContext& context, u32 address_space) {
  TdpRoot*& mine = context.roots_[address_space];
  drop_obsolete_roots(context);
  for (TdpRoot*& dropped : context.dropped_) {
    if (dropped != nullptr) put_root(std::exchange(dropped, nullptr));
  }
  if (mine != nullptr) return {};

  TablePage* page = nullptr;
  TdpRoot* made = nullptr;
  for (;;) {
    {
      // Shared, so that what is found valid is valid until the reference is taken.
      const sync::BigReaderGuard shared(mmu_lock_);
      const sync::MutexGuard pages(pages_lock_);
      TdpRoot* found = find_root(address_space);
      if (found != nullptr) {
        ST_CHECK(try_ref(*found));
        mine = found;
      } else if (made != nullptr) {
        mine = std::exchange(made, nullptr);
        mine->page->use = TableUse::kLinked;
        roots_.push_back(mine);
      }
    }
    if (mine != nullptr) break;
    made = ST_TRY(make<TdpRoot>("stage2.root"));
    page = pool_.allocate();
    if (page == nullptr) {
      destroy(made);
      return refuse(ENOMEM);
    }
    page->gfn = Gfn(0);
    page->level = static_cast<u8>(policy_.root_level);
    page->address_space = static_cast<u8>(address_space);
    made->mmu = this;
    made->page = page;
    made->address_space = address_space;
  }
  if (made != nullptr) {
    // Another context was first: share its root.
    pool_.give_back(page);
    destroy(made);
    ST_MARK(tdp_root_race);
  }
  // Whoever was the last to leave an old root takes it apart.
  if (waiting_roots_.load(sync::kRelaxed) != 0) zap_unwalked_roots();
  return {};
}

void TdpMmu::drop_obsolete_roots(MmuContext& context) {
  for (u32 i = 0; i < kMaxAddressSpaces; ++i) {
    TdpRoot* root = context.roots_[i];
    if (root == nullptr || !root->invalid.load(sync::kRelaxed)) continue;
    // The reference is given back where locks may be taken. One is enough: before the next root
    // is loaded, this one is gone.
    ST_DCHECK(context.dropped_[i] == nullptr);
    context.dropped_[i] = std::exchange(context.roots_[i], nullptr);
  }
}

void TdpMmu::release_context(MmuContext& context) {
  for (u32 i = 0; i < kMaxAddressSpaces; ++i) {
    if (context.roots_[i] != nullptr) put_root(std::exchange(context.roots_[i], nullptr));
    if (context.dropped_[i] != nullptr) put_root(std::exchange(context.dropped_[i], nullptr));
  }
}

MmuContext::MmuContext(TdpMmu& mmu) : mmu_(mmu), tables_(mmu.pool_) {}

MmuContext::~MmuContext() {
  mmu_.release_context(*this);
}

void TdpMmu::invalidate_all_roots() {
  u32 count = 0;
  {
    const sync::BigWriterGuard alone(mmu_lock_);
    const sync::MutexGuard pages(pages_lock_);
    roots_.for_each([&count](TdpRoot& root) {
      if (root.invalid.load(sync::kRelaxed)) return;
      root.invalid.store(true, sync::kRelaxed);
      ++count;
    });
    waiting_roots_.store(waiting_roots_.load(sync::kRelaxed) + count, sync::kRelaxed);
  }
  // Retired when nobody can load one any more, and before the lines are asked.
  for_each_root([this](TdpRoot& root) {
    {
      const sync::MutexGuard pages(pages_lock_);
      if (!root.invalid.load(sync::kRelaxed) || std::exchange(root.retired, true)) return;
    }
    host_.epochs().retire(&root, root_is_left);
  });
  host_.ask_for_flush();
  trace::emit(trace::Event::kvm_mmu_zap_all_fast, trace::Room::stage2, count);
}

bool TdpMmu::in_use(u32 address_space, GfnRange range) TA_NO_ANALYSIS {
  sync::BigReaderGuard shared(mmu_lock_);
  bool found = false;
  for_each_root([&](TdpRoot& root) TA_NO_ANALYSIS {
    if (root.address_space != address_space) return;
    for (TdpCursor at = cursor(root, range); !found && at.valid(); at.next()) {
      if (at.progressed() && mmu_lock_.contended()) {
        shared.drop();
        shared.retake();
        at.mark_yielded();
        continue;
      }
      // Frozen: its remover has not flushed yet.
      found = at.is_leaf() || Format::is_frozen(at.old());
    }
  });
  // Last, so that a removal that a yield let in is counted. Both are written under the lock alone,
  // or after a flush.
  return found || flushed_.load(sync::kAcquire) != removed_.load(sync::kAcquire);
}

// Every line has left it: the epochs give it back.
void TdpMmu::root_is_left(void* object) {
  TdpRoot& root = *static_cast<TdpRoot*>(object);
  TdpMmu& mmu = *root.mmu;
  {
    const sync::MutexGuard pages(mmu.pages_lock_);
    mmu.waiting_roots_.store(mmu.waiting_roots_.load(sync::kRelaxed) - 1, sync::kRelaxed);
  }
  {
    sync::BigReaderGuard shared(mmu.mmu_lock_);
    mmu.zap_root(root, shared);
  }
  mmu.put_root(&root);  // the MMU's own
}

void TdpMmu::zap_unwalked_roots() {
  host_.epochs().collect();
}

void TdpMmu::zap_invalidated_roots() {
  if (waiting_roots_.load(sync::kRelaxed) == 0) return;
  zap_unwalked_roots();
  if (waiting_roots_.load(sync::kRelaxed) == 0 || pool_.live() <= kTablesToLeave) return;
  flush();
  zap_unwalked_roots();
}

// One pass a level, the lowest tables first, so that no step between two yields is long: what a
// higher pass takes out has nothing below it but empty entries. No line walks the root.
void TdpMmu::zap_root(TdpRoot& root, sync::BigReaderGuard& shared) TA_NO_ANALYSIS {
  pt::Gather removed;
  const auto give_back = [&]() TA_NO_ANALYSIS {
    shared.drop();
    if (removed.has_tables()) host_.wait_for_sections();
    release(&removed);
    shared.retake();
  };
  const GfnRange everything(Gfn(0), pt::frame_limit<Format>(policy_.root_level));
  for (unsigned level = 2; level <= policy_.root_level; ++level) {
    for (TdpCursor at = cursor(root, everything, level); at.valid(); at.next()) {
      if (at.progressed() && (removed.table_count() >= kTablesPerGrace || mmu_lock_.contended())) {
        give_back();
        at.mark_yielded();
        continue;
      }
      if (at.level() != level) continue;
      Word was = at.old();
      while (Format::is_present(was) && !at.compare_exchange(Format::kNonpresent)) was = at.old();
      if (!Format::is_present(was)) continue;
      removed.add_range(at.frame(), at.frames());
      if (Format::is_table(was)) remove_table(was, Removal::kQuiet, &removed);
    }
  }
  give_back();
}

u32 TdpMmu::root_count() {
  const sync::MutexGuard pages(pages_lock_);
  return static_cast<u32>(roots_.count());
}

// Nobody is left: no context, no notifier, no reader.
TdpMmu::~TdpMmu() {
  pt::Gather removed;
  while (TdpRoot* root = roots_.pop_front()) {
    ST_CHECK_OP(root->refs.load(sync::kRelaxed), ==, 1U);
    const Word word = Format::make_table(reinterpret_cast<u64>(root->page->entries));
    remove_table(word, Removal::kAlone, &removed);
    destroy(root);
  }
  removed.flushed();
  removed.release<TablePage, &TablePage::gather>([this](TablePage* p) { pool_.give_back(p); });
}

}  // namespace stagetwo::stage2

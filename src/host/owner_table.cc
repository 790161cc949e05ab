// SPDX-License-Identifier: Apache-2.0
#include "host/owner_table.h"

#include <climits>

#include "base/check.h"
#include "base/guard.h"
#include "base/trace.h"
#include "sync/futex.h"

// Exactly once: whoever turns kAbsent into kFilling under the lock calls the owner; everybody else
// waits for the turn and looks again.
//
//   toucher A                     | toucher B                    | taker
//   lock; absent → filling; unlock|                              |
//   owner.bring_back              | lock; filling: sees turn t   |
//   lock; erase; turn t + 1       | sleeps while turn is t       |
//   wake                          | lock; no record: it is back  | may take it again
//
// A touch the kernel reports is answered under the lock when the page is nobody's: between a look
// without the lock and the page of zeros, a taker could have taken it, and the zeros would stand
// for its bytes.
//
// A change and a taker: the change enters `changes_` under the lock, the taker looks there under
// the lock before it makes a record. Either the taker sees the change and leaves the page, or the
// change finds the record and waits for it. Whoever changes the address space before the table
// exists is waited for by its maker (host::wait_for_changes).

namespace stagetwo::host {
namespace {

constexpr unsigned kBatch = 256;

bool in_transit(PageStage stage) {
  return stage == PageStage::kTaking || stage == PageStage::kReading ||
         stage == PageStage::kFilling;
}

}  // namespace

u64 PageKey::hash() const {
  return hash_u64(index ^ hash_u64(object));
}

PageTransit OwnerTable::transit_of(PageKey key, const PageRecord& record) {
  return PageTransit(key, record.at, record.hiding, record.prot, this);
}

void OwnerTable::turn_over() {
  turn_.fetch_add(1, sync::kRelease);
  sync::futex_wake(turn_, INT_MAX);
}

void OwnerTable::wait_turn(u32 seen) {
  sync::futex_wait(turn_, seen);
}

void OwnerTable::forget_spans() {
  if (!pages_.empty() || takers_ != 0) return;
  for (const HvaRange& span : spans_) userfault::forget(span);
  spans_.clear();
}

Result<void> OwnerTable::note_watched(HvaRange span) {
  const sync::MutexGuard guard(lock_);
  for (const HvaRange& known : spans_) {
    if (known.contains(span.start()) && span.end() <= known.end()) return {};
  }
  return spans_.push_back(span);
}

// ---- taking ---------------------------------------------------------------------------------

void OwnerTable::begin_take() {
  for (;;) {
    u32 seen = 0;
    {
      const sync::MutexGuard guard(lock_);
      if (forks_ == 0) {
        ++takers_;
        return;
      }
      seen = turn_.load(sync::kAcquire);
    }
    wait_turn(seen);
  }
}

void OwnerTable::end_take() {
  const sync::MutexGuard guard(lock_);
  --takers_;
  forget_spans();
  turn_over();
}

bool OwnerTable::refuses(PageKey key) {
  const Hva at(key.index << kPageShift);
  for (const OwnedChange* change = changes_; change != nullptr; change = change->next_) {
    if (change->range_.contains(at)) return ST_GUARD(owners_change, true);
  }
  return is_held(at);
}

// A page of userfaultfd's that is absent has no entry. If it has one, its address was unmapped
// behind our back (libc's own free of a large block) and used again: the bytes are nobody's. Pre:
// this thread made the record kTaking.
bool OwnerTable::drop_if_stale(PageKey key, const PageRecord& record) {
  PageState state;
  const bool stale = page_states(record.at, 1, &state) && state.present;
  if (stale) record.owner->discard({key, record.at, record.writable});
  const sync::MutexGuard guard(lock_);
  if (stale) {
    pages_.erase(key);
  } else {
    pages_.find(key)->stage = PageStage::kAbsent;
  }
  turn_over();
  return stale;
}

// Makes the record. A page that is just coming back is waited for: its toucher may be on its way
// before the record is gone.
bool OwnerTable::enter(PageKey key, const PageRecord& fresh) {
  for (;;) {
    u32 seen = 0;
    PageRecord absent;
    {
      const sync::MutexGuard guard(lock_);
      if (refuses(key)) return false;
      PageRecord* record = pages_.find(key);
      if (record == nullptr) {
        if (fresh.hiding == Hiding::kProtection) ever_protected_.store(true, sync::kRelaxed);
        return pages_.insert(key, fresh).has_value();
      }
      const bool may_be_stale =
          record->stage == PageStage::kAbsent && record->hiding == Hiding::kUserfault;
      if (!may_be_stale && record->stage != PageStage::kFilling) return false;
      if (may_be_stale) {
        record->stage = PageStage::kTaking;
        absent = *record;
      }
      seen = turn_.load(sync::kAcquire);
    }
    if (absent.owner == nullptr) {
      wait_turn(seen);
    } else if (!drop_if_stale(key, absent)) {
      userfault::wake(page_at(absent.at));  // who touched it meanwhile
      return false;
    }
  }
}

bool OwnerTable::take(PageKey key, const PageRecord& fresh) {
  if (!enter(key, fresh)) return false;
  PageTransit transit = transit_of(key, fresh);
  const bool taken = fresh.owner->take({key, fresh.at, fresh.writable}, transit);
  ST_DCHECK(taken == transit.left());
  {
    const sync::MutexGuard guard(lock_);
    if (taken) {
      pages_.find(key)->stage = PageStage::kAbsent;
    } else {
      pages_.erase(key);
    }
    turn_over();
  }
  if (fresh.hiding == Hiding::kUserfault) userfault::wake(page_at(fresh.at));
  return taken;
}

void OwnerTable::reading(PageKey key, bool on) {
  const sync::MutexGuard guard(lock_);
  pages_.find(key)->stage = on ? PageStage::kReading : PageStage::kTaking;
}

// ---- bringing back --------------------------------------------------------------------------

BringBack OwnerTable::bring_back(PageKey key) {
  bool waited = false;
  for (;;) {
    u32 seen = 0;
    PageRecord mine;
    bool is_mine = false;
    {
      const sync::MutexGuard guard(lock_);
      PageRecord* record = pages_.find(key);
      if (record == nullptr) return waited ? BringBack::kBack : BringBack::kNotAbsent;
      if (record->stage == PageStage::kLost) return BringBack::kLost;
      if (record->stage == PageStage::kAbsent || !ST_GUARD(owners_filling, true)) {
        record->stage = PageStage::kFilling;
        mine = *record;
        is_mine = true;
      }
      seen = turn_.load(sync::kAcquire);
    }
    if (is_mine) return fill(key, mine);
    waited = true;
    wait_turn(seen);  // progress: who has the page waits for none of us
  }
}

// Pre: this thread made the record kFilling.
BringBack OwnerTable::fill(PageKey key, const PageRecord& record) {
  trace::emit(trace::Event::st_owner_ask, trace::Room::host, key.object, key.index);
  PageTransit transit = transit_of(key, record);
  const BringBack outcome = record.owner->bring_back({key, record.at, record.writable}, transit);
  if (outcome == BringBack::kLost) transit.make_lost();
  finish(key, outcome);
  if (record.hiding == Hiding::kUserfault) userfault::wake(page_at(record.at));
  return outcome;
}

void OwnerTable::finish(PageKey key, BringBack outcome) {
  const sync::MutexGuard guard(lock_);
  if (outcome == BringBack::kBack) {
    pages_.erase(key);
    forget_spans();
  } else {
    pages_.find(key)->stage = outcome == BringBack::kLost ? PageStage::kLost : PageStage::kAbsent;
  }
  turn_over();
}

void OwnerTable::resolve(const userfault::Touch& touch) {
  const PageKey key = private_key(touch.page);
  PageRecord mine;
  {
    const sync::MutexGuard guard(lock_);
    PageRecord* record = pages_.find(key);
    const bool nobodys = record == nullptr || record->stage == PageStage::kReading;
    if (nobodys && touch.write_protected && record == nullptr) {
      static_cast<void>(userfault::write_protect(touch.page, false));
    }
    if (nobodys && !touch.write_protected) {
      static_cast<void>(userfault::zero(touch.page));  // or it is there already
      userfault::wake(page_at(touch.page));
    }
    if (nobodys || record->stage != PageStage::kAbsent) return;  // who has it wakes the page
    record->stage = PageStage::kFilling;
    mine = *record;
  }
  static_cast<void>(fill(key, mine));
}

bool OwnerTable::find(PageKey key, PageRecord* out) {
  const sync::MutexGuard guard(lock_);
  const PageRecord* record = pages_.find(key);
  if (record == nullptr) return false;
  *out = *record;
  return true;
}

bool OwnerTable::is_absent(PageKey key) {
  for (;;) {
    u32 seen = 0;
    {
      const sync::MutexGuard guard(lock_);
      const PageRecord* record = pages_.find(key);
      if (record == nullptr) return false;
      if (!in_transit(record->stage)) return true;
      seen = turn_.load(sync::kAcquire);
    }
    wait_turn(seen);
  }
}

// ---- announced changes ----------------------------------------------------------------------

// One look at the pages of a change. True: none is in transit, and those that die are closing.
bool OwnerTable::settle_for(OwnedChange& change, u32* seen) {
  bool settled = true;
  const auto look = [&](PageRecord& record) {
    change.met_pages_ = true;
    if (record.stage == PageStage::kAbsent) record.stage = PageStage::kClosing;
    if (in_transit(record.stage)) settled = false;
    return false;
  };
  *seen = turn_.load(sync::kAcquire);
  collect(change.range_, nullptr, 1, look);
  return settled;
}

void OwnerTable::open_change(OwnedChange* change) {
  {
    const sync::MutexGuard guard(lock_);
    change->next_ = changes_;
    changes_ = change;
  }
  if (change->what_ == Announced::kUnmaps || change->what_ == Announced::kClears) {
    u32 seen = 0;
    while (!settle_for(*change, &seen)) wait_turn(seen);
    return;
  }
  const bool all = change->what_ == Announced::kMoves;
  PageKey keys[kBatch];
  for (;;) {
    const unsigned count = collect(change->range_, keys, kBatch, [&](const PageRecord& record) {
      return record.stage != PageStage::kLost && (all || record.hiding == Hiding::kProtection);
    });
    if (count == 0) return;
    for (unsigned i = 0; i < count; ++i) static_cast<void>(bring_back(keys[i]));
  }
}

void OwnerTable::close_change(OwnedChange* change) {
  if (change->met_pages_) {
    if (change->succeeded_) {
      discard_closing(change->range_, change->what_);
    } else {
      reopen_closing(change->range_);
    }
  }
  {
    const sync::MutexGuard guard(lock_);
    OwnedChange** link = &changes_;
    while (*link != change) link = &(*link)->next_;
    *link = change->next_;
    turn_over();
  }
  // Who touched a closing page sleeps in the kernel.
  if (change->met_pages_) userfault::wake(change->range_);
}

void OwnerTable::discard_closing(HvaRange range, Announced what) {
  PageKey keys[kBatch];
  for (;;) {
    const unsigned count = collect(range, keys, kBatch, [](const PageRecord& record) {
      return record.stage == PageStage::kClosing || record.stage == PageStage::kLost;
    });
    if (count == 0) return;
    for (unsigned i = 0; i < count; ++i) {
      PageRecord record;
      if (!find(keys[i], &record)) continue;
      if (record.stage == PageStage::kClosing) {
        record.owner->discard({keys[i], record.at, record.writable});
        if (what == Announced::kClears) transit_of(keys[i], record).undo();
      }
      const sync::MutexGuard guard(lock_);
      pages_.erase(keys[i]);
      forget_spans();
    }
  }
}

void OwnerTable::reopen_closing(HvaRange range) {
  collect(range, nullptr, 1, [](PageRecord& record) {
    if (record.stage == PageStage::kClosing) record.stage = PageStage::kAbsent;
    return false;
  });
}

// ---- fork -----------------------------------------------------------------------------------

void OwnerTable::before_fork() {
  PageKey keys[kBatch];
  {
    const sync::MutexGuard guard(lock_);
    ++forks_;
  }
  for (;;) {
    u32 seen = 0;
    unsigned count = 0;
    bool takers = false;
    {
      const sync::MutexGuard guard(lock_);
      seen = turn_.load(sync::kAcquire);
      takers = takers_ != 0;
      pages_.for_each([&](const PageKey& key, const PageRecord& record) {
        if (count < kBatch && record.stage != PageStage::kLost) keys[count++] = key;
      });
    }
    if (count == 0 && !takers) return;
    for (unsigned i = 0; i < count; ++i) static_cast<void>(bring_back(keys[i]));
    if (takers && count == 0) wait_turn(seen);
  }
}

void OwnerTable::after_fork_parent() {
  const sync::MutexGuard guard(lock_);
  --forks_;
  turn_over();
}

}  // namespace stagetwo::host

// SPDX-License-Identifier: Apache-2.0
#include "host/owner_collect.h"

#include <algorithm>
#include <climits>

#include "base/check.h"
#include "base/guard.h"
#include "base/sys.h"
#include "base/trace.h"
#include "host/blocked_faults.h"
#include "host/pin.h"
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

constexpr u64 kLookAgainNs = 10'000'000;

}  // namespace

u64 PageKey::hash() const {
  return hash_u64(index ^ hash_u64(object));
}

PageTransit OwnerTable::transit_of(PageKey key, const PageJob& job) {
  return PageTransit(key, job.views, job.record.hiding, this);
}

// Nobody waits for most turns, and then there is no system call. Who is going to has said so under
// the lock, with the turn that was then: sooner or later asleep, he is woken or finds another.
void OwnerTable::turn_over() {
  turn_.fetch_add(1, sync::kRelease);
  if (!awaited_) return;
  awaited_ = false;
  sync::futex_wake(turn_, INT_MAX);
}

u32 OwnerTable::await_turn() {
  awaited_ = true;
  return turn_.load(sync::kAcquire);
}

void OwnerTable::wait_turn(u32 seen, u64 at_most_ns) {
  sync::futex_wait(turn_, seen, at_most_ns);
}

// ---- taking ---------------------------------------------------------------------------------

void OwnerTable::begin_take() {
  forks_.leave();
  for (;;) {
    u32 seen = 0;
    {
      const sync::MutexGuard guard(lock_);
      if (!forks_.any()) {
        ++takers_;
        return;
      }
      seen = await_turn();
    }
    // Nobody wakes us for a fork that was jumped out of.
    wait_turn(seen, kLookAgainNs);
  }
}

void OwnerTable::end_take() {
  const sync::MutexGuard guard(lock_);
  --takers_;
  forget_spans();
  turn_over();
}

namespace {

// Does a device have it, by any of its addresses?
bool is_pinned(PageKey key, const PageViews& views) {
  if (!pins_active()) return false;
  if (key.object != kPrivateMemory && keeps_file_page(key)) return true;
  for (const PageView& view : views) {
    if (keeps_page(view.at)) return true;
  }
  return false;
}

}  // namespace

OwnerTable::Refusal OwnerTable::refusal(PageKey key, const PageViews& views) {
  for (const OwnedChange* change = changes_; change != nullptr; change = change->next_) {
    for (const PageView& view : views) {
      if (!within(key, view.at, change->reach_)) continue;
      if (ST_GUARD(owners_change, true)) return Refusal::kChange;
    }
  }
  const bool pinned = ST_GUARD(pins_keep, is_pinned(key, views));
  return pinned || is_held(key, views) ? Refusal::kHeld : Refusal::kNone;
}

bool OwnerTable::refuses(PageKey key, const PageViews& views) {
  Refusal why = refusal(key, views);
  if (why == Refusal::kNone && stands_on(views)) why = Refusal::kHeld;
  counts_.refused_change += why == Refusal::kChange ? 1 : 0;
  counts_.refused_held += why == Refusal::kHeld ? 1 : 0;
  return why != Refusal::kNone;
}

// A page of userfaultfd's that is absent has no entry. If it has one, its address was unmapped
// behind our back (libc's own free of a large block) and used again: the bytes are nobody's. Pre:
// this thread made the record kTaking.
bool OwnerTable::drop_if_stale(PageKey key, const PageJob& job) {
  const PageRecord& record = job.record;
  PageState state;
  const bool stale = page_states(record.at, 1, &state) && state.present;
  if (stale) record.owner->discard({key, record.at, record.writable});
  const sync::MutexGuard guard(lock_);
  if (stale) {
    erase(key);
  } else {
    pages_.find(key)->stage = PageStage::kAbsent;
  }
  turn_over();
  return stale;
}

// Makes the record and finds the views of the page. A page that is just coming back is waited for:
// its toucher may be on its way before the record is gone.
bool OwnerTable::enter(PageKey key, u32 layout, PageJob* job) {
  const PageRecord& fresh = job->record;
  for (;;) {
    u32 seen = 0;
    PageJob absent;
    {
      const sync::MutexGuard guard(lock_);
      footings_.count_taking();
      const bool looked_up = layout != kAnyLayout;
      if (looked_up && ST_GUARD(owners_layout, layout != layout_)) return false;
      job->views = views_at(key, fresh);
      if (job->views.count == 0) ++counts_.refused_shared;
      if (job->views.count == 0 || refuses(key, job->views)) return false;
      PageRecord* record = pages_.find(key);
      if (record == nullptr) {
        if (fresh.hiding == Hiding::kProtection) ever_protected_.store(true, sync::kRelaxed);
        return insert(key, fresh);
      }
      const bool may_be_stale =
          record->stage == PageStage::kAbsent && record->hiding == Hiding::kUserfault;
      if (!may_be_stale && record->stage != PageStage::kFilling) return false;
      if (may_be_stale) {
        record->stage = PageStage::kTaking;
        absent = {*record, views_at(key, *record)};
      }
      seen = await_turn();
    }
    if (absent.record.owner == nullptr) {
      wait_turn(seen);
      continue;
    }
    const bool dropped = drop_if_stale(key, absent);
    transit_of(key, absent).wake();  // who touched it meanwhile
    if (!dropped) return false;
  }
}

u32 OwnerTable::layout() {
  const sync::MutexGuard guard(lock_);
  return layout_;
}

bool OwnerTable::take(PageKey key, const PageRecord& fresh, u32 layout) {
  PageJob job{fresh, {}};
  const Footings::Taking taking(footings_);
  if (!enter(key, layout, &job)) return false;
  const PagesInHand in_hand;
  PageTransit transit = transit_of(key, job);
  if (fresh.owner->takes_locked()) transit.take_locked();
  const bool taken = fresh.owner->take({key, fresh.at, fresh.writable}, transit);
  ST_DCHECK(taken == transit.left());
  {
    const sync::MutexGuard guard(lock_);
    PageRecord* record = pages_.find(key);
    ++(taken ? counts_.taken : counts_.refused_owner);
    if (taken || transit.is_hidden()) record->stage = PageStage::kAbsent;
    if (transit.is_hidden()) record->owner = nullptr;
    if (record->stage != PageStage::kAbsent) erase(key);
    turn_over();
  }
  transit.wake();
  return taken;
}

void OwnerTable::reading(PageKey first, unsigned pages, bool on) {
  const sync::MutexGuard guard(lock_);
  for (unsigned i = 0; i < pages; ++i) {
    pages_.find(behind(first, i))->stage = on ? PageStage::kReading : PageStage::kTaking;
  }
}

// ---- bringing back --------------------------------------------------------------------------

BringBack OwnerTable::bring_back(PageKey key, bool unasked) {
  const BringBack outcome = bring_back_one(key, nullptr, unasked);
  return outcome == BringBack::kStuck ? show_run(key) : outcome;
}

BringBack OwnerTable::bring_back(Hva at) {
  PageKey key;
  const BringBack outcome = bring_back_one(key, &at);
  return outcome == BringBack::kStuck ? show_run(key) : outcome;
}

BringBack OwnerTable::bring_back_one(PageKey& key, const Hva* at, bool unasked) {
  bool waited = false;
  for (;;) {
    u32 seen = 0;
    PageJob job;
    bool mine = false;
    {
      const sync::MutexGuard guard(lock_);
      if (at != nullptr && !waited) key = key_at(*at);
      PageRecord* record = pages_.find(key);
      if (record == nullptr) return waited ? BringBack::kBack : BringBack::kNotAbsent;
      const bool lost = record->stage == PageStage::kLost;
      mine = !lost && (record->stage == PageStage::kAbsent || !ST_GUARD(owners_filling, true));
      if (mine) record->stage = PageStage::kFilling;
      // Its end looks at the cell behind it, which comes while the owner is asked.
      __builtin_prefetch(record + 3);
      if (mine || lost) job = {*record, views_at(key, *record)};
      if (!mine && !lost) seen = await_turn();
    }
    if (mine) return fill(key, job, unasked);
    if (job.record.stage == PageStage::kLost) {
      return fell_away(key, job) ? BringBack::kNotAbsent : BringBack::kLost;
    }
    waited = true;
    wait_turn(seen);  // progress: who has the page waits for none of us
  }
}

// Pre: this thread made the record kFilling.
BringBack OwnerTable::fill(PageKey key, const PageJob& job, bool unasked) {
  trace::emit(trace::Event::st_owner_ask, trace::Room::host, key.object, key.index);
  const PageRecord& record = job.record;
  const PagesInHand in_hand;
  PageTransit transit = transit_of(key, job);
  BringBack outcome = BringBack::kBack;
  if (record.in_place()) {
    transit.show();
  } else {
    outcome = record.owner->bring_back({key, record.at, record.writable, unasked}, transit);
  }
  const bool hidden = outcome == BringBack::kBack && transit.is_hidden();
  if (hidden || (outcome == BringBack::kRetry && transit.no_room())) outcome = BringBack::kStuck;
  if (outcome == BringBack::kLost) transit.make_lost();
  // Without one that the resolver knows of there is nobody to wake: it reads of a touch before, and
  // marks the record, or after, and finds none.
  if (finish(key, outcome, hidden)) transit.wake();
  return outcome;
}

bool OwnerTable::finish(PageKey key, BringBack outcome, bool in_place) {
  const sync::MutexGuard guard(lock_);
  PageRecord* record = pages_.find(key);
  const bool touched = record->touched || outcome == BringBack::kLost;
  record->touched = false;
  if (outcome == BringBack::kBack) {
    ++counts_.back;
    erase(key);
  } else {
    const bool lost = outcome == BringBack::kLost;
    ++(lost ? counts_.lost : counts_.retries);
    counts_.lost_now += lost ? 1 : 0;
    record->stage = lost ? PageStage::kLost : PageStage::kAbsent;
    if (in_place) record->owner = nullptr;
  }
  turn_over();
  return touched;
}

// A lost page whose address means something else by now, which nobody announced. True: its record
// is gone.
bool OwnerTable::fell_away(PageKey key, const PageJob& lost) {
  if (key.object != kPrivateMemory || transit_of(key, lost).stands()) return false;
  const auto shown = shown_mapping_at(lost.record.at);
  if (shown && shown->file_backed) return false;  // what make_bus_error() maps
  if (!shown && to_int(shown.error()) != EFAULT) return false;
  const sync::MutexGuard guard(lock_);
  const PageRecord* record = pages_.find(key);
  if (record != nullptr && record->stage == PageStage::kLost) erase(key);
  return true;
}

bool OwnerTable::resolve(const userfault::Touch& touch) {
  PageKey key;
  PageJob mine;
  {
    const sync::MutexGuard guard(lock_);
    key = key_at(touch.page);
    PageRecord* record = pages_.find(key);
    const bool nobodys = record == nullptr || record->stage == PageStage::kReading;
    if (nobodys && touch.write_protected && record == nullptr) {
      static_cast<void>(userfault::write_protect(page_at(touch.page), false));
    }
    if (nobodys && !touch.write_protected) {
      static_cast<void>(userfault::zero(touch.page));  // or it is there already
    }
    // Who reads a page that is in place lets its writers wait until it is done.
    if (nobodys && (record == nullptr || !touch.write_protected)) {
      userfault::wake(page_at(touch.page));
    }
    if (nobodys) return record == nullptr && !touch.write_protected;
    mine = {*record, views_at(key, *record)};
    // A discard of a shared view's entries takes the mark of a lost page with it.
    if (record->stage == PageStage::kLost) {
      PageTransit transit = transit_of(key, mine);
      transit.make_lost();
      transit.wake();
      return false;
    }
    record->touched = true;
    if (record->stage != PageStage::kAbsent) return false;  // who has it wakes the page
    record->stage = PageStage::kFilling;
  }
  static_cast<void>(fill(key, mine));
  return false;
}

PageKey OwnerTable::key_of(Hva at) {
  const sync::MutexGuard guard(lock_);
  return key_at(at);
}

bool OwnerTable::find(PageKey key, PageRecord* out) {
  const sync::MutexGuard guard(lock_);
  const PageRecord* record = pages_.find(key);
  if (record == nullptr) return false;
  *out = *record;
  return true;
}

bool OwnerTable::find_hidden(Hva at, Prot* prot) {
  const sync::MutexGuard guard(lock_);
  const PageKey key = key_at(at);
  const PageRecord* record = pages_.find(key);
  if (record == nullptr || record->hiding != Hiding::kProtection) return false;
  for (const PageView& view : views_at(key, *record)) {
    if (view.at == page_floor(at)) *prot = view.prot;
  }
  return true;
}

bool OwnerTable::has_private(HvaRange range) {
  PageKey any[1];
  return collect({kPrivateMemory, range}, any, 1, [](const PageKey& key, const PageRecord&) {
           return key.object == kPrivateMemory;
         }) != 0;
}

bool OwnerTable::is_absent(PageKey key) {
  for (;;) {
    u32 seen = 0;
    {
      const sync::MutexGuard guard(lock_);
      const PageRecord* record = pages_.find(key);
      if (record == nullptr) return false;
      if (!in_transit(record->stage)) return true;
      seen = await_turn();
    }
    wait_turn(seen);
  }
}

// ---- announced changes ----------------------------------------------------------------------

// One look at the pages of a change. True: none is in transit, and those that die are closing.
// Discarding a shared view's entries leaves the file, and what is absent of it, alone.
bool OwnerTable::settle_for(OwnedChange& change, u32* seen) {
  bool settled = true;
  const bool leaves_files = change.what_ == Announced::kClears;
  const auto look = [&](const PageKey& key, PageRecord& record) {
    if (leaves_files && key.object != kPrivateMemory) return false;
    change.met_pages_ = true;
    // What another view goes on showing is as absent as before.
    const bool stays = change.what_ == Announced::kUnmaps && key.object != kPrivateMemory;
    if (record.stage == PageStage::kAbsent && !stays) record.stage = PageStage::kClosing;
    if (in_transit(record.stage)) settled = false;
    return false;
  };
  {
    const sync::MutexGuard guard(lock_);
    *seen = await_turn();
  }
  collect(change.reach_, nullptr, 1, look);
  return settled;
}

// What a change may not find absent: of an unmapping also what other views show (`all`), or only
// what none would show any more. False: some of it still is.
bool OwnerTable::fetch_for(const OwnedChange& change, bool all) {
  const Announced what = change.what_;
  if (what == Announced::kClears || what == Announced::kPunches) return true;
  const auto is_wanted = [&](const PageKey& key, const PageRecord& record) {
    lock_.assert_held();
    if (record.stage == PageStage::kLost) return false;
    if (what == Announced::kProtects) return record.hiding == Hiding::kProtection;
    if (what == Announced::kMoves) return true;
    return key.object != kPrivateMemory && (all || !stays_elsewhere(key, record, change));
  };
  PageKey keys[kBatch];
  for (unsigned asked = 0; asked < kMostAsks;) {
    const unsigned count = collect(change.reach_, keys, kBatch, is_wanted);
    if (count == 0) return true;
    unsigned asks = 0;
    for (unsigned i = 0; i < count; ++i) asks = std::max(asks, asks_of(bring_back(keys[i], true)));
    asked = asks == 0 ? 0 : asked + asks;
    sync::yield_thread();
  }
  return false;
}

void OwnerTable::open_change(OwnedChange* change) {
  {
    const sync::MutexGuard guard(lock_);
    change->next_ = changes_;
    change->open_ = true;
    changes_ = change;
  }
  const bool leaves = fetch_for(*change, false) && begin_leaving(*change);
  change->refused_ = !leaves && !fetch_for(*change, true);
  // Of what is still absent touches are reported as before.
  const bool moves = change->what_ == Announced::kMoves && !change->refused_;
  const bool private_memory = change->reach_.object == kPrivateMemory;
  if (moves && private_memory && ST_GUARD(owners_undivided, true)) {
    change->refused_ = !stop_watching(change->reach_.range);
  }
  if (change->what_ == Announced::kMoves || change->what_ == Announced::kProtects) return;
  u32 seen = 0;
  while (!settle_for(*change, &seen)) wait_turn(seen);
}

void OwnerTable::close_change(OwnedChange* change) {
  const bool private_memory = change->reach_.object == kPrivateMemory;
  const bool unmapped = change->what_ == Announced::kUnmaps && change->succeeded_;
  if (!settle_leaving(*change)) change->refused_ = true;
  if (private_memory && unmapped && touches_are_signals()) forget_stacks(change->reach_.range);
  {
    const sync::MutexGuard guard(lock_);
    change->open_ = false;
  }
  if (change->met_pages_) settle_closing(*change);
  {
    const sync::MutexGuard guard(lock_);
    // Nobody relies any more on what was there.
    const bool watched = std::any_of(spans_.begin(), spans_.end(), [&](const WatchedSpan& span) {
      return span.range.overlaps(change->reach_.range);
    });
    if (watched || !private_memory) footings_.count_taking();
    if (private_memory && change->what_ != Announced::kClears &&
        change->what_ != Announced::kPunches) {
      ++layout_;
      if (change->what_ == Announced::kProtects) {
        forget_rights(change->reach_.range);
      } else if (!change->refused_) {
        forget_views(change->reach_.range);
      }
      if (unmapped) static_cast<void>(cut_spans(change->reach_.range, false));
    }
    end_leaving(*change);
    OwnedChange** link = &changes_;
    while (*link != change) link = &(*link)->next_;
    *link = change->next_;
    turn_over();
  }
  // Who touched a closing page sleeps in the kernel.
  if (change->met_pages_) wake(change->reach_);
}

void OwnerTable::wake(const Reach& reach) {
  if (reach.object == kPrivateMemory) return userfault::wake(reach.range);
  const sync::MutexGuard guard(lock_);
  for (const SharedView& view : views_) {
    if (view.object == reach.object) userfault::wake(view.range);
  }
}

namespace {
// Does the page die with it? One of a file, whoever unmaps it waits for; it ends with its hole
// only.
bool ends_with(Announced what, PageKey key) {
  if (key.object != kPrivateMemory) return what == Announced::kPunches;
  return what != Announced::kMoves && what != Announced::kProtects;
}
}  // namespace

// Is there a change that the page dies with if it succeeds, and that is not ending in failure?
// Changes of one range may overlap: between a call and its change's end, the addresses may be
// somebody else's.
bool OwnerTable::closes_too(PageKey key, Hva at) const {
  for (const OwnedChange* other = changes_; other != nullptr; other = other->next_) {
    const bool fails = !other->open_ && !other->succeeded_;
    if (ends_with(other->what_, key) && !fails && within(key, at, other->reach_)) return true;
  }
  return false;
}

// The pages that waited for the change's end. One that another change closes, too, is left to it if
// this one has failed; else the first to come settles it.
void OwnerTable::settle_closing(const OwnedChange& change) {
  PageKey keys[kBatch];
  for (;;) {
    const auto waits = [&](const PageKey& key, const PageRecord& record) {
      lock_.assert_held();
      const bool left = !change.succeeded_ && closes_too(key, record.at);
      if (left && ST_GUARD(owners_closing, true)) return false;
      const bool dies = change.succeeded_ && ends_with(change.what_, key);
      const bool lost = dies && record.stage == PageStage::kLost;
      return record.stage == PageStage::kClosing || lost;
    };
    const unsigned count = collect(change.reach_, keys, kBatch, waits);
    if (count == 0) return;
    for (unsigned i = 0; i < count; ++i) {
      PageJob job;
      {
        const sync::MutexGuard guard(lock_);
        PageRecord* record = pages_.find(keys[i]);
        if (record == nullptr || !waits(keys[i], *record)) continue;  // another change has it
        job = {*record, views_at(keys[i], *record)};
        const bool closing = record->stage == PageStage::kClosing;
        if (closing && ST_GUARD(owners_settle, true)) record->stage = PageStage::kTaking;
      }
      settle_page(change, keys[i], job);
    }
  }
}

// A call that failed may have unmapped the page all the same: mmap unmaps first and asks the file
// then.
void OwnerTable::settle_page(const OwnedChange& change, PageKey key, const PageJob& job) {
  PageTransit transit = transit_of(key, job);
  const bool closing = job.record.stage == PageStage::kClosing;
  const bool unmaps = change.what_ == Announced::kUnmaps;
  const bool may_unmap = unmaps || change.what_ == Announced::kClears;  // or who was left to us
  const bool changed =
      change.succeeded_ || (may_unmap && ST_GUARD(owners_failed, !transit.stands()));
  const bool dies = changed && ends_with(change.what_, key);
  if (dies && closing && !job.record.in_place()) {
    job.record.owner->discard({key, job.record.at, job.record.writable});
  }
  if (dies && closing && !unmaps && job.record.hiding == Hiding::kProtection) transit.show();
  const sync::MutexGuard guard(lock_);
  PageRecord* record = pages_.find(key);
  if (record == nullptr) return;  // it was lost, and somebody has found that it means nothing now
  if (dies) ++counts_.discarded;
  // Under the lock: whoever touches it in between would be told again that it is lost.
  if (dies && record->stage == PageStage::kLost) transit.heal();
  if (dies && !transit.is_hidden()) return erase(key);
  if (dies) record->owner = nullptr;
  if (record->stage == PageStage::kLost) --counts_.lost_now;
  record->stage = PageStage::kAbsent;
}

// ---- statistics -----------------------------------------------------------------------------

OwnerCounts OwnerTable::counts() {
  const sync::MutexGuard guard(lock_);
  OwnerCounts counts = counts_;
  counts.now = pages_.size();
  return counts;
}

}  // namespace stagetwo::host

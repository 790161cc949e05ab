// SPDX-License-Identifier: Apache-2.0
// Several pages in one go: one lock, one call of the owner, one system call to move them and one to
// wake their touchers. What cannot be done for a run is done page by page, with the same outcome.

#include <algorithm>

#include "base/trace.h"
#include "host/memory_budget.h"
#include "host/owner_collect.h"
#include "host/process_map.h"
#include "sync/futex.h"

namespace stagetwo::host {
namespace {

bool is_there(BringBack outcome) {
  return outcome == BringBack::kBack || outcome == BringBack::kStuck;
}

constinit sync::Atomic<SayWarning> warning{nullptr};

void warn_of_stuck_page() {
  // Taken out: once.
  const SayWarning say = warning.exchange(nullptr, sync::kRelaxed);
  if (say == nullptr) return;
  say("the kernel gives a page that came back no rights (vm.max_map_count?): touching it fails",
      {});
}

}  // namespace

void set_owner_warning(SayWarning say) {
  warning.store(say, sync::kRelaxed);
}

// One page singly where a run ended, twice as many after each run of which none went.
u64 take_records(OwnerTable& table, const Names& names, const PageRecord* records, unsigned count,
                 u32 layout, Hva* stopped) {
  u64 taken = 0;
  unsigned singly = 0;
  unsigned after_next = 1;
  for (unsigned i = 0; i < count;) {
    unsigned run = 1;
    while (singly == 0 && i + run < count &&
           records[i + run].at == records[i].at + run * kPageSize &&
           records[i + run].writable == records[i].writable) {
      ++run;
    }
    const bool runs = run > 1 && records[i].hiding == Hiding::kUserfault;
    const PageKey first = names.of(records[i].at);
    const unsigned moved = runs ? table.take_run(first, records + i, run, layout) : 0;
    taken += moved;
    i += moved;
    if (moved == run) continue;
    if (singly != 0) {
      --singly;
    } else if (runs) {
      singly = moved == 0 ? after_next - 1 : 0;
      after_next = moved == 0 ? 2 * after_next : 1;
    }
    if (table.take(names.of(records[i].at), records[i], layout)) {
      ++taken;
    } else if (table.layout() != layout) {
      *stopped = records[i].at;
      return taken;
    }
    ++i;
  }
  return taken;
}

unsigned OwnerTable::side_by_side(PageKey first, unsigned pages) const {
  if (first.object == kPrivateMemory) return pages;
  u64 all = pages;
  for (const SharedView& view : views_) {
    if (view.object != first.object) continue;
    const u64 end = view.first + (view.range.size() >> kPageShift);
    if (view.first > first.index) all = std::min(all, view.first - first.index);
    if (view.first <= first.index && end > first.index) all = std::min(all, end - first.index);
  }
  return static_cast<unsigned>(all);
}

unsigned OwnerTable::take_run(PageKey first, const PageRecord* fresh, unsigned pages, u32 layout) {
  unsigned entered = 0;
  PageViews views;
  const Footings::Taking taking(footings_);
  {
    const sync::MutexGuard guard(lock_);
    footings_.count_taking();
    if (layout != kAnyLayout && layout != layout_) return 0;
    views = views_at(first, *fresh);
    if (views.count == 0) return 0;
    pages = side_by_side(first, pages);
    for (const PageView& view : views) {
      const HvaRange stood = footings_.first_in(HvaRange(view.at, pages * kPageSize));
      if (!stood.empty()) pages = static_cast<unsigned>((stood.start() - view.at) / kPageSize);
    }
    for (; entered < pages; ++entered) {
      const PageKey key = behind(first, entered);
      const PageViews one = views_at(key, fresh[entered]);
      if (pages_.find(key) != nullptr || refusal(key, one) != Refusal::kNone) break;
      if (!insert(key, fresh[entered])) break;
    }
  }
  if (entered == 0) return 0;
  const PagesInHand in_hand;
  PageTransit transit(first, views, Hiding::kUserfault, this, entered);
  const unsigned taken =
      fresh->owner->take_run({first, fresh->at, fresh->writable}, entered, transit);
  {
    const sync::MutexGuard guard(lock_);
    for (unsigned i = 0; i < entered; ++i) {
      const PageKey key = behind(first, i);
      if (i < taken) {
        pages_.find(key)->stage = PageStage::kAbsent;
      } else {
        erase(key);
      }
    }
    counts_.taken += taken;
    turn_over();
  }
  transit.wake();
  return taken;
}

// Pages that have no memory go as they are:
//
//   taker                              | a touch
//   the range is watched               |
//                                      | finds no record: zeros, under the lock (resolve)
//   records, under the lock            |
//                                      | finds one: waits
//   looks again: a page that is there  |
//     stays; the others are absent     | brings it back
//
bool OwnerTable::take_missing(HvaRange pages, const PageRecord& like, u32 layout, u64* taken) {
  u64 entered[kMostMissing / 64] = {};
  const auto has = [](const u64* bits, u64 i) { return (bits[i / 64] >> (i % 64) & 1) != 0; };
  const Footings::Taking taking(footings_);
  {
    const sync::MutexGuard guard(lock_);
    footings_.count_taking();
    if (layout != layout_) return false;
    const HvaRange stood = footings_.first_in(pages);
    const Hva end = stood.empty() ? pages.end() : stood.start();
    PageRecord fresh = like;
    for (fresh.at = pages.start(); fresh.at < end; fresh.at += kPageSize) {
      const PageKey key = private_key(fresh.at);
      if (pages_.find(key) != nullptr || refusal(key, views_at(key, fresh)) != Refusal::kNone) {
        continue;
      }
      if (!insert(key, fresh)) break;
      const u64 i = (fresh.at - pages.start()) / kPageSize;
      entered[i / 64] |= u64{1} << (i % 64);
    }
  }
  const PagesInHand in_hand;
  const u64 count = pages.size() / kPageSize;
  u64 missing[kMostMissing / 64] = {};
  const bool is_known =
      missing_pages(pages.start(), static_cast<unsigned>(count), missing).has_value();
  bool is_touched = false;
  {
    const sync::MutexGuard guard(lock_);
    for (u64 i = 0; i < count; ++i) {
      if (!has(entered, i)) continue;
      const PageKey key = private_key(pages.start() + i * kPageSize);
      PageRecord* const record = pages_.find(key);
      is_touched = is_touched || record->touched;
      record->touched = false;
      if (is_known && has(missing, i)) {
        record->stage = PageStage::kAbsent;
        ++counts_.taken;
        ++*taken;
      } else {
        erase(key);
      }
    }
    turn_over();
  }
  if (is_touched) userfault::wake(pages);
  return true;
}

// Neighbours that one owner has. Answers how many came back, from the first one on.
unsigned OwnerTable::bring_back_run(const PageKey* keys, unsigned count) {
  unsigned entered = 0;
  PageRecord first;
  PageViews views;
  {
    const sync::MutexGuard guard(lock_);
    count = side_by_side(*keys, count);
    for (; entered < count; ++entered) {
      PageRecord* record = pages_.find(keys[entered]);
      if (record == nullptr || record->stage != PageStage::kAbsent) break;
      if (record->hiding != Hiding::kUserfault) break;
      if (entered == 0) first = *record;
      if (record->owner != first.owner || record->at != first.at + entered * kPageSize) break;
      record->stage = PageStage::kFilling;
    }
    if (entered != 0) views = views_at(*keys, first);
  }
  if (entered == 0) return 0;
  trace::emit(trace::Event::st_owner_ask, trace::Room::host, keys->object, keys->index);
  const PagesInHand in_hand;
  PageTransit transit(*keys, views, Hiding::kUserfault, this, entered);
  const unsigned back =
      first.owner->bring_back_run({*keys, first.at, first.writable}, entered, transit);
  {
    const sync::MutexGuard guard(lock_);
    for (unsigned i = 0; i < entered; ++i) {
      if (i < back) {
        erase(keys[i]);
      } else {
        pages_.find(keys[i])->stage = PageStage::kAbsent;
      }
    }
    counts_.back += back;
    turn_over();
  }
  transit.wake();
  return back;
}

// ---- pages the kernel shows together only -----------------------------------------------------
//
// One page in the middle of what is hidden becomes a mapping of its own, and what is left of it
// two. A process that has as many mappings as it may (vm.max_map_count) cannot have that; all that
// is hidden in one mapping can be shown at once, though, which makes none. So the neighbours come
// back, too, and the rights change for all of them.

// Of those that are in place and have the same rights, the neighbours of `at`; they are being
// filled from now on.
void OwnerTable::mark_in_place(Hva at, const HvaRange& mapping, HvaRange* run) {
  const auto mine = [&](Hva page) TA_REQ(lock_) -> PageRecord* {
    PageRecord* record = mapping.contains(page) ? pages_.find(private_key(page)) : nullptr;
    const bool stuck = record != nullptr && record->in_place() &&
                       record->stage == PageStage::kAbsent && record->at == page;
    return stuck ? record : nullptr;
  };
  const PageRecord* middle = mine(at);
  if (middle == nullptr) return;
  const Prot prot = middle->prot;
  const auto is_like = [&](Hva page) TA_REQ(lock_) {
    const PageRecord* record = mine(page);
    return record != nullptr && record->prot == prot;
  };
  Hva first = at;
  Hva end = at + kPageSize;
  while (first > mapping.start() && is_like(first - kPageSize)) first = first - kPageSize;
  while (is_like(end)) end = end + kPageSize;
  for (Hva page = first; page < end; page += kPageSize) mine(page)->stage = PageStage::kFilling;
  *run = HvaRange(first, end - first);
}

BringBack OwnerTable::show_run(PageKey key) {
  PageRecord record;
  if (!find(key, &record)) return BringBack::kBack;
  const auto mapping = shown_mapping_at(record.at);
  if (!mapping || key.object != kPrivateMemory) {
    warn_of_stuck_page();
    return BringBack::kStuck;
  }
  const auto fetch = [&](Hva page) {
    PageRecord near;
    const bool hidden = find(private_key(page), &near) && near.hiding == Hiding::kProtection;
    PageKey own = private_key(page);
    return hidden && is_there(bring_back_one(own));
  };
  for (Hva at = record.at; at > mapping->range.start() && fetch(at - kPageSize);)
    at = at - kPageSize;
  for (Hva at = record.at + kPageSize; mapping->range.contains(at) && fetch(at);)
    at = at + kPageSize;
  HvaRange run;
  {
    const sync::MutexGuard guard(lock_);
    mark_in_place(record.at, mapping->range, &run);
  }
  if (run.empty()) return BringBack::kRetry;  // somebody else has it in hand
  const bool shown = allow_pages(run, record.prot);
  const sync::MutexGuard guard(lock_);
  for (Hva at = run.start(); at < run.end(); at += kPageSize) {
    if (shown) {
      erase(private_key(at));
    } else {
      pages_.find(private_key(at))->stage = PageStage::kAbsent;
    }
  }
  if (shown) counts_.back += run.size() / kPageSize;
  turn_over();
  if (!shown) warn_of_stuck_page();
  return shown ? BringBack::kBack : BringBack::kStuck;
}

u64 OwnerTable::bring_back_keys(PageKey* keys, unsigned count, unsigned* asks, bool unasked) {
  std::sort(keys, keys + count, [](PageKey a, PageKey b) {
    return a.object != b.object ? a.object < b.object : a.index < b.index;
  });
  u64 back = 0;
  for (unsigned i = 0; i < count;) {
    unsigned run = 1;
    while (i + run < count && keys[i + run] == behind(keys[i], run)) ++run;
    const unsigned moved = run > 1 ? bring_back_run(keys + i, run) : 0;
    back += moved;
    i += moved;
    if (moved == run) continue;
    const BringBack outcome = bring_back(keys[i++], unasked);
    if (outcome == BringBack::kBack) ++back;
    *asks = std::max(*asks, asks_of(outcome));
  }
  return back;
}

// Pages that may come in one go.
unsigned OwnerTable::keys_ahead(HvaRange range, PageKey* keys) {
  const sync::MutexGuard guard(lock_);
  unsigned count = 0;
  for (Hva at = range.start(); at < range.end() && count < kBatch; at += kPageSize) {
    const PageKey key = key_at(at);
    if (count != 0 && key != behind(*keys, count)) break;
    keys[count++] = key;
  }
  return count;
}

// Who calls this may be what others wait for: the thread that answers touches, an owner with a page
// in hand. So what is in transit ends it.
u64 OwnerTable::bring_back_ahead(HvaRange range) {
  u64 back = 0;
  bool in_runs = true;
  for (Hva at = range.start(); at < range.end();) {
    PageKey keys[kBatch];
    const u64 left = in_runs ? range.end() - at : kPageSize;
    const unsigned count = keys_ahead(HvaRange(at, left), keys);
    unsigned came = count > 1 ? bring_back_run(keys, count) : 0;
    in_runs = came != 0;  // an owner that has no runs is not asked for the next one
    if (came == 0 && fill_if_absent(keys[0])) came = 1;
    if (came == 0) break;
    back += came;
    at = at + came * kPageSize;
  }
  return back;
}

bool OwnerTable::fill_if_absent(PageKey key) {
  PageJob job;
  {
    const sync::MutexGuard guard(lock_);
    PageRecord* record = pages_.find(key);
    if (record == nullptr || record->stage != PageStage::kAbsent) return false;
    record->stage = PageStage::kFilling;
    job = {*record, views_at(key, *record)};
  }
  return fill(key, job) == BringBack::kBack;
}

u64 OwnerTable::bring_back_all(const Reach& reach) {
  PageKey keys[kBatch];
  u64 back = 0;
  for (unsigned asked = 0; asked < kMostAsks;) {
    const unsigned count = collect(
        reach, keys, kBatch,
        [](const PageKey&, const PageRecord& record) { return record.stage != PageStage::kLost; });
    if (count == 0) return back;
    unsigned asks = 0;
    back += bring_back_keys(keys, count, &asks);
    if (asks != 0) sync::yield_thread();
    asked += asks;
  }
  return back;
}

// ---- fork -----------------------------------------------------------------------------------
//
// Between the two ends of a fork no lock is held but a mark (host/fork_marks.h). A taker counts
// itself under the lock if there is none; a fork marks itself, then looks for takers under the
// lock. Should a fork have been slower than a mark is believed, the child finds out
// (lose_in_child).
//
// A handler of the client's may itself have pages taken (a migration). They come back with the
// others, because our first end is the last handler to run (shim/forks.h).
//
// Each ask gives others the processor, on a busy machine for milliseconds: so there is an end by
// the clock, too, when nothing has come for a while, long before the mark is believed no more.

void OwnerTable::before_fork() {
  constexpr u64 kLongestNs = 250'000'000;
  static_assert(kLongestNs < ForkMarks::kLongestMs * 1'000'000 / 10);
  forks_.enter();
  const budget::NoRoom none_is_made;
  PageKey keys[kBatch];
  u64 last_came = sync::now_ns();
  for (unsigned asked = 0; asked < kMostAsks;) {
    if (asked > kMostAsks / 64 && sync::now_ns() - last_came > kLongestNs) return;
    u32 seen = 0;
    unsigned count = 0;
    bool takers = false;
    {
      const sync::MutexGuard guard(lock_);
      seen = await_turn();
      takers = takers_ != 0;
      pages_.for_each([&](const PageKey& key, const PageRecord& record) {
        if (count < kBatch && record.stage != PageStage::kLost) keys[count++] = key;
      });
    }
    if (count == 0 && !takers) return;
    unsigned asks = 0;
    if (bring_back_keys(keys, count, &asks, true) != 0) last_came = sync::now_ns();
    if (takers && count == 0) wait_turn(seen);
    if (asks != 0) sync::yield_thread();
    asked += asks;
  }
}

void OwnerTable::after_fork_parent() {
  forks_.leave();
  const sync::MutexGuard guard(lock_);
  turn_over();
}

// One thread, which makes no other; the lock is as another thread of the parent had it, and what it
// protects may then be half changed.
void OwnerTable::lose_in_child() {
  if (lock_.debug_locked()) return;
  const sync::MutexGuard guard(lock_);
  pages_.for_each([&](const PageKey& key, const PageRecord& record) {
    lock_.assert_held();
    for (const PageView& view : views_at(key, record)) {
      const bool there = record.in_place() && allow_pages(page_at(view.at), view.prot);
      if (!there) PageTransit::make_bus_error(view.at);
    }
  });
}

// ---- given up lazily -------------------------------------------------------------------------

// Who touches one meanwhile waits, and finds nothing: zeros. Nothing the client wrote after its
// call is there to be lost, because a page it wrote is not absent.
void OwnerTable::free_swapped(HvaRange range) {
  PageKey keys[kBatch];
  const auto is_swapped = [](const PageKey& key, PageRecord& record) {
    const bool frees = key.object == kPrivateMemory && record.stage == PageStage::kAbsent &&
                       record.hiding == Hiding::kUserfault && !record.in_place() &&
                       record.owner->is_swap();
    if (frees) record.stage = PageStage::kFilling;  // as a change and a taker wait for it
    return frees;
  };
  for (;;) {
    const unsigned count = collect({kPrivateMemory, range}, keys, kBatch, is_swapped);
    if (count == 0) return;
    discard_each(keys, count);
  }
}

// Nobody waits for a page that is absent and in nobody's hand: a touch that is reported later finds
// no record, and is given zeros (resolve), or the kernel's own where nothing is watched any more.
bool OwnerTable::leave_hole(Hva at, const PageOwner* owner) {
  const sync::MutexGuard guard(lock_);
  const PageKey key = key_at(at);
  const PageRecord* const record = pages_.find(key);
  const bool is_owners = record != nullptr && record->owner == owner &&
                         record->stage == PageStage::kAbsent &&
                         record->hiding == Hiding::kUserfault && key.object == kPrivateMemory;
  if (!is_owners) return false;
  ++counts_.discarded;
  erase(key);
  turn_over();
  return true;
}

// Pre: this thread put them in transit.
void OwnerTable::discard_each(const PageKey* keys, unsigned count) {
  for (unsigned i = 0; i < count; ++i) {
    PageRecord record;
    if (!find(keys[i], &record)) continue;
    record.owner->discard({keys[i], record.at, record.writable});
    {
      const sync::MutexGuard guard(lock_);
      ++counts_.discarded;
      erase(keys[i]);
      turn_over();
    }
    userfault::wake(page_at(record.at));
  }
}

}  // namespace stagetwo::host

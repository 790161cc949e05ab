// SPDX-License-Identifier: Apache-2.0
// Several pages in one go: one lock, one call of the owner, one system call to move them and one to
// wake their touchers. What cannot be done for a run is done page by page, with the same outcome.

#include <algorithm>

#include "base/trace.h"
#include "host/owner_table.h"
#include "sync/futex.h"

namespace stagetwo::host {

unsigned OwnerTable::take_run(const PageRecord* fresh, unsigned pages, u32 layout) {
  unsigned entered = 0;
  const PageKey first = private_key(fresh->at);
  PageViews views;
  views.view[views.count++] = {fresh->at, fresh->prot};
  {
    const sync::MutexGuard guard(lock_);
    if (layout != kAnyLayout && layout != layout_) return 0;
    for (; entered < pages; ++entered) {
      const PageKey key = private_key(fresh[entered].at);
      PageViews one;
      one.view[one.count++] = {fresh[entered].at, fresh[entered].prot};
      if (pages_.find(key) != nullptr || refusal(key, one) != Refusal::kNone) break;
      if (!insert(key, fresh[entered])) break;
    }
  }
  if (entered == 0) return 0;
  PageTransit transit(first, views, Hiding::kUserfault, this, entered);
  const unsigned taken =
      fresh->owner->take_run({first, fresh->at, fresh->writable}, entered, transit);
  {
    const sync::MutexGuard guard(lock_);
    for (unsigned i = 0; i < entered; ++i) {
      const PageKey key = private_key(fresh[i].at);
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

// Neighbours that one owner has. Answers how many came back, from the first one on.
unsigned OwnerTable::bring_back_run(const PageKey* keys, unsigned count) {
  unsigned entered = 0;
  PageRecord first;
  {
    const sync::MutexGuard guard(lock_);
    for (; entered < count; ++entered) {
      PageRecord* record = pages_.find(keys[entered]);
      if (record == nullptr || record->stage != PageStage::kAbsent) break;
      if (record->hiding != Hiding::kUserfault) break;
      if (entered != 0 && record->owner != first.owner) break;
      if (entered == 0) first = *record;
      record->stage = PageStage::kFilling;
    }
  }
  if (entered == 0) return 0;
  trace::emit(trace::Event::st_owner_ask, trace::Room::host, keys->object, keys->index);
  PageViews views;
  views.view[views.count++] = {first.at, first.prot};
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

u64 OwnerTable::bring_back_keys(PageKey* keys, unsigned count, bool* later) {
  std::sort(keys, keys + count, [](PageKey a, PageKey b) {
    return a.object != b.object ? a.object < b.object : a.index < b.index;
  });
  u64 back = 0;
  for (unsigned i = 0; i < count;) {
    unsigned run = 1;
    const bool runs = keys[i].object == kPrivateMemory;
    while (runs && i + run < count && keys[i + run].object == kPrivateMemory &&
           keys[i + run].index == keys[i].index + run) {
      ++run;
    }
    const unsigned moved = run > 1 ? bring_back_run(keys + i, run) : 0;
    back += moved;
    i += moved;
    if (moved == run) continue;
    const BringBack outcome = bring_back(keys[i++]);
    if (outcome == BringBack::kBack) ++back;
    if (outcome == BringBack::kRetry) *later = true;
  }
  return back;
}

u64 OwnerTable::bring_back_all(const Reach& reach) {
  PageKey keys[kBatch];
  u64 back = 0;
  for (unsigned asked = 0; asked < kMostAsks;) {
    const unsigned count = collect(
        reach, keys, kBatch,
        [](const PageKey&, const PageRecord& record) { return record.stage != PageStage::kLost; });
    if (count == 0) return back;
    bool later = false;
    back += bring_back_keys(keys, count, &later);
    if (later) {
      ++asked;
      sync::yield_thread();
    }
  }
  return back;
}

}  // namespace stagetwo::host

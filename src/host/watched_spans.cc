// SPDX-License-Identifier: Apache-2.0
// Which spans of the client's memory userfaultfd watches for us. A first touch there takes the long
// way, so that each span is given up as soon as nothing of it is absent; and the client may want it
// for a userfaultfd of its own: a range has one only.
#include <algorithm>

#include "host/owner_table.h"

namespace stagetwo::host {

u64 OwnerTable::absent_in(HvaRange range, u64 object) {
  u64 count = 0;
  pages_.for_each([&](const PageKey& key, const PageRecord& record) {
    const bool counts = key.object == object;
    if (counts && (object != kPrivateMemory || range.contains(record.at))) ++count;
  });
  return count;
}

namespace {

bool covers(const WatchedSpan& known, HvaRange span, u64 object) {
  return known.object == object && known.range.contains(span.start()) &&
         span.end() <= known.range.end();
}

}  // namespace

Result<void> OwnerTable::note_watched(HvaRange span, u64 object) {
  const sync::MutexGuard guard(lock_);
  for (const WatchedSpan& known : spans_) {
    if (covers(known, span, object)) return {};
  }
  return spans_.push_back({span, object, absent_in(span, object)});
}

// A page of userfaultfd's that is absent is watched. If nobody watches its mapping, that is another
// one, made since somebody unmapped the page behind our back; whoever watches it next would have
// the old bytes served there.
void OwnerTable::drop_unwatched(HvaRange piece) {
  PageKey keys[kBatch];
  for (;;) {
    bool watched = false;
    const auto is_stale = [&](const PageKey& key, PageRecord& record) {
      const bool candidate = key.object == kPrivateMemory && record.stage == PageStage::kAbsent &&
                             record.hiding == Hiding::kUserfault;
      if (watched || !candidate) return false;  // one mapping is watched as a whole
      watched = userfault::is_watched(record.at);
      if (!watched) record.stage = PageStage::kTaking;
      return !watched;
    };
    const unsigned count = collect({kPrivateMemory, piece}, keys, kBatch, is_stale);
    if (count == 0) return;
    for (unsigned i = 0; i < count; ++i) {
      PageRecord record;
      if (!find(keys[i], &record)) continue;
      record.owner->discard({keys[i], record.at, record.writable});
      const sync::MutexGuard guard(lock_);
      ++counts_.discarded;
      erase(keys[i]);
      turn_over();
    }
  }
}

void OwnerTable::count_in_spans(PageKey key, Hva at, bool absent) {
  bool empty = false;
  for (WatchedSpan& span : spans_) {
    if (span.object != key.object) continue;
    if (key.object == kPrivateMemory && !span.range.contains(at)) continue;
    span.absent += absent ? 1 : u64{0} - 1;
    empty = empty || span.absent == 0;
  }
  if (empty && !absent) forget_spans();
}

// A taker watches first and takes then.
void OwnerTable::forget_spans() {
  if (takers_ != 0) return;
  for (size_t i = 0; i < spans_.size();) {
    if (spans_[i].absent != 0) {
      ++i;
      continue;
    }
    userfault::forget(spans_[i].range);
    spans_.swap_erase(i);
  }
}

bool OwnerTable::insert(PageKey key, const PageRecord& record) {
  if (!pages_.insert(key, record)) return false;
  count_in_spans(key, record.at, true);
  return true;
}

void OwnerTable::erase(PageKey key) {
  const Hva at = pages_.find(key)->at;
  pages_.erase(key);
  count_in_spans(key, at, false);
}

namespace {
alignas(kPageSize) constinit const u8 zeros[kPageSize] = {};
}  // namespace

// Under the lock, as resolve() is: no taker comes between the look and the page.
bool OwnerTable::fill_first(Hva at, Access access) {
  const sync::MutexGuard guard(lock_);
  bool watched = false;
  for (const WatchedSpan& span : spans_) watched = watched || span.range.contains(at);
  if (!watched || pages_.find(key_at(at)) != nullptr) return false;
  const Hva page = page_floor(at);
  const auto filled =
      access == Access::kRead ? userfault::zero(page) : userfault::copy(page, zeros);
  return filled.has_value();
}

bool OwnerTable::stop_watching(HvaRange range) {
  const sync::MutexGuard guard(lock_);
  bool any = false;
  const size_t known = spans_.size();
  for (size_t i = 0; i < known; ++i) {
    const WatchedSpan span = spans_[i];
    const Hva first = std::max(span.range.start(), range.start());
    const Hva end = std::min(span.range.end(), range.end());
    if (first >= end) continue;
    // What is left of the span behind the range; without memory for that the span stays ours.
    const HvaRange behind(end, span.range.end() - end);
    const u64 absent_behind = absent_in(behind, span.object);
    if (!behind.empty() && !spans_.push_back({behind, span.object, absent_behind})) continue;
    userfault::forget(HvaRange(first, end - first));
    spans_[i].range = HvaRange(span.range.start(), first - span.range.start());
    spans_[i].absent = absent_in(spans_[i].range, span.object);
    any = true;
  }
  return any;
}

bool stop_watching(HvaRange range) {
  OwnerTable* table = owners_active() ? owner_table() : nullptr;
  return table != nullptr && table->stop_watching(range);
}

}  // namespace stagetwo::host

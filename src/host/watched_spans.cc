// SPDX-License-Identifier: Apache-2.0
// Which spans of the client's memory userfaultfd watches for us. A first touch there takes the long
// way, so that each span is given up as soon as nothing of it is absent; and the client may want it
// for a userfaultfd of its own: a range has one only.
//
// Where we watch, the kernel sees a border, and some calls tell: mremap and UFFDIO_MOVE take one
// mapping only. So nothing of their range is watched while they last:
//
//   taker                                   | mremap
//   lock; a change over the span? refused   | lock; notes its change; unlock
//   registers it, notes the span; unlock    | brings back what is absent
//                                           | lock; unregisters the spans of its range; unlock
//                                           | the system call
//
// Either the taker sees the change, or the change finds the span. When a border is gone, the kernel
// makes one mapping of both sides only if all pages that were touched on either side belong
// together (anon_vma). It sees to that by itself at the first touch, but not across a border of
// ours: so a mapping is bound before there is a border in it, and what is mapped beside one, or
// gets its rights, is bound to it. Between memory of ours and memory that nobody watches it would
// be made one with the latter at once, and stay so; and a touch that had begun before the change
// comes before the binding. So what is mapped anew finds the pages beside it back, and nobody
// watches them: it is one with them from the beginning. So does what mremap leaves behind empty
// (MREMAP_DONTUNMAP), which the kernel unbinds from its neighbours if it was a mapping by itself.
//
// Tried and rejected: watching whole mappings, so that there is no border: what is mapped beside
// one later would have been one mapping with it, and all first touches take the long way.
#include <algorithm>

#include "base/guard.h"
#include "host/blocked_faults.h"
#include "host/owner_collect.h"
#include "host/process_files.h"

namespace stagetwo::host {

u64 OwnerTable::absent_in(HvaRange range, u64 object) {
  u64 count = 0;
  if (object == kPrivateMemory && range.size() / kPageSize < pages_.size()) {
    for (Hva at = range.start(); at < range.end(); at += kPageSize) {
      if (pages_.find(private_key(at)) != nullptr) ++count;
    }
    return count;
  }
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

bool is_private(const Mapping& mapping) {
  return !mapping.shared && !mapping.file_backed;
}

}  // namespace

// Of a file's private mapping userfaultfd takes nothing; shared memory it does.
Result<Hiding> OwnerTable::watch(HvaRange span, u64 object, const Mapping& mapping) {
  const bool takes = mapping.shared || !mapping.file_backed;
  // The thread first: a touch of a watched page that nobody answers would wait for ever.
  const bool may_watch = takes && userfault::open() && start_resolver();
  if (may_watch) {
    const sync::MutexGuard guard(lock_);
    for (const OwnedChange* change = changes_; change != nullptr; change = change->next_) {
      const bool moves = change->what_ == Announced::kMoves || change->what_ == Announced::kUnmaps;
      const bool meets =
          change->reach_.object == kPrivateMemory && change->reach_.range.overlaps(span);
      if (moves && meets && ST_GUARD(owners_watch, true)) return refuse(EAGAIN);
    }
    const bool known = std::any_of(spans_.begin(), spans_.end(), [&](const WatchedSpan& each) {
      return covers(each, span, object);
    });
    if (!known) footings_.count_taking();
    const bool stood = !known && !footings_.first_in(span).empty();
    if (ST_GUARD(footing_watch, stood)) return refuse(EBUSY);
    if (!known) ST_TRY(spans_.reserve(spans_.size() + 1));
    if (!known && object == kPrivateMemory) userfault::bind(span.start());
    if (userfault::watch(span)) {
      if (!known) static_cast<void>(spans_.push_back({span, object, absent_in(span, object)}));
      return Hiding::kUserfault;
    }
  }
  ST_TRY(memory_file());
  return Hiding::kProtection;
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
    discard_each(keys, count);
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
    if (spans_[i].absent != 0 || spans_[i].grows) {
      ++i;
      continue;
    }
    userfault::forget(spans_[i].range);
    spans_.swap_erase(i);
  }
}

// end_take() gives up the others.
void OwnerTable::keep_watching(const HvaRange* ranges, size_t count) {
  const sync::MutexGuard guard(lock_);
  for (WatchedSpan& span : spans_) {
    span.grows = std::any_of(ranges, ranges + count,
                             [&](HvaRange range) { return range.overlaps(span.range); });
  }
}

bool OwnerTable::insert(PageKey key, const PageRecord& record) {
  if (!pages_.insert(key, record)) return false;
  count_in_spans(key, record.at, true);
  return true;
}

void OwnerTable::erase(PageKey key) {
  const PageRecord* const record = pages_.find(key);
  const Hva at = record->at;
  if (record->stage == PageStage::kLost) --counts_.lost_now;
  pages_.erase(key);
  count_in_spans(key, at, false);
}

namespace {
alignas(kPageSize) constinit const u8 zeros[kPageSize] = {};
}  // namespace

// Under the lock, as resolve() is: no taker comes between the look and the page.
bool OwnerTable::fill_first(Hva at, Access access) {
  const sync::MutexGuard guard(lock_);
  if (mark_of(at) != Mark::kWatched || pages_.find(key_at(at)) != nullptr) return false;
  const Hva page = page_floor(at);
  const auto filled =
      access == Access::kRead ? userfault::zero(page) : userfault::copy(page, zeros);
  return filled.has_value();
}

// For a system call where its touches are not reported. What is there already is left as it is.
u64 OwnerTable::fill_holes(HvaRange range) {
  {
    const sync::MutexGuard guard(lock_);
    if (spans_.empty()) return 0;
  }
  PageState states[kMaxPageStates];
  u64 filled = 0;
  for (Hva at = range.start(); at < range.end();) {
    const u64 left = (range.end() - at) / kPageSize;
    const unsigned count = static_cast<unsigned>(std::min<u64>(left, kMaxPageStates));
    if (!page_states(at, count, states)) return filled;
    for (unsigned i = 0; i < count; ++i, at += kPageSize) {
      if (!states[i].present && !states[i].swapped && fill_first(at, Access::kRead)) ++filled;
    }
  }
  return filled;
}

// Absent pages stay so: they are reported as missing.
void OwnerTable::clear_marks(HvaRange range) {
  PageKey keys[kBatch];
  for (unsigned found = kBatch; found == kBatch;) {
    found =
        collect({kPrivateMemory, range}, keys, kBatch,
                [](const PageKey&, const PageRecord& record) { return in_transit(record.stage); });
    for (unsigned i = 0; i < found; ++i) static_cast<void>(is_absent(keys[i]));
  }
  const sync::MutexGuard guard(lock_);
  for (const WatchedSpan& span : spans_) {
    const Hva first = std::max(span.range.start(), range.start());
    const Hva end = std::min(span.range.end(), range.end());
    if (span.object == kPrivateMemory || first >= end) continue;
    static_cast<void>(userfault::write_protect(HvaRange(first, end - first), false));
  }
}

Mark OwnerTable::mark_of(Hva at) {
  const PageRecord* record = pages_.find(private_key(at));
  if (record != nullptr && in_transit(record->stage)) return Mark::kInTransit;
  if (record != nullptr && record->hiding == Hiding::kProtection) return Mark::kHidden;
  const bool watched = std::any_of(spans_.begin(), spans_.end(), [&](const WatchedSpan& span) {
    return span.range.contains(at);
  });
  return watched ? Mark::kWatched : Mark::kNone;
}

bool OwnerTable::sides_differ(HvaRange range, bool fresh) {
  if (range.empty() || range.start() < Hva(kPageSize)) return false;
  const Hva left = range.start() - kPageSize;
  {
    const sync::MutexGuard guard(lock_);
    const Mark before = mark_of(left), after = mark_of(range.end());
    // Hidden pages on both sides would be two kinds, too: they have no rights.
    if (before == after && (before == Mark::kNone || before == Mark::kWatched)) return false;
    // Who changes rights waits for no owner that takes a page beside them.
    const bool waits = before == Mark::kInTransit || after == Mark::kInTransit;
    const bool joined =
        mark_of(range.start()) != Mark::kNone && mark_of(range.end() - kPageSize) != Mark::kNone;
    if (!fresh && (waits || joined)) return false;
  }
  const auto is_one = [](Hva at) {
    const auto mapping = shown_mapping_at(at);
    return mapping && is_private(*mapping);
  };
  return is_one(left) && is_one(range.end());
}

// Pre: count_taking() since the lock was taken.
bool OwnerTable::stands_on(const PageViews& views) const {
  const bool any = std::any_of(views.begin(), views.end(), [&](const PageView& view) {
    return !footings_.first_in(page_at(view.at)).empty();
  });
  return ST_GUARD(footing_stands, any);
}

u64 OwnerTable::pages_of_owners(HvaRange range) {
  const sync::MutexGuard guard(lock_);
  u64 ours = 0;
  u64 bit = 1;
  for (Hva at = range.start(); at < range.end() && bit != 0; at += kPageSize, bit <<= 1) {
    const bool watched = std::any_of(spans_.begin(), spans_.end(), [&](const WatchedSpan& span) {
      return span.range.contains(at);
    });
    if (watched || pages_.find(key_at(at)) != nullptr) ours |= bit;
  }
  return ours;
}

void OwnerTable::count_refused_pinned() {
  const sync::MutexGuard guard(lock_);
  ++counts_.refused_owner;
}

void OwnerTable::count_refused_watch(u64 pages) {
  const sync::MutexGuard guard(lock_);
  counts_.refused_watch += pages;
}

void OwnerTable::count_refused_change(u64 pages) {
  const sync::MutexGuard guard(lock_);
  counts_.refused_change += pages;
}

void OwnerTable::count_refused_shared(u64 pages) {
  const sync::MutexGuard guard(lock_);
  counts_.refused_shared += pages;
}

void OwnerTable::count_refused_held(u64 pages) {
  const sync::MutexGuard guard(lock_);
  counts_.refused_held += pages;
}

bool OwnerTable::stop_watching(HvaRange range) {
  const sync::MutexGuard guard(lock_);
  return cut_spans(range, true);
}

// Nothing of the range is watched any more. False: without memory for what is left behind it a span
// stays as it is.
bool OwnerTable::cut_spans(HvaRange range, bool forget) {
  bool all = true;
  for (size_t i = 0; i < spans_.size();) {
    const WatchedSpan span = spans_[i];
    const Hva first = std::max(span.range.start(), range.start());
    const Hva end = std::min(span.range.end(), range.end());
    if (first >= end || !spans_.reserve(spans_.size() + 1)) {
      all = all && first >= end;
      ++i;
      continue;
    }
    if (forget) userfault::forget(HvaRange(first, end - first));
    spans_.swap_erase(i);
    for (const HvaRange left : {HvaRange(span.range.start(), first - span.range.start()),
                                HvaRange(end, span.range.end() - end)}) {
      const WatchedSpan rest{left, span.object, absent_in(left, span.object), span.grows};
      if (!left.empty()) static_cast<void>(spans_.push_back(rest));
    }
  }
  return all;
}

void OwnerTable::join_watched(HvaRange range, bool fresh) {
  if (!fresh && !userfault::serves_kernel())
    return;  // a system call there would meet a first touch
  const sync::MutexGuard guard(lock_);
  bool beside = false;
  for (const WatchedSpan& span : spans_) {
    const bool near = span.range.start() <= range.end() && range.start() <= span.range.end();
    beside = beside || (near && span.object == kPrivateMemory);
  }
  for (Hva at = range.start(); beside && at < range.end();) {
    // What of a mapping lies between two spans.
    const auto mapping = shown_mapping_from(at);
    if (!mapping || mapping->range.start() >= range.end()) return;
    at = std::max(at, mapping->range.start());
    Hva end = std::min(range.end(), mapping->range.end());
    bool watched = false;
    for (const WatchedSpan& span : spans_) {
      watched = watched || span.range.contains(at);
      const Hva border = span.range.contains(at) ? span.range.end() : span.range.start();
      if (border > at) end = std::min(end, border);
    }
    if (!watched && is_private(*mapping)) userfault::bind_beside(HvaRange(at, end - at));
    at = end;
  }
}

void join_watched(HvaRange range, bool fresh) {
  if (fresh && touches_are_signals()) forget_stacks(range);
  OwnerTable* table = owners_active() ? owner_table() : nullptr;
  if (table != nullptr) table->join_watched(range, fresh);
}

bool sides_differ(HvaRange range, bool fresh) {
  OwnerTable* table = owners_active() ? owner_table() : nullptr;
  return table != nullptr && table->sides_differ(range, fresh);
}

EvenSides::EvenSides(HvaRange range, bool fresh) {
  if (range.empty() || range.start() < Hva(kPageSize) || !owners_active()) return;
  // What is mapped anew may be touched at once, by whoever asked for the page that was there: it
  // has to be one with what is beside it from the beginning, and nobody may watch that now.
  if (!fresh && !sides_differ(range, fresh)) return;
  if (!ST_GUARD(owners_even_sides, true)) return;
  left_.emplace(page_at(range.start() - kPageSize), Announced::kMoves);
  right_.emplace(page_at(range.end()), Announced::kMoves);
}

}  // namespace stagetwo::host

// SPDX-License-Identifier: Apache-2.0
#include "reclaim/span.h"

#include <algorithm>
#include <bit>

#include "base/alloc.h"

namespace stagetwo::reclaim {
namespace {

// What one span has of the engine's memory, in this order: slots, resident, used, stuck, was_stuck,
// huge, ages.
struct Layout {
  explicit Layout(u64 pages)
      : resident(pages * sizeof(PageSlot)),
        used(resident + (pages + 63) / 64 * sizeof(u64)),
        stuck(used + (pages + 63) / 64 * sizeof(u64)),
        was_stuck(stuck + (pages + 63) / 64 * sizeof(u64)),
        huge(was_stuck + (pages + 63) / 64 * sizeof(u64)),
        ages(huge + (pages / 512 / 64 + 2) * sizeof(u64)),
        bytes(ages + pages) {}
  u64 resident;
  u64 used;
  u64 stuck;
  u64 was_stuck;
  u64 huge;
  u64 ages;
  u64 bytes;
};

}  // namespace

// Zeroes are right for all of it: pages are here, of age 0, not known to be resident.
Result<Span*> Span::create(HvaRange range) {
  Span* const span = ST_TRY(make<Span>("reclaim.span", range));
  const Layout layout(span->pages);
  const auto memory = map_pages(layout.bytes, "reclaim.span_pages");
  if (!memory) {
    stagetwo::destroy(span);
    return refuse(memory.error());
  }
  u8* const base = static_cast<u8*>(*memory);
  span->slots = reinterpret_cast<PageSlot*>(base);
  span->resident = reinterpret_cast<u64*>(base + layout.resident);
  span->stuck = reinterpret_cast<u64*>(base + layout.stuck);
  span->was_stuck = reinterpret_cast<u64*>(base + layout.was_stuck);
  span->huge = reinterpret_cast<u64*>(base + layout.huge);
  span->used = reinterpret_cast<sync::Atomic<u64>*>(base + layout.used);
  span->ages = reinterpret_cast<sync::Atomic<Age>*>(base + layout.ages);
  return span;
}

void Span::note_stuck(u64 first, u64 bits, u64 now) {
  if (bits == 0) return;
  // At first until the next look: it may have been in use for a moment.
  if (stuck_count == 0) ask_again = patience == 0 ? now : now + (kStuckNs << patience);
  stuck_count += static_cast<u64>(std::popcount(bits));
  for (; bits != 0; bits &= bits - 1) {
    const u64 index = first + static_cast<u64>(std::countr_zero(bits));
    const u64 bit = u64{1} << (index % 64);
    stuck[index / 64] |= bit;
    stuck_again += (was_stuck[index / 64] & bit) != 0 ? 1U : 0U;
  }
}

void Span::forget_stuck(u64 now) {
  if (stuck_count == 0 || now < ask_again) return;
  patience = 2 * stuck_again >= stuck_before && stuck_again != 0
                 ? std::min(patience + 1, kMostPatience)
                 : 0;
  std::copy_n(stuck, words(), was_stuck);
  std::fill_n(stuck, words(), u64{0});
  stuck_before = stuck_count;
  stuck_count = 0;
  stuck_again = 0;
}

void Span::destroy(Span* span) {
  unmap_pages(span->slots, Layout(span->pages).bytes);
  stagetwo::destroy(span);
}

SpanTable::~SpanTable() {
  const sync::MutexGuard guard(lock_);
  spans_.for_each(0, ~u64{0}, [](auto entry) { Span::destroy(*entry.value); });
}

Span* SpanTable::find(Hva at) {
  const auto entry = spans_.find(at.raw());
  return entry ? *entry.value : nullptr;
}

bool SpanTable::is_away(Hva page) {
  const sync::MutexGuard guard(lock_);
  const Span* const span = find(page);
  return span != nullptr && span->slots[span->index_of(page)].where != Where::kHere;
}

u64 SpanTable::absent_pages() {
  const sync::MutexGuard guard(lock_);
  u64 pages = 0;
  spans_.for_each(0, ~u64{0}, [&](auto entry) { pages += (*entry.value)->absent; });
  return pages;
}

u64 SpanTable::absent_in(HvaRange range) {
  const sync::MutexGuard guard(lock_);
  u64 pages = 0;
  spans_.for_each(range.start().raw(), range.end().raw(), [&](auto entry) {
    const Span& span = **entry.value;
    const Hva from = std::max(range.start(), span.range.start());
    const Hva to = std::min(range.end(), span.range.end());
    pages += span.absent * ((to - from) >> kPageShift) / span.pages;
  });
  return pages;
}

// A span for each part of the range that has none.
Result<void> SpanTable::fill_gaps(HvaRange range) {
  for (u64 at = range.start().raw(); at < range.end().raw();) {
    const auto entry = spans_.find_from(at);
    if (entry && entry.start <= at) {
      at = entry.end;
      continue;
    }
    const u64 end = entry ? std::min(entry.start, range.end().raw()) : range.end().raw();
    Span* const span = ST_TRY(Span::create(HvaRange(Hva(at), end - at)));
    const auto entered = spans_.insert(at, end, span);
    if (!entered) {
      Span::destroy(span);
      return refuse(entered.error());
    }
    at = end;
  }
  return {};
}

// What was made before a refusal has no user, and goes with the next turn.
Result<void> SpanTable::add(HvaRange range) {
  const sync::MutexGuard guard(lock_);
  ST_TRY(fill_gaps(range));
  spans_.for_each(range.start().raw(), range.end().raw(),
                  [](auto entry) { ++(*entry.value)->users; });
  return {};
}

void SpanTable::remove(HvaRange range) {
  const sync::MutexGuard guard(lock_);
  spans_.for_each(range.start().raw(), range.end().raw(),
                  [](auto entry) { --(*entry.value)->users; });
}

Span* SpanTable::next(Hva at) {
  const sync::MutexGuard guard(lock_);
  const auto entry = spans_.find_from(at.raw());
  return entry ? *entry.value : nullptr;
}

void SpanTable::prune() {
  const sync::MutexGuard guard(lock_);
  for (u64 at = 0;;) {
    const auto entry = spans_.find_from(at);
    if (!entry) return;
    Span* const span = *entry.value;
    at = entry.end;
    if (span->users != 0 || span->absent != 0) continue;
    if (!spans_.erase(span->range.start().raw(), span->range.end().raw())) return;  // later
    Span::destroy(span);
  }
}

}  // namespace stagetwo::reclaim

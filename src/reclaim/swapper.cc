// SPDX-License-Identifier: Apache-2.0
#include "reclaim/swapper.h"

#include <sys/mman.h>

#include <algorithm>

#include "base/alloc.h"
#include "base/check.h"
#include "base/guard.h"
#include "base/sys.h"
#include "base/text.h"
#include "base/trace.h"
#include "host/budget_accounts.h"
#include "host/memory_budget.h"
#include "host/process_map.h"

// One page, who takes it and who touches it:
//
//   turn                                   | toucher
//   host: isolated; moved to a place       | waits for the record
//   lock; kPlaced; unlock. host: absent    | asks us
//                                          | lock; kPlaced -> kReturning; moves it back; kHere
//   lock; kPlaced -> kSqueezing; unlock    |
//   compresses into the store              | lock; kSqueezing -> kCopying; copies the place
//   lock; kSqueezing -> kStored            | (or finds it stored: kFetching, reads, kHere)
//
// The compressor reads a place that nobody moves: a toucher that meets kSqueezing copies. Whoever
// of the two is the last to need the place gives it back, since the turn empties free places:
//
//   kCopying: still being copied: kFetching|
//   empties free places: not this one      | copied: frees the place, forgets the stored copy
//
//                                          | copied: kCopying -> kLeft
//   kLeft: forgets the stored copy, frees  |
//   the place; kHere                       |

namespace stagetwo::reclaim {
namespace {

constexpr u32 kFirstRun = 3;  // pages in a row that make a sequence
constexpr u32 kMostAhead = kMostAtOnce;
constexpr u64 kRunBytes = u64{kMostAtOnce} * kPageSize;
constexpr u64 kClockStep = 256;  // evictions a tick of PageSlot::when

const void* bytes_at(Hva place) {
  return reinterpret_cast<const void*>(place.raw());
}

}  // namespace

Result<void> Swapper::init() {
  bench_ = ST_TRY(make<mem::PageStore::Bench>("reclaim.bench"));
  private_bench_ = ST_TRY(make<mem::PrivateSwap::Bench>("reclaim.private_bench"));
  private_bench_->store = bench_;
  const u64 bytes = u64{kPlaces} * kPageSize;
  void* const places = ST_TRY(map_pages(bytes, "reclaim.places"));
  places_ = Hva(reinterpret_cast<u64>(places));
  host::prepare_places(HvaRange(places_, bytes));
  run_bytes_ = static_cast<u8*>(ST_TRY(map_pages(kRunBytes, "reclaim.run")));
  return {};
}

Swapper::~Swapper() {
  destroy(bench_);
  if (private_bench_ != nullptr) destroy(private_bench_);
  if (run_bytes_ != nullptr) unmap_pages(run_bytes_, kRunBytes);
  if (places_.raw() != 0) {
    unmap_pages(reinterpret_cast<void*>(places_.raw()), u64{kPlaces} * kPageSize);
  }
}

// ---- places ---------------------------------------------------------------------------------

// So many in a row, or kNoPlace. A run is never longer than a word has bits.
u32 Swapper::find_places(u32 pages) {
  const u64 wanted = pages == 64 ? ~u64{0} : (u64{1} << pages) - 1;
  for (u32 word = 0; word < kPlaces / 64; ++word) {
    const u64 busy = taken_places_[word] | dirty_places_[word];
    for (u32 first = 0; first + pages <= 64; ++first) {
      if ((busy & wanted << first) != 0) continue;
      taken_places_[word] |= wanted << first;
      return word * 64 + first;
    }
  }
  return kNoPlace;
}

void Swapper::free_place(u32 place) {
  taken_places_[place / 64] &= ~(u64{1} << place % 64);
  dirty_places_[place / 64] |= u64{1} << place % 64;
}

// Of places that were asked for, and are not needed after all: they are as they were, unless a copy
// was made that did not count, or the kernel moved more than it says. Others would find that there.
void Swapper::free_unused(u32 first, u32 pages) {
  host::PageState states[kMostAtOnce];
  const bool known = host::page_states(place_at(first), pages, states).has_value();
  const sync::MutexGuard guard(spans_.lock());
  for (u32 i = 0; i < pages; ++i) {
    const u32 place = first + i;
    free_place(place);
    const bool empty = known && !states[i].present && !states[i].swapped;
    if (empty) dirty_places_[place / 64] &= ~(u64{1} << place % 64);
  }
}

// A run of any length finds places.
bool Swapper::has_room() {
  const sync::MutexGuard guard(spans_.lock());
  bool any = false;
  for (u32 word = 0; word < kPlaces / 64; ++word) {
    any = any || (taken_places_[word] | dirty_places_[word]) == 0;
  }
  return any && staged_ <= kPlaces - kMostAtOnce;
}

// What was left of pages in free places. Context: the turn.
void Swapper::drop_places() {
  u64 dirty[kPlaces / 64];
  {
    const sync::MutexGuard guard(spans_.lock());
    std::copy_n(dirty_places_, kPlaces / 64, dirty);
  }
  for (u32 at = 0; at < kPlaces;) {
    const auto is_dirty = [&](u32 place) { return (dirty[place / 64] >> (place % 64) & 1) != 0; };
    u32 end = at;
    while (end < kPlaces && is_dirty(end)) ++end;
    if (end > at) {
      static_cast<void>(sys::madvise(reinterpret_cast<void*>(place_at(at).raw()),
                                     u64{end - at} * kPageSize, MADV_DONTNEED));
    }
    at = end + 1;
  }
  const sync::MutexGuard guard(spans_.lock());
  for (u32 word = 0; word < kPlaces / 64; ++word) dirty_places_[word] &= ~dirty[word];
}

// ---- taking ---------------------------------------------------------------------------------

void Swapper::note_taken(Hva at, u32 place) {
  Span& span = *spans_.find(at);
  PageSlot& slot = span.slots[span.index_of(at)];
  ST_DCHECK(slot.where == Where::kHere);
  slot = {place, static_cast<u16>(counts_.taken / kClockStep), Where::kPlaced};
  ++span.absent;
  ++counts_.taken;
  list_[staged_++] = {at, place};
}

// False where a page of another object, absent still, had the address before this one.
bool Swapper::are_here(const Span& span, Hva at, u32 pages) {
  const PageSlot* const first = span.slots + span.index_of(at);
  return std::all_of(first, first + pages,
                     [](const PageSlot& slot) { return slot.where == Where::kHere; });
}

// Only the turn asks, about pages of spans it has before it; another owner's caller might not.
bool Swapper::take(const host::AbsentPage& page, host::PageExit& exit) {
  u32 place = kNoPlace;
  {
    const sync::MutexGuard guard(spans_.lock());
    const Span* const span = spans_.find(page.at);
    if (staged_ == kPlaces || span == nullptr || !are_here(*span, page.at, 1)) return false;
    place = find_places(1);
  }
  if (place == kNoPlace) return false;
  if (!exit.to(place_at(place))) {
    free_unused(place, 1);
    return false;
  }
  const sync::MutexGuard guard(spans_.lock());
  note_taken(page.at, place);
  return true;
}

unsigned Swapper::take_run(const host::AbsentPage& first, unsigned pages, host::PageExit& exit) {
  u32 place = kNoPlace;
  {
    const sync::MutexGuard guard(spans_.lock());
    const Span* const span = spans_.find(first.at);
    if (span == nullptr || span->index_of(first.at) + pages > span->pages) return 0;
    if (staged_ + pages > kPlaces || pages > 64 || !are_here(*span, first.at, pages)) return 0;
    place = find_places(pages);
  }
  if (place == kNoPlace) return 0;
  const unsigned went = exit.run_to(place_at(place));
  if (went < pages) free_unused(place + went, pages - went);
  const sync::MutexGuard guard(spans_.lock());
  for (u32 i = 0; i < went; ++i) note_taken(first.at + u64{i} * kPageSize, place + i);
  return went;
}

u64 Swapper::stayed(const Span& span, u64 first, u64 pages) {
  const sync::MutexGuard guard(spans_.lock());
  u64 here = 0;
  for (u64 i = 0; i < pages; ++i) {
    here |= u64{span.slots[first + i].where == Where::kHere ? 1U : 0U} << i;
  }
  return here;
}

// ---- storing --------------------------------------------------------------------------------

bool Swapper::begin_squeeze(const Staged& staged) {
  const sync::MutexGuard guard(spans_.lock());
  Span* const span = spans_.find(staged.at);
  if (span == nullptr) return false;
  PageSlot& slot = span->slots[span->index_of(staged.at)];
  if (slot.where != Where::kPlaced || slot.what != staged.place) return false;
  slot.where = Where::kSqueezing;
  return true;
}

// False: the stored copy, if there is one, is nobody's.
bool Swapper::end_squeeze(const Staged& staged, const Result<mem::StoredPage>& stored) {
  const sync::MutexGuard guard(spans_.lock());
  Span& span = *spans_.find(staged.at);
  PageSlot& slot = span.slots[span.index_of(staged.at)];
  if (slot.where == Where::kLeft) {
    slot = {};
    --span.absent;
    free_place(staged.place);
    return false;
  }
  // Who copies has the place, and goes on as one who fetches, or moves it.
  const bool copied = slot.where == Where::kCopying;
  if (!stored) {
    slot.where = copied ? Where::kReturning : Where::kPlaced;
    return false;
  }
  slot.where = copied ? Where::kFetching : Where::kStored;
  slot.what = static_cast<u32>(*stored);
  if (!copied) free_place(staged.place);
  return true;
}

int Swapper::settle() {
  int refusal = 0;
  const u32 count = staged_;
  for (u32 i = 0; i < count; ++i) {
    const Staged staged = list_[i];
    if (!begin_squeeze(staged)) continue;
    const auto stored = store_.put(bytes_at(place_at(staged.place)), bench_, file().get());
    if (end_squeeze(staged, stored)) continue;
    if (stored) {
      store_.drop(*stored);
      continue;
    }
    refusal = to_int(stored.error());
    refused_.store(sys::current_tid(), sync::kRelaxed);
    static_cast<void>(host::bring_back(staged.at));
    refused_.store(0, sync::kRelaxed);
    const sync::MutexGuard guard(spans_.lock());
    ++counts_.not_stored;
  }
  staged_ = 0;
  drop_places();
  return refusal;
}

// ---- bringing back --------------------------------------------------------------------------

Swapper::Return Swapper::begin_return(Hva at) {
  const sync::MutexGuard guard(spans_.lock());
  Span& span = *spans_.find(at);
  PageSlot& slot = span.slots[span.index_of(at)];
  const Return job{slot.where, slot.what};
  if (slot.where == Where::kPlaced) slot.where = Where::kReturning;
  if (slot.where == Where::kStored) {
    slot.where = Where::kFetching;
    store_.expect(mem::StoredPage{slot.what});
  }
  if (slot.where == Where::kSqueezing) slot.where = Where::kCopying;
  return job;
}

// Answers how many neighbours are worth to come along.
u32 Swapper::end_return(Hva at, Return job, host::BringBack outcome, Touch touch) {
  const bool gone = outcome != host::BringBack::kRetry;
  bool dropped = false;
  u32 ahead = 0;
  {
    const sync::MutexGuard guard(spans_.lock());
    Span& span = *spans_.find(at);
    PageSlot& slot = span.slots[span.index_of(at)];
    if (touch == Touch::kWanted) ahead = note_touch(span, span.index_of(at));
    const Where now = slot.where;
    const u32 what = slot.what;
    if (now == Where::kCopying) {
      slot.where = gone ? Where::kLeft : Where::kSqueezing;
    } else if (gone) {
      slot = {};
      --span.absent;
    } else {
      slot.where = now == Where::kFetching ? Where::kStored : Where::kPlaced;
    }
    // A place that was copied while its page was stored is nobody's now, whatever came of it.
    const bool was_stored_meanwhile = job.was == Where::kSqueezing && now == Where::kFetching;
    if (was_stored_meanwhile || (gone && now == Where::kReturning)) free_place(job.what);
    dropped = gone && now == Where::kFetching;
    job.what = what;
  }
  if (dropped) store_.drop(mem::StoredPage{job.what});
  return ahead;
}

host::BringBack Swapper::put_back(Hva at, Return job, host::PageEntry& entry) {
  using host::BringBack;
  if (job.was == Where::kPlaced) {
    return entry.from(place_at(job.what)) ? BringBack::kBack : BringBack::kRetry;
  }
  if (job.was == Where::kSqueezing) {
    return entry.from_bytes(bytes_at(place_at(job.what))) ? BringBack::kBack : BringBack::kRetry;
  }
  alignas(64) u8 page[kPageSize];
  const auto got = store_.get(mem::StoredPage{job.what}, page, file().get());
  if (!got) {
    say_lost(at, to_int(got.error()));
    return BringBack::kLost;
  }
  return entry.from_bytes(page) ? BringBack::kBack : BringBack::kRetry;
}

// For what comes ahead it is owed at once, when all has come: its toucher waits for the first page.
// What the store refused, the turn itself puts back, and does not wait for itself.
void Swapper::owe_for(HvaRange came) {
  const int self = sys::current_tid();
  if (refused_.load(sync::kRelaxed) == self) {
    host::budget::count_in(came, static_cast<s64>(came.size() >> kPageShift));
  } else if (ahead_.load(sync::kRelaxed) != self) {
    host::budget::owe_for(came);
  }
}

host::BringBack Swapper::bring_back(const host::AbsentPage& page, host::PageEntry& entry) {
  const Return job = begin_return(page.at);
  const host::BringBack outcome = put_back(page.at, job, entry);
  const bool back = outcome == host::BringBack::kBack;
  if (back) owe_for(HvaRange(page.at, kPageSize));
  const bool wanted = back && refused_.load(sync::kRelaxed) != sys::current_tid();
  const u32 ahead = end_return(page.at, job, outcome, wanted ? Touch::kWanted : Touch::kNone);
  if (ahead != 0) read_ahead(page.at + kPageSize, ahead);
  return outcome;
}

// The pages from the first one on that are stored: they are being fetched now.
unsigned Swapper::begin_run(Hva first, unsigned pages, u32* stored) {
  const sync::MutexGuard guard(spans_.lock());
  Span& span = *spans_.find(first);
  const u64 index = span.index_of(first);
  unsigned count = 0;
  while (count < pages && index + count < span.pages) {
    PageSlot& slot = span.slots[index + count];
    if (slot.where != Where::kStored) break;
    slot.where = Where::kFetching;
    stored[count++] = slot.what;
  }
  return count;
}

void Swapper::end_run(Hva first, unsigned pages, unsigned back) {
  const sync::MutexGuard guard(spans_.lock());
  Span& span = *spans_.find(first);
  const u64 index = span.index_of(first);
  for (unsigned i = 0; i < pages; ++i) {
    PageSlot& slot = span.slots[index + i];
    if (i >= back) {
      slot.where = Where::kStored;
      continue;
    }
    static_cast<void>(note_touch(span, index + i));
    slot = {};
    --span.absent;
  }
}

// Who finds the bytes of others in the buffer, or an error, is asked page by page.
unsigned Swapper::bring_back_run(const host::AbsentPage& first, unsigned pages,
                                 host::PageEntry& entry) {
  if (run_busy_.exchange(true, sync::kAcquire)) return 0;
  u32 stored[kMostAtOnce];
  const unsigned count = begin_run(first.at, std::min(pages, u32{kMostAtOnce}), stored);
  unsigned read = 0;
  const auto file_use = file();
  while (read < count &&
         store_.get(mem::StoredPage{stored[read]}, run_bytes_ + read * kPageSize, file_use.get())) {
    ++read;
  }
  const unsigned back = read == 0 ? 0 : entry.run_from_bytes(run_bytes_, read);
  run_busy_.store(false, sync::kRelease);
  if (count != 0) end_run(first.at, count, back);
  if (back != 0) owe_for(HvaRange(first.at, u64{back} << kPageShift));
  for (unsigned i = 0; i < back; ++i) store_.drop(mem::StoredPage{stored[i]});
  return back;
}

// How many pages behind it are worth to come with it.
u32 Swapper::note_touch(Span& span, u64 index) {
  if (ahead_.load(sync::kRelaxed) == sys::current_tid()) {
    ++counts_.ahead;
    span.note_used(index, 0);
    return 0;
  }
  ++counts_.refaults;
  const u16 now = static_cast<u16>(counts_.taken / kClockStep);
  const u64 distance =
      static_cast<u64>(static_cast<u16>(now - span.slots[index].when)) * kClockStep;
  const bool too_early = distance <= resident_.load(sync::kRelaxed);
  counts_.too_early += too_early ? 1 : 0;
  span.note_used(index, too_early ? Age{0} : Age{1});
  return note_in_row(span, index);
}

u32 Swapper::note_in_row(Span& span, u64 index) {
  span.row = span.last_touch + 1 == index ? span.row + 1 : 0;
  span.last_touch = index;
  return span.row >= kFirstRun ? std::min(span.row, kMostAhead) : 0;
}

// Neighbours of which bytes are kept, from `after` on.
u32 Swapper::kept_behind(Hva after, u32 most) {
  const sync::MutexGuard guard(spans_.lock());
  const Span* const span = spans_.find(after);
  if (span == nullptr) return 0;
  const u64 first = span->index_of(after);
  u32 pages = 0;
  while (pages < most && first + pages < span->pages) {
    const Where where = span->slots[first + pages].where;
    if (where != Where::kStored && where != Where::kPlaced) break;
    ++pages;
  }
  return pages;
}

// One thread at a time; it waits for nobody: who has the next page in hand may be waiting for the
// one that it was asked for. Where memory is short nothing comes that nobody wanted, but for a
// sequence that has been long: its next pages will be wanted, and cost less together.
void Swapper::read_ahead(Hva after, u32 most) {
  int nobody = 0;
  const s64 needed = most < kMostAhead ? s64{2} * kMostAhead : -s64{kMostAhead};
  if (host::budget::spare(after) < needed) return;
  if (!ahead_.compare_exchange(nobody, sys::current_tid(), sync::kRelaxed)) return;
  const u64 came = host::bring_back_ahead(HvaRange(after, kept_behind(after, most) * kPageSize));
  ahead_.store(0, sync::kRelaxed);
  if (came == 0) return;
  host::budget::owe_for(HvaRange(after, came << kPageShift));
  // The sequence goes on behind them.
  const sync::MutexGuard guard(spans_.lock());
  Span* const span = spans_.find(after);
  if (span == nullptr) return;
  span->last_touch = span->index_of(after) + came - 1;
  span->row += static_cast<u32>(came);
}

void Swapper::discard(const host::AbsentPage& page) {
  const Return job = begin_return(page.at);
  static_cast<void>(end_return(page.at, job, host::BringBack::kBack, Touch::kNone));
  const sync::MutexGuard guard(spans_.lock());
  ++counts_.discarded;
}

// ---- private pages --------------------------------------------------------------------------

mem::private_pages::Taken Swapper::take_private(HvaRange run) {
  const auto taken = mem::private_pages::take(run, private_bench_);
  const sync::MutexGuard guard(spans_.lock());
  counts_.taken += taken.pages;
  counts_.not_stored += taken.refusal == 0 || taken.refusal == EBUSY ? 0 : 1;
  return taken;
}

// Its age says how long it had not been used when it went.
u64 Swapper::private_came_back(Hva at) {
  u32 along = 0;
  {
    const sync::MutexGuard guard(spans_.lock());
    ++counts_.refaults;
    ++counts_.private_refaults;
    Span* const span = spans_.find(at);
    if (span == nullptr) return 0;
    const u64 index = span->index_of(at);
    span->note_used(index, Age{1});
    along = note_in_row(*span, index);
  }
  return host::budget::spare(at) < s64{2} * kMostAtOnce ? 0 : along;
}

void Swapper::private_came_along(HvaRange pages) {
  const u64 count = pages.size() >> kPageShift;
  host::budget::owe_for(pages);
  const sync::MutexGuard guard(spans_.lock());
  counts_.ahead += count;
  Span* const span = spans_.find(pages.start());
  if (span == nullptr) return;
  const u64 first = span->index_of(pages.start());
  for (u64 i = first; i < first + count; ++i) span->ages[i].store(Age{0}, sync::kRelaxed);
  // The sequence goes on behind them.
  span->last_touch = first + count - 1;
  span->row += static_cast<u32>(count);
}

void Swapper::private_lost(Hva at, int error) {
  say_lost(at, error);
}

void Swapper::private_discarded(u64 pages) {
  const sync::MutexGuard guard(spans_.lock());
  counts_.discarded += pages;
}

// The first one, and then how many at ten times as many: a disk that goes bad takes a whole guest.
void Swapper::say_lost(Hva at, int error) {
  u64 lost = 0;
  {
    const sync::MutexGuard guard(spans_.lock());
    lost = ++counts_.lost;
  }
  u64 said = lost;
  while (said >= 10 && said % 10 == 0) said /= 10;
  if (say_ == nullptr || said != 1) return;
  FixedString<240> line;
  if (lost == 1) {
    line.append("a page of guest memory is lost: ");
  } else {
    line.append_int(static_cast<s64>(lost)).append(" pages of guest memory are lost: ");
  }
  line.append("the swap file has ");
  line.append(error == EBADMSG ? "other bytes than were written to it" : "an error");
  line.append(lost == 1 ? " (address " : " (the last at address ").append_hex(at.raw());
  line.append(", errno ").append_int(error);
  line.append("); whoever touches ").append(lost == 1 ? "it" : "one").append(" fails");
  say_(line.c_str());
}

SwapCounts Swapper::counts() {
  const sync::MutexGuard guard(spans_.lock());
  return counts_;
}

}  // namespace stagetwo::reclaim

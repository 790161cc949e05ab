// SPDX-License-Identifier: Apache-2.0
// What goes. Between its two marks the memory in use may move; over the upper one the oldest pages
// are taken until the lower one is reached. A turn does not last: who waits for it gets what there
// is, and the next turn goes on.
//
//   limit ------------------- a guest's fault waits here
//   reserve 1/128 below ----- the process's own touches do
//   high   1/32 below ------- the worker begins
//   low    1/16 below ------- it stops

#include "reclaim/reclaimer.h"

#include <algorithm>
#include <bit>

#include "base/text.h"
#include "host/budget_accounts.h"
#include "host/memory_budget.h"
#include "host/mmu_notifier.h"
#include "host/page_owner.h"
#include "host/process_map.h"
#include "sync/futex.h"

namespace stagetwo::reclaim {
namespace {

constexpr u64 kLongestTurnNs = 1'000'000;  // a guest's store may be waiting
constexpr u64 kFreshLookNs = 1'000'000;
constexpr u64 kLookShare = 16;  // of the time at most one part goes into looking
constexpr u64 kStaleLookNs = 100'000'000;
// Passes this close tell nothing: the vCPUs' soft TLBs have not been flushed in between.
constexpr u64 kPassesApartNs = 8'000'000;
constexpr u64 kBatch = 64;
constexpr u64 kUnkeptNs = 50'000'000;
constexpr const char* kNoFile =
    "the memory limit is not kept: what does not fit in memory compressed has no room in a swap "
    "file (--swap)";
constexpr const char* kFileFull =
    "the memory limit is not kept: the swap file is full (--swap=FILE,size=SIZE)";
constexpr const char* kStuck =
    "the memory limit is not kept: what is over it is pinned, locked, shared with another process, "
    "a private mapping of a file, without rights, watched by the program itself or, with an "
    "io_uring, any shared "
    "memory (--stats says how much of each)";
constexpr const char* kChanging =
    "the memory limit is not kept for a while: what is over it is being unmapped or moved by the "
    "program, which brings it back first (--stats: refused_changing)";
constexpr const char* kGuestStuck =
    "the memory limit of a VM is not kept: what is over it is pinned, locked, shared with another "
    "process, a private mapping of a file, without rights, watched by the program itself or, with "
    "an io_uring, any shared memory (--stats says how much of each)";
constexpr Age kAnyAge = -1;
constexpr unsigned kFruitless = 3;  // looks for pages in a row that found none
constexpr Age kNothing = kOldest + 1;

}  // namespace

bool Scope::has(HvaRange range) const {
  return all ||
         std::any_of(ranges, ranges + count, [&](HvaRange one) { return one.overlaps(range); });
}

// Takes one run of neighbours.
u64 Reclaimer::take_run(Span& span, u64 first, u64 pages) {
  const HvaRange run(span.at(first), pages << kPageShift);
  if (span.kind == Span::Kind::kPrivate) return take_private(span, first, run);
  const auto taken = host::take_away(run, &swapper_, this, host::Which::kReclaim, &span.range);
  span.forget_resident(first, pages);
  if (taken) host::budget::count_in(run, -static_cast<s64>(*taken));
  if (taken && *taken < pages) {
    span.note_stuck(first, swapper_.stayed(span, first, pages), sync::now_ns());
  }
  if (!taken) {
    // Not one mapping any more, or none that may be read: looked at again before anything else of
    // it is tried, and these pages not at once.
    const u64 stayed = swapper_.stayed(span, first, pages);
    span.note_stuck(first, stayed, sync::now_ns());
    span.kind = Span::Kind::kUnmapped;
    unmapped_ += static_cast<u64>(std::popcount(stayed));
    return 0;
  }
  if (!swapper_.has_room() && swapper_.settle() != 0) give_in_full();
  return *taken;
}

// A huge page is split by what goes of it. So all of it has to be old, and nobody may have used any
// of it since the last pass; only when nothing else goes, a part of one does.
bool Reclaimer::may_split(Span& span, u64 index, Age from) {
  const u64 block = host::huge_block(span.range, span.at(index));
  if ((span.huge[block / 64] >> (block % 64) & 1) == 0) return true;
  const u64 first = span.block_start(index);
  const u64 end = span.block_end(index);
  bool all = true;
  for (u64 i = first; i < end && all; ++i) all = span.ages[i].load(sync::kRelaxed) >= from;
  if (all && from > kAnyAge) {
    u64 young[8] = {};
    host::collect_young(HvaRange(span.at(first), (end - first) << kPageShift), young);
    for (u64 i = first; i < end; ++i) {
      if ((young[(i - first) / 64] >> ((i - first) % 64) & 1) == 0) continue;
      span.note_used(i, 0);
      all = false;
    }
  }
  if (!all && from > kAnyAge) return false;
  span.huge[block / 64] &= ~(u64{1} << (block % 64));
  ++huge_splits_;
  return true;
}

u64 Reclaimer::take_private(Span& span, u64 first, HvaRange run) {
  const mem::private_pages::Taken taken = swapper_.take_private(run);
  span.forget_resident(first, run.size() >> kPageShift);
  host::budget::count_in(run, -static_cast<s64>(taken.pages));
  // EBUSY: the client locks all memory as it is made.
  if (taken.refusal == EBUSY) {
    span.kind = Span::Kind::kLocked;
  } else if (taken.refusal != 0) {
    give_in_full();
  }
  return taken.pages;
}

// From *index on, to the end of the span or until `wanted` pages went. Only whole chunks of the
// bitmap are looked at once, so runs end where they do.
u64 Reclaimer::evict_from(Span& span, u64* index, Age from, u64 wanted) {
  u64 taken = 0;
  const auto old = [&](u64 i) {
    return span.is_resident(i) && !span.is_stuck(i) && span.ages[i].load(sync::kRelaxed) >= from;
  };
  u64 i = *index;
  while (i < span.pages && taken < wanted && span.can_leave()) {
    if ((span.resident[i / 64] & ~span.stuck[i / 64]) >> (i % 64) == 0) {
      i = (i / 64 + 1) * 64;
      continue;
    }
    if (!old(i)) {
      ++i;
      continue;
    }
    if (!may_split(span, i, from)) {
      i = span.block_end(i);
      continue;
    }
    u64 end = i + 1;
    const u64 last = std::min(span.block_end(i), i + kMostAtOnce);
    while (end < last && old(end)) ++end;
    u64 young = 0;
    host::collect_young(HvaRange(span.at(i), (end - i) << kPageShift), &young);
    if (young != 0 && from > kAnyAge) {
      // Used since the last pass: these stay, and the run ends before the first of them.
      for (u64 left = young; left != 0; left &= left - 1) {
        span.note_used(i + static_cast<u64>(std::countr_zero(left)), 0);
      }
      end = i + static_cast<u64>(std::countr_zero(young));
    }
    if (end > i) taken += take_run(span, i, end - i);
    i = std::max(end, i + 1);
  }
  *index = span.can_leave() ? i : span.pages;
  return taken;
}

// The clock hand, once round at most.
u64 Reclaimer::evict(const Scope& scope, Age from, u64 wanted) {
  u64 taken = 0;
  bool wrapped = false;
  const Hva begun = hand_;
  while (taken < wanted) {
    Span* const span = spans_.next(hand_);
    if (span == nullptr) {
      if (wrapped) break;
      wrapped = true;
      hand_ = Hva(0);
      continue;
    }
    if (wrapped && span->range.start() >= begun && begun.raw() != 0) break;
    u64 index = hand_ > span->range.start() ? span->index_of(hand_) : 0;
    if (scope.has(span->range)) {
      taken += evict_from(*span, &index, from, wanted - taken);
    } else {
      index = span->pages;
    }
    hand_ = index >= span->pages ? span->range.end() : span->at(index);
  }
  if (taken != 0) last_taken_ = sync::now_ns();
  return taken;
}

// 1 where only all old ones together are fewer, 0 where there is none.
Age Reclaimer::threshold(const u64* histogram, u64 wanted) {
  u64 sum = 0;
  for (int age = kOldest; age > 0; --age) {
    sum += histogram[age];
    if (sum >= wanted) return static_cast<Age>(age);
  }
  return sum != 0 ? Age{1} : Age{0};
}

// From which age on pages go, so that there are so many. Where none is old, a pass is due, though
// not at once after the last one; where none is old even then, all of them are in use, and any
// goes.
Age Reclaimer::choose_age(Limited& of, u64 wanted, u64 until) {
  // A guest's part of the last pass is counted when it is asked for.
  const auto count = [&] {
    if (&of == &whole_ || of.counted_in == passes_) return;
    count_ages(scope_of(of), of.histogram);
    of.counted_in = passes_;
  };
  count();
  Age from = threshold(of.histogram, wanted);
  if (from > 0) return from;
  // The first pass ever finds everything used: it tells nothing but the next one does.
  if (passes_ == 0) {
    look();
    pass();
  }
  const u64 due = last_pass_ + kPassesApartNs;
  const u64 now = sync::now_ns();
  if (now < due) {
    // Nobody may have run meanwhile: the next turn asks.
    if (now < until) sync::futex_wait(pause_, 0, std::min(due, until) - now);
    return kNothing;
  }
  look();
  pass();
  count();
  from = threshold(of.histogram, wanted);
  return from > 0 ? from : kAnyAge;
}

// An estimate: which of them went is not told apart.
void Reclaimer::forget_taken(u64* histogram, Age from, u64 taken) {
  for (int age = kOldest; age >= std::max<int>(from, 0); --age) {
    const u64 some = std::min(histogram[age], taken);
    histogram[age] = taken == 0 ? 0 : histogram[age] - some;
    taken -= some;
    if (taken == 0 && some != 0) return;
  }
}

void Reclaimer::keep_under(Limited& of, u64 until) {
  const Marks marks = marks_of(of);
  for (u64 used = used_of(of); used > marks.low && sync::now_ns() < until; used = used_of(of)) {
    const u64 wanted = std::min((used - marks.low) >> kPageShift, kBatch) + 1;
    const Age from = choose_age(of, wanted, until);
    if (from == kNothing) return;
    const u64 taken = evict(scope_of(of), from, wanted);
    forget_taken(of.histogram, from, taken);
    if (swapper_.settle() != 0) return give_in_full();
    if (&of == &whole_) {
      give_budget(usage());
    } else {
      give_room(of);
    }
    if (taken != 0) changing_ = host::owner_counts().refused_change;
    of.fruitless = taken == 0 ? of.fruitless + 1 : 0;
    if (of.fruitless < kFruitless) continue;
    of.fruitless = 0;
    look();
    // Who is old is an estimate, and may have turned out young; and where a page was may be nothing
    // since. Before nothing goes, anything does that there is now.
    if (evict(scope_of(of), kAnyAge, wanted) != 0) continue;
    if (used_of(of) > marks.limit) {
      give_in(of);
      if (host::owner_counts().refused_change != changing_) {
        say_once(&said_changing_, kChanging);
      } else {
        say_stuck(of);
      }
    }
    return;
  }
}

// Where what cannot leave has most of the limit for itself, the rest gets a quarter of it all the
// same: to take the same few pages again and again would keep no limit either.
Reclaimer::Marks Reclaimer::marks_of(u64 asked, u64 fixed) {
  if (asked == kNoLimit) return {asked, asked, asked};
  const bool fits = fixed <= asked - asked / 4;
  const u64 room = fits ? asked : asked / 4;
  const u64 limit = fits ? asked : fixed + room;
  return {limit, limit - room / 32, limit - room / 16};
}

// The limit cannot be kept now: guests get some pages beyond it, or they would stand still. Once
// for a while, so that a limit which is missed by a little is not lost sight of.
void Reclaimer::give_in(Limited& of) {
  const u64 now = sync::now_ns();
  if (now >= of.unkept_until && &of != &whole_) {
    of.beyond = host::budget::pages_of(account_of(of)) + kUnkeptPages;
  } else if (now >= of.unkept_until && limit_.load(sync::kRelaxed) != kNoLimit) {
    host::budget::grant(kUnkeptPages);
  }
  of.unkept_until = now + std::max(kUnkeptNs, kLookShare * look_.took);
}

void Reclaimer::say_stuck(const Limited& of) {
  const bool all = &of == &whole_;
  say_once(all ? &said_stuck_ : &said_guest_stuck_, all ? kStuck : kGuestStuck);
}

void Reclaimer::say_once(bool* said, const char* why) {
  if (*said || say_ == nullptr) return;
  *said = true;
  say_(why);
}

void Reclaimer::give_in_full() {
  FixedString<160> line;
  if (const int error = swapper_.store().use().last_error; error != 0) {
    line.append("the memory limit is not kept: the swap file cannot be written (errno ");
    line.append_int(error).append_char(')');
  } else {
    line.append(swapper_.file().get() >= 0 ? kFileFull : kNoFile);
  }
  give_in(whole_);
  say_once(&said_full_, line.c_str());
}

void Reclaimer::give_budget(u64 used) {
  const u64 limit = marks().limit;
  // Over the limit it is a debt: who must not wait slows down by it.
  const s64 left = static_cast<s64>(limit >> kPageShift) - static_cast<s64>(used >> kPageShift);
  host::budget::grant(unkept() ? std::max(left, host::budget::left()) : left);
}

void Reclaimer::look_if_due() {
  const u64 look_apart = std::max(kFreshLookNs, kLookShare * look_.took);
  if (sync::now_ns() - look_.at > look_apart) look();
}

void Reclaimer::keep_limits(u64 now) {
  const u64 asked = limit_.load(sync::kRelaxed);
  busy_ = false;
  if (asked != kNoLimit) {
    // Of memory that is large and mostly empty a look takes long, and nobody may be at work in it.
    if (now - look_.at > std::max(kStaleLookNs, kLookShare * look_.took)) look();
    if (usage() > marks().high) look_if_due();
    const u64 high = marks().high;
    if (whole_.fixed > asked) say_stuck(whole_);
    // A look may take longer than a turn is to last: what it finds is still acted on.
    if (usage() > high && !unkept()) keep_under(whole_, sync::now_ns() + kLongestTurnNs);
    const u64 used = usage();
    busy_ = used > high && !unkept();
    give_budget(used);
  }
  keep_guests_limits(sync::now_ns() + kLongestTurnNs);
}

void Reclaimer::count_ages(const Scope& scope, u64* histogram) {
  std::fill_n(histogram, kOldest + 1, u64{0});
  for_each_span([&](Span& span) {
    if (!span.can_leave() || !scope.has(span.range)) return;
    for (u64 i = 0; i < span.pages; ++i) {
      const Age age = span.is_resident(i) ? span.ages[i].load(sync::kRelaxed) : Age{-1};
      if (age >= 0) ++histogram[age];
    }
  });
}

}  // namespace stagetwo::reclaim

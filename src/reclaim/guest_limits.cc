// SPDX-License-Identifier: Apache-2.0
// Limits of single guests. Each has an account of what is in memory of its ranges
// (host/budget_accounts.h): pages that come and go are counted there as they do, looks correct it.
// Who reaches for a page of a guest that has nothing left runs a turn, or waits, as for the whole.

#include <algorithm>

#include "host/budget_accounts.h"
#include "host/memory_budget.h"
#include "mem/private_swap.h"
#include "reclaim/guests.h"
#include "reclaim/reclaimer.h"
#include "sync/futex.h"

namespace stagetwo::reclaim {
namespace {

constexpr s64 kGuestReserveShare = 128;  // of the limit
constexpr u64 kUnseen = u64{2} << 20;    // bytes that may have come

// Memory that a guest has in several slots is there once. Those from `first` on.
void join_overlapping(Vec<HvaRange>& ranges, size_t first) {
  if (ranges.size() == first) return;
  std::sort(ranges.begin() + first, ranges.end(),
            [](HvaRange a, HvaRange b) { return a.start() < b.start(); });
  size_t last = first;
  for (size_t i = first + 1; i < ranges.size(); ++i) {
    if (ranges[i].start() < ranges[last].end()) {
      const Hva end = std::max(ranges[last].end(), ranges[i].end());
      ranges[last] = HvaRange(ranges[last].start(), end - ranges[last].start());
    } else {
      ranges[++last] = ranges[i];
    }
  }
  while (ranges.size() > last + 1) ranges.pop_back();
}

}  // namespace

// Where there is no memory for it, what there was stands until the next turn.
void Reclaimer::follow_guests() {
  const u64 changes = guests.changes.load(sync::kRelaxed);
  if (changes == limited_as_of_) return;
  Vec<Limited> limited{"reclaim.limited"};
  Vec<HvaRange> ranges{"reclaim.limited_ranges"};
  Vec<host::budget::AccountRange> charged{"reclaim.limited_ranges"};
  u64 sum = 0;
  bool all = true;
  {
    const sync::MutexGuard guard(guests.lock);
    for (Guest* guest = guests.first; guest != nullptr; guest = guest->next_) {
      if (guest->limit_ == kNoLimit) continue;
      Limited one;
      one.limit = guest->limit_;
      one.first_range = ranges.size();
      guest->ranges_.for_each(
          [&](u32, const Guest::Range& used) { all = all && ranges.push_back(used.range); });
      join_overlapping(ranges, one.first_range);
      one.ranges = ranges.size() - one.first_range;
      const u32 account = static_cast<u32>(limited.size());
      for (size_t i = one.first_range; i < ranges.size(); ++i) {
        one.bytes += ranges[i].size();
        all = all && charged.push_back({ranges[i], account});
      }
      all = all && limited.push_back(one);
      sum += std::min(one.limit, kNoLimit / 2 - sum);
    }
  }
  const u32 count = static_cast<u32>(limited.size());
  if (!all || !host::budget::set_accounts(std::move(charged), count)) return;
  limited_as_of_ = changes;
  limited_ = std::move(limited);
  limited_ranges_ = std::move(ranges);
  guests_near_ = false;
  if (sum != 0 || guests_limits_.load(sync::kRelaxed) != 0) {
    guests_limits_.store(sum, sync::kRelaxed);
    share_limit();
    let_pay();
  }
  measure_limited();
  measure_due_ = true;
}

Scope Reclaimer::scope_of(const Limited& of) const {
  if (&of == &whole_) return {};
  return {false, limited_ranges_.begin() + of.first_range, of.ranges};
}

// As the last look found it.
void Reclaimer::measure_limited() {
  for (Limited& guest : limited_) {
    Parts all;
    const Scope scope = scope_of(guest);
    for (size_t i = 0; i < scope.count; ++i) {
      const Parts parts = parts_of(scope.ranges[i]);
      all.resident += parts.resident - parts.hugetlb;
      all.fixed += parts.fixed;
      all.private_holes += parts.private_holes;
    }
    guest.fixed = all.fixed << kPageShift;
    guest.private_holes = all.private_holes;
    host::budget::set_pages(account_of(guest), static_cast<s64>(all.resident));
  }
}

// Of what is kept of absent pages each guest has as large a part as of these pages; those of
// guest_memfds are not told apart by ranges, and stand for some of the holes.
u64 Reclaimer::kept_part_of(const Limited& guest) {
  const u64 private_away = mem::private_pages::away();
  const u64 away = spans_.absent_pages() + private_away;
  if (away == 0) return 0;
  const Scope scope = scope_of(guest);
  u64 its = 0;
  for (size_t i = 0; i < scope.count; ++i) its += spans_.absent_in(scope.ranges[i]);
  if (private_holes_ != 0) its += private_away * guest.private_holes / private_holes_;
  return (kept_bytes() >> kPageShift) * std::min(its, away) / away;
}

u64 Reclaimer::usage_of(const Limited& guest) {
  const u64 pages = static_cast<u64>(host::budget::pages_of(account_of(guest)));
  return (pages + kept_part_of(guest)) << kPageShift;
}

void Reclaimer::give_room(Limited& guest) {
  const s64 limit = static_cast<s64>(marks_of(guest).limit >> kPageShift);
  s64 room = limit - static_cast<s64>(kept_part_of(guest));
  if (unkept(guest)) room = std::max(room, guest.beyond);
  host::budget::set_room(account_of(guest), room, limit / kGuestReserveShare);
  host::budget::wake();
}

// One that may have more than its limit, of which half, or the last 64 MiB, is not free any more.
void Reclaimer::note_growth_of_guests() {
  for (Limited& guest : limited_) {
    const u64 margin = std::max(guest.limit / 2, kMostBetweenTurns);
    guest.watched = guest.bytes > guest.limit && (guest.watched || margin >= guest.limit ||
                                                  usage_of(guest) > guest.limit - margin);
  }
}

bool Reclaimer::grows(HvaRange span) const {
  return all_grow_ || std::any_of(limited_.begin(), limited_.end(), [&](const Limited& guest) {
           return guest.watched && scope_of(guest).has(span);
         });
}

void Reclaimer::keep_guest_limit(Limited& guest, u64 until) {
  const u64 now = sync::now_ns();
  // Nothing goes to the store.
  if (unkept() && now >= guest.unkept_until) {
    guest.beyond = host::budget::pages_of(account_of(guest)) + kUnkeptPages;
    guest.unkept_until = whole_.unkept_until;
  }
  if (guest.fixed > guest.limit) say_stuck(guest);
  if (usage_of(guest) > marks_of(guest).high && !unkept(guest)) {
    look_if_due();
    if (usage_of(guest) > marks_of(guest).high) keep_under(guest, until);
  }
  const u64 used = usage_of(guest);
  guests_near_ = guests_near_ || used > guest.limit / 2;
  busy_ = busy_ || (used > marks_of(guest).high && !unkept(guest));
  give_room(guest);
}

void Reclaimer::keep_guests_limits(u64 until) {
  guests_near_ = false;
  if (limited_.empty()) return;
  // What came without anybody telling is seen by the growth of the process.
  if (measure_due_ || resident_now() > look_.resident + kUnseen) look_if_due();
  for (size_t i = 0; i < limited_.size(); ++i) {
    keep_guest_limit(limited_[(next_guest_ + i) % limited_.size()], until);
  }
  next_guest_ = (next_guest_ + 1) % limited_.size();
}

}  // namespace stagetwo::reclaim

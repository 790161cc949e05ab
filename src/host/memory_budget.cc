// SPDX-License-Identifier: Apache-2.0
#include "host/memory_budget.h"

#include <algorithm>
#include <climits>

#include "host/budget_accounts.h"
#include "host/page_owner.h"
#include "host/process_map.h"
#include "host/worker.h"
#include "sync/futex.h"

// One turn at a time makes room, whoever runs it. Who finds nothing left runs one, or, while
// somebody else's lasts (it may read a gigabyte's tables or wait for a disk), sleeps on `grants`
// for kLookAgainNs; then it goes on, because a page that cannot be paid for is still the guest's,
// and a guest whose store takes long is seen to stand still. Only deep in debt it does so again,
// for kLongestNs at most.
//
// Tried and rejected: to leave all turns to the worker. On a busy machine a guest then waits for
// two threads to be scheduled for every few pages.

namespace stagetwo::host::budget {

namespace detail {
constinit sync::Atomic<bool> limited{false};
constinit sync::Passage reaching;
constinit sync::Atomic<u32> no_room{0};
}  // namespace detail

namespace {

constexpr u64 kLongestNs = 4'000'000;
constexpr s64 kDeepDebt = 512;
constexpr u64 kLookAgainNs = 1'000'000;
constexpr u64 kLandingNs = 50'000'000;
// A store may reach for the page of a table, for its own and, if that was read first, once more.
constexpr int kReachesOfAStore = 4;

constinit sync::Atomic<WorkItem*> relief{nullptr};
// Set by grant(), taken from by payments; an estimate, so relaxed.
constinit sync::Atomic<s64> pages_left{0};
constinit sync::Atomic<s64> reserved{0};
// Raised by every grant(); sleepers wait on it.
constinit sync::Atomic<u32> grants{0};
// Sleeps so far, relaxed: a statistic.
constinit sync::Atomic<u64> waited{0};

void wait_for_grant(u32 seen) {
  waited.fetch_add(1, sync::kRelaxed);
  sync::futex_wait(grants, seen, kLookAgainNs);
}

}  // namespace

namespace {

// left(): what there is now.
template <typename F>
void make_room(F&& left) {
  const u64 begun = sync::now_ns();
  do {
    WorkItem* const item = relief.load(sync::kAcquire);
    if (item == nullptr) return;
    const u32 seen = grants.load(sync::kAcquire);
    if (!run_turn(item) && left() <= 0) wait_for_grant(seen);
  } while (left() < -kDeepDebt && sync::now_ns() - begun < kLongestNs);
}

// Kept for nobody, and not there: the kernel brings it, and nobody tells.
bool comes_untold(Hva page) {
  u64 there = 0;
  return !is_absent(page) &&
         (!resident_pages(HvaRange(page, kPageSize), true, &there) || there == 0);
}

}  // namespace

void detail::pay_slow(u64 pages) {
  const s64 wanted = static_cast<s64>(pages);
  const s64 before = pages_left.fetch_sub(wanted, sync::kRelaxed);
  if (before < wanted) make_room([] { return pages_left.load(sync::kRelaxed); });
}

void detail::reach_slow(u64 pages, Hva at) {
  pay_slow(pages);
  if (!has_accounts()) [[likely]]
    return;
  const s64 left = left_at(at).pages;
  if (left == kNoEnd) return;
  if (comes_untold(page_floor(at))) count_in(HvaRange(page_floor(at), kPageSize), 1);
  if (left <= 0) make_room([&] { return left_at(at).pages; });
}

namespace {

// Of `before`, with `wanted` taken from it. True: the worker does not follow.
bool falls_short(s64 before, s64 wanted, s64 kept) {
  if (before > kept && before - wanted <= kept) kick_worker(true);
  return before < kept;
}

// It is given the time of a few pages.
void give_time(u32 seen) {
  if (detail::no_room.load(sync::kRelaxed) == 0) wait_for_grant(seen);
}

}  // namespace

void owe(u64 pages) {
  owe_for(HvaRange(Hva(0), pages << kPageShift));
}

void owe_for(HvaRange came) {
  if (!detail::limited.load(sync::kRelaxed)) return;
  const s64 wanted = static_cast<s64>(came.size() >> kPageShift);
  const u32 seen = grants.load(sync::kAcquire);
  const s64 before = pages_left.fetch_sub(wanted, sync::kRelaxed);
  bool is_short = falls_short(before, wanted, reserved.load(sync::kRelaxed));
  if (has_accounts()) [[unlikely]] {
    const s64 spare = left_at(came.start()).spare;
    count_in(came, wanted);
    is_short = (spare != kNoEnd && falls_short(spare, wanted, 0)) || is_short;
  }
  if (is_short) give_time(seen);
}

void let_stores_land() {
  if (!is_limited()) return;
  const u64 until = sync::now_ns() + kLandingNs;
  for (int i = 0; i < kReachesOfAStore; ++i) {
    const u64 now = sync::now_ns();
    if (now >= until || !detail::reaching.wait_at_most(until - now)) return;
  }
}

void limit(WorkItem* item, s64 reserve) {
  reserved.store(reserve, sync::kRelaxed);
  relief.store(item, sync::kRelease);
  detail::limited.store(true, sync::kRelaxed);
}

void clear() {
  detail::limited.store(false, sync::kRelaxed);
  relief.store(nullptr, sync::kRelease);
  wake();
}

void wake() {
  grants.fetch_add(1, sync::kRelease);
  sync::futex_wake(grants, INT_MAX);
}

void grant(s64 pages) {
  pages_left.store(pages, sync::kRelaxed);
  wake();
}

s64 left() {
  return pages_left.load(sync::kRelaxed);
}
u64 waits() {
  return waited.load(sync::kRelaxed);
}
s64 spare(Hva at) {
  return std::min(left() - reserved.load(sync::kRelaxed), left_at(at).spare);
}

void after_fork_child() {
  clear();
  accounts_after_fork_child();
  detail::reaching.reset();
  detail::no_room.store(0, sync::kRelaxed);
}

}  // namespace stagetwo::host::budget

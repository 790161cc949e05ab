// SPDX-License-Identifier: Apache-2.0
#include "host/memory_budget.h"

#include <climits>

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

void detail::pay_slow(u64 pages) {
  const s64 wanted = static_cast<s64>(pages);
  const s64 before = pages_left.fetch_sub(wanted, sync::kRelaxed);
  if (before >= wanted) return;
  const u64 begun = sync::now_ns();
  do {
    WorkItem* const item = relief.load(sync::kAcquire);
    if (item == nullptr) return;
    const u32 seen = grants.load(sync::kAcquire);
    if (!run_turn(item) && pages_left.load(sync::kRelaxed) <= 0) wait_for_grant(seen);
  } while (pages_left.load(sync::kRelaxed) < -kDeepDebt && sync::now_ns() - begun < kLongestNs);
}

void owe(u64 pages) {
  if (!detail::limited.load(sync::kRelaxed)) return;
  const s64 wanted = static_cast<s64>(pages);
  const u32 seen = grants.load(sync::kAcquire);
  const s64 before = pages_left.fetch_sub(wanted, sync::kRelaxed);
  const s64 kept = reserved.load(sync::kRelaxed);
  if (before > kept && before - wanted <= kept) kick_worker(true);
  // The worker does not follow: it is given the time of a few pages.
  if (before < kept && detail::no_room.load(sync::kRelaxed) == 0) wait_for_grant(seen);
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
  grants.fetch_add(1, sync::kRelease);
  sync::futex_wake(grants, INT_MAX);
}

void grant(s64 pages) {
  pages_left.store(pages, sync::kRelaxed);
  grants.fetch_add(1, sync::kRelease);
  sync::futex_wake(grants, INT_MAX);
}

s64 left() {
  return pages_left.load(sync::kRelaxed);
}
u64 waits() {
  return waited.load(sync::kRelaxed);
}
s64 spare() {
  return left() - reserved.load(sync::kRelaxed);
}

void after_fork_child() {
  clear();
  detail::reaching.reset();
  detail::no_room.store(0, sync::kRelaxed);
}

}  // namespace stagetwo::host::budget

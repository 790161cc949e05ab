// SPDX-License-Identifier: Apache-2.0
#include "host/mmu_notifier.h"

#include <memory>
#include <utility>

#include "base/alloc.h"
#include "base/check.h"
#include "base/guard.h"
#include "base/process_page.h"
#include "base/trace.h"
#include "host/notifier_internal.h"
#include "host/page_idle.h"
#include "host/process_map.h"
#include "sync/atomic.h"
#include "sync/futex.h"
#include "sync/mutex.h"
#include "sync/passage.h"
#include "sync/try_mutex.h"

// The roster is an array of seats that only grows. A change passes through `changes` from before it
// reads the roster until after its last end, and rings the seats that are active; which of them
// said "engaged" is a bit each, kept with the change. So:
//
//   register     fills a free seat, or publishes a larger copy of the roster; then waits for the
//                changes that may not have seen it. It therefore gets both start and end of a
//                change, or neither.
//   unregister   marks the seat inactive: new changes pass it by. Then it waits for the changes
//                that rang it; they still ring its end. Then the subscriber is released, and only
//                then is the seat free. Needs no memory.
//   the process  does that for all of them at once, and keeps newcomers out.
//   ends
//
//   change                          | register
//   changes.enter (seq_cst add)     | roster.store (seq_cst)
//   roster.load (seq_cst)           | changes.wait: loads the counters (seq_cst)
//
// Either the change sees the new roster or register waits for the change.

namespace stagetwo::host {
namespace {

struct Seat {
  // Written under the registry lock. Read by changes: `active` seq_cst, as the roster is (a change
  // that reads an older value by less was not waited for), and with it the `who` of its register.
  sync::Atomic<MmuNotifier*> who{nullptr};
  sync::Atomic<u32> active{0};
  bool released = false;  // under the registry lock
};

struct Roster {
  u32 stamp;     // of the process it belongs to
  u32 capacity;  // a multiple of 64
  Seat* seats;
  // Seats below it may be taken. Raised under the registry lock before the seat becomes active.
  sync::Atomic<u32> used{0};

  Roster(u32 of, u32 places, Seat* array) : stamp(of), capacity(places), seats(array) {}
};

constexpr u32 kFirstCapacity = 64;

constinit sync::Passage changes;
constinit sync::Mutex registry{sync::Rank::kNotifiers};
// Stored seq_cst under the registry lock, loaded seq_cst by changes: see the table above.
constinit sync::Atomic<Roster*> the_roster{nullptr};
// Registered ones; written under the registry lock.
constinit sync::Atomic<u32> notifier_count{0};
// Of the process whose address space is over, or 0.
constinit sync::Atomic<u32> released_process{0};

// How long the end of the process waits for a change that the kernel does not let end.
constexpr u64 kPatienceNs = 1'000'000'000;

// Callbacks may not ring: a nested change of this thread would wait for itself.
thread_local bool in_callback = false;

void free_roster(Roster* roster) {
  if (roster == nullptr) return;
  dealloc(roster->seats, roster->capacity * sizeof(Seat), alignof(Seat));
  destroy(roster);
}

Result<Roster*> make_roster(u32 capacity) {
  auto* seats =
      static_cast<Seat*>(alloc(capacity * sizeof(Seat), alignof(Seat), "host.notifier_seats"));
  if (seats == nullptr) return refuse(ENOMEM);
  for (u32 i = 0; i < capacity; ++i) ::new (&seats[i]) Seat;
  auto roster = make<Roster>("host.notifier_roster", process_stamp(), capacity, seats);
  if (!roster) dealloc(seats, capacity * sizeof(Seat), alignof(Seat));
  return roster;
}

// The roster of this process, or null: a child's copy of its parent's does not count.
Roster* own_roster() {
  Roster* roster = the_roster.load();
  return roster != nullptr && roster->stamp == process_stamp() ? roster : nullptr;
}

Seat* find_seat(Roster* roster, const MmuNotifier* who) {
  if (roster == nullptr) return nullptr;
  for (u32 i = 0; i < roster->capacity; ++i) {
    if (roster->seats[i].who.load(sync::kRelaxed) == who) return &roster->seats[i];
  }
  return nullptr;
}

// fn(subscriber) -> "go on" for each that listens, in the order of the seats. The ticket keeps each
// of them registered meanwhile.
template <typename F>
void ask_each(F&& fn) {
  const sync::Passage::Ticket ticket = changes.enter();
  Roster* roster = own_roster();
  const u32 used = roster == nullptr ? 0 : roster->used.load();
  {
    const CallbackScope scope;
    for (u32 i = 0; i < used; ++i) {
      Seat& seat = roster->seats[i];
      if (seat.active.load() == 0) continue;  // pairs with register's store
      if (!fn(*seat.who.load(sync::kRelaxed))) break;
    }
  }
  changes.leave(ticket);
}

// A larger roster with the same subscribers, published; the old one is free once changes passed.
Result<Roster*> grow(Roster* old) {
  const u32 capacity = old == nullptr ? kFirstCapacity : old->capacity * 2;
  if (capacity > kMaxNotifiers) return refuse(ENOMEM);
  Roster* fresh = ST_TRY(make_roster(capacity));
  for (u32 i = 0; old != nullptr && i < old->capacity; ++i) {
    fresh->seats[i].who.store(old->seats[i].who.load(sync::kRelaxed), sync::kRelaxed);
    fresh->seats[i].active.store(old->seats[i].active.load(sync::kRelaxed), sync::kRelaxed);
    fresh->seats[i].released = old->seats[i].released;
    fresh->used.store(i + 1, sync::kRelaxed);
  }
  the_roster.store(fresh);
  changes.wait();
  free_roster(old);
  return fresh;
}

TryStart start_of(MmuNotifier& who, const InvalidateEvent& event) {
  return who.invalidate_range_start(event) ? TryStart::kEngaged : TryStart::kNotMine;
}

// Pre: no change rings it any more.
void release_seat(Seat& seat) {
  if (seat.released) return;
  seat.released = true;
  const CallbackScope scope;
  seat.who.load(sync::kRelaxed)->release();
}

}  // namespace

CallbackScope::CallbackScope() : outer_(in_callback) {
  in_callback = true;
}

CallbackScope::~CallbackScope() {
  in_callback = outer_;
}

bool in_notifier_callback() {
  return in_callback;
}

bool address_space_released() {
  return released_process.load() == process_stamp();
}

Result<void> register_notifier(MmuNotifier* notifier) {
  const sync::MutexGuard guard(registry);
  if (address_space_released()) return refuse(ESRCH);
  Roster* roster = own_roster();
  ST_CHECK(find_seat(roster, notifier) == nullptr);
  Seat* seat = find_seat(roster, nullptr);
  if (seat == nullptr) {
    roster = ST_TRY(grow(roster));
    seat = find_seat(roster, nullptr);
  }
  const u32 index = static_cast<u32>(seat - roster->seats);
  if (roster->used.load(sync::kRelaxed) <= index) roster->used.store(index + 1);
  seat->who.store(notifier, sync::kRelaxed);
  seat->released = false;
  seat->active.store(1);
  if (ST_GUARD(register_waits, true)) changes.wait();
  notifier_count.fetch_add(1, sync::kRelaxed);
  return {};
}

void unregister_notifier(MmuNotifier* notifier) {
  ST_CHECK(!in_callback);
  const sync::MutexGuard guard(registry);
  Seat* seat = find_seat(own_roster(), notifier);
  if (seat == nullptr) return;  // a child of fork lets go of what its parent registered
  seat->active.store(0);
  if (ST_GUARD(unregister_waits, true)) changes.wait();
  release_seat(*seat);
  seat->who.store(nullptr, sync::kRelaxed);
  notifier_count.fetch_sub(1, sync::kRelaxed);
}

namespace {

// Under the registry lock.
void release_everybody() {
  Roster* roster = own_roster();
  const u32 used = roster == nullptr ? 0 : roster->used.load();
  for (u32 i = 0; i < used; ++i) roster->seats[i].active.store(0);
  if (!changes.wait_at_most(kPatienceNs)) return;
  for (u32 i = 0; i < used; ++i) {
    if (roster->seats[i].who.load(sync::kRelaxed) != nullptr) release_seat(roster->seats[i]);
  }
  // Who takes a subscription away meanwhile waits for this one as for a change.
  const sync::Passage::Ticket ticket = changes.enter();
  release_intervals();
  changes.leave(ticket);
}

}  // namespace

// Whoever holds the lock may wait for a change that never ends: not so the end of the process.
void release_address_space() {
  if (released_process.exchange(process_stamp()) == process_stamp()) return;  // keeps newcomers out
  const u64 until = sync::now_ns() + kPatienceNs;
  do {
    const sync::TryMutexGuard guard(registry);
    if (guard.locked()) return release_everybody();
    sync::yield_thread();
  } while (sync::now_ns() < until);
}

bool clear_flush_young(HvaRange range) {
  bool young = false;
  ask_each([&](MmuNotifier& who) {
    young |= who.clear_flush_young(range);
    return true;
  });
  return young;
}

bool clear_young(HvaRange range) {
  bool young = false;
  ask_each([&](MmuNotifier& who) {
    young |= who.clear_young(range);
    return true;
  });
  return young;
}

bool test_young(HvaRange range) {
  bool young = false;
  ask_each([&](MmuNotifier& who) { return !(young = who.test_young(range)); });
  return young;
}

void MmuNotifier::collect_young(HvaRange range, u64* bits) {
  const u64 pages = range.size() >> kPageShift;
  for (u64 i = 0; i < pages; ++i) {
    const HvaRange page(range.start() + (i << kPageShift), kPageSize);
    if (clear_young(page)) bits[i / 64] |= u64{1} << (i % 64);
  }
}

void collect_young(HvaRange range, u64* bits) {
  ask_each([&](MmuNotifier& who) {
    who.collect_young(range, bits);
    return true;
  });
  page_idle::note_young(range, bits);
}

bool borrows(HvaRange range) {
  bool yes = false;
  ask_each([&](MmuNotifier& who) { return !(yes = who.borrows(range)); });
  return yes;
}

namespace {

void ring_fork(Hva from, Hva to) {
  if (from >= to) return;
  const InvalidateSection section(
      InvalidateEvent{HvaRange(from, to - from), EventKind::kProtectPage});
}

}  // namespace

// Between the shared mappings. Of more than kMostShared the rest is rung as if it were private.
void announce_fork() {
  constexpr unsigned kMostShared = 64;
  Hva at = kWholeAddressSpace.start();
  for (unsigned i = 0; i < kMostShared; ++i) {
    const auto shared = next_file_mapping(at, true);
    if (!shared) break;
    ring_fork(at, shared->range.start());
    at = shared->range.end();
  }
  ring_fork(at, kWholeAddressSpace.end());
}

void wait_for_changes() {
  changes.wait();
}

void debug_with_registry_locked(void (*fn)(void*), void* context) {
  const sync::MutexGuard guard(registry);
  debug_with_intervals_locked(fn, context);
}

unsigned debug_notifier_count() {
  return own_roster() == nullptr ? 0 : notifier_count.load(sync::kRelaxed);
}

void notifiers_after_fork_child() {
  changes.reset();
  intervals_after_fork_child();
  std::construct_at(&registry, sync::Rank::kNotifiers);
  the_roster.store(nullptr);  // the parent's arena is not ours to give back to
  notifier_count.store(0);
}

// Release (O8): the scope is the order. Everybody has let go when the constructor returns, the
// caller's system call stands inside, and nobody may look the new meaning up before the destructor.
// Nobody concerned: the two locked adds of the passage, and loads.
InvalidateSection::InvalidateSection(const InvalidateEvent& event) : event_(event) {
  ticket_ = changes.enter();
  ring();
}

InvalidateSection::~InvalidateSection() {
  ring_end();
  changes.leave(ticket_);
}

void InvalidateSection::ring() {
  ST_CHECK(!in_callback);  // a callback that changes the address space would wait for itself
  const IntervalStart start = start_intervals(event_);
  intervals_ = start == IntervalStart::kEngaged;
  if (start == IntervalStart::kWouldWait) begun_ = false;
  Roster* roster = the_roster.load();
  if (begun_ && roster != nullptr && roster->stamp == process_stamp()) {
    roster_ = roster;
    ring_roster();
  }
  if (!begun_ && ST_GUARD(unwinds_starts, true)) ring_end();
}

void InvalidateSection::ring_roster() {
  const Roster& roster = *static_cast<Roster*>(roster_);
  const u32 used = roster.used.load();
  trace::enter_room(trace::Room::host, 4, event_.range.start().raw());
  u64 anybody = 0;
  const CallbackScope scope;
  for (u32 first = 0; first < used; first += 64) {
    u64 engaged = 0;
    for (u32 i = first; i < used && i < first + 64; ++i) {
      Seat& seat = roster.seats[i];
      if (seat.active.load() == 0) continue;  // pairs with register's store
      MmuNotifier& who = *seat.who.load(sync::kRelaxed);
      const TryStart answer =
          event_.blockable ? start_of(who, event_) : who.try_invalidate_range_start(event_);
      if (answer == TryStart::kEngaged) engaged |= u64{1} << (i - first);
      if (answer == TryStart::kWouldWait) begun_ = false;
    }
    engaged_[first / 64] = engaged;
    anybody |= engaged;
  }
  if (anybody == 0) return;
  words_ = (used + 63) / 64;
  trace::emit(trace::Event::st_invalidate_start, trace::Room::host, event_.range.start().raw(),
              event_.range.end().raw(), static_cast<u64>(event_.kind));
}

// At most once for each start.
void InvalidateSection::ring_end() {
  if (std::exchange(intervals_, false)) end_intervals();
  const u32 words = std::exchange(words_, 0);
  if (words == 0) return;
  const Roster& roster = *static_cast<Roster*>(roster_);
  trace::enter_room(trace::Room::host, 10, event_.range.start().raw());
  const CallbackScope scope;
  for (u32 word = 0; word < words; ++word) {
    for (u64 left = engaged_[word]; left != 0; left &= left - 1) {
      const u32 i = word * 64 + static_cast<u32>(__builtin_ctzll(left));
      roster.seats[i].who.load(sync::kRelaxed)->invalidate_range_end(event_);
    }
  }
  trace::emit(trace::Event::st_invalidate_end, trace::Room::host, event_.range.start().raw(),
              event_.range.end().raw(), static_cast<u64>(event_.kind));
}

}  // namespace stagetwo::host

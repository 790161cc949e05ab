// SPDX-License-Identifier: Apache-2.0
#include "host/interval_notifier.h"

#include <memory>

#include "base/check.h"
#include "base/guard.h"
#include "base/process_page.h"
#include "host/notifier_internal.h"
#include "sync/futex.h"
#include "sync/mutex.h"

// The tree changes only while the sequence is even; while it is odd, the changes under way walk it
// without a lock. What comes and goes meanwhile waits on a list that the last end works off.
//
//   change that matches                 | insert                        | reader
//   no lock: something overlaps         |                               |
//   lock: engaged 1, sequence 3; unlock |                               |
//   rings (walks the tree)              | lock: odd: on the list, own 3 |
//   the system call                     |                               | read_begin: own 3 is the
//   end, lock: engaged 0, sequence 4,   |                               |   registry's: sleeps
//     the list enters the tree; unlock  |                               | awake: reads under 3
//
// A change that matched nothing holds no number, so the newcomer cannot see it. It is inside the
// registry's passage, though: the first read waits for every change that is.
//
//   change that misses the newcomer     | insert                        | reader
//   passage.enter (seq_cst)             |                               |
//   version of the tree (seq_cst), no   |                               |
//                                       | into the tree, version (seq_cst)
//   the system call                     |                               | read_begin: not settled:
//   passage.leave                       |                               |   waits for the passage
//
// Either the change sees the new version, and rings; or it counted itself before the reader looked.

namespace stagetwo::host {
namespace {

using State = IntervalLink::State;

struct IntervalRegistry {
  // Ends are by bytes, both included.
  static u64 first_of(HvaRange range) { return range.start().raw(); }
  static u64 last_of(HvaRange range) { return range.end().raw() - 1; }

  sync::Mutex lock{sync::Rank::kLeaf};
  SubscriptionTree tree;
  // Of the process whose subscriptions these are; 0: there was none yet. Written under lock
  // (seq_cst), read by changes (seq_cst): one half of the second table above.
  sync::Atomic<u32> stamp{0};
  // Written under lock (release); read by sleepers (acquire).
  sync::Atomic<u64> sequence{2};
  u64 engaged TA_GUARDED(lock) = 0;  // changes under way that matched
  IntervalLink* waiting TA_GUARDED(lock) = nullptr;
  sync::Atomic<u64> count{0};
  // Raised at each last end; sleepers of the sequence sleep on it.
  sync::Atomic<u32> bell{0};

  void adopt_process() TA_REQ(lock);
  void forget_all() TA_REQ(lock);
  void enlist(IntervalLink& link) TA_REQ(lock);
  void delist(IntervalLink& link) TA_REQ(lock);
  void settle_waiting() TA_REQ(lock);
  void wait_while(u64 seen);
  bool ring(const InvalidateEvent& event, u64 number);
  [[nodiscard]] bool may_overlap(u64 first, u64 last);
};

constinit IntervalRegistry registry;

// What a parent left is not ours.
void IntervalRegistry::adopt_process() {
  const u32 own = process_stamp();
  if (stamp.load(sync::kRelaxed) == own) return;
  forget_all();
  stamp.store(own);
}

void IntervalRegistry::forget_all() {
  tree.reset();
  sequence.store(2, sync::kRelease);
  engaged = 0;
  waiting = nullptr;
  count.store(0, sync::kRelaxed);
}

void IntervalRegistry::enlist(IntervalLink& link) {
  link.next_waiting = waiting;
  waiting = &link;
}

void IntervalRegistry::delist(IntervalLink& link) {
  IntervalLink** at = &waiting;
  while (*at != nullptr && *at != &link) at = &(*at)->next_waiting;
  if (*at == &link) *at = link.next_waiting;
}

void IntervalRegistry::settle_waiting() {
  while (IntervalLink* link = waiting) {
    waiting = link->next_waiting;
    if (link->state == State::kArriving) {
      link->state = State::kIn;
      tree.insert(*link);
    } else {
      ST_CHECK(link->state == State::kLeaving);
      link->state = State::kOut;
      tree.erase(*link);
    }
  }
}

void IntervalRegistry::wait_while(u64 seen) {
  for (;;) {
    const u32 rung = bell.load(sync::kAcquire);  // before the sequence: a wake is not lost
    if (sequence.load(sync::kAcquire) != seen) return;
    sync::futex_wait(bell, rung);
  }
}

bool IntervalRegistry::may_overlap(u64 first, u64 last) {
  const u32 owner = stamp.load();
  if (owner == 0 || owner != process_stamp()) return false;
  return tree.overlaps(first, last) != SubscriptionTree::Answer::kNo;
}

// False: somebody would have had to wait.
bool IntervalRegistry::ring(const InvalidateEvent& event, u64 number) {
  const CallbackScope scope;
  bool goes_on = true;
  tree.for_each(first_of(event.range), last_of(event.range), [&](SubscriptionTree::Node& node) {
    IntervalNotifier& who = *static_cast<IntervalLink&>(node).who;
    goes_on = who.invalidate(event, number);
    // I3, but for a subscriber's own changes; and only a start that may not wait is declined.
    ST_CHECK(goes_on ? event.owner != nullptr || !who.check_retry(number) : !event.blockable);
    return goes_on;
  });
  return goes_on;
}

}  // namespace

IntervalStart start_intervals(const InvalidateEvent& event) {
  if (event.range.empty()) return IntervalStart::kNone;
  const u64 first = IntervalRegistry::first_of(event.range);
  const u64 last = IntervalRegistry::last_of(event.range);
  if (!registry.may_overlap(first, last)) return IntervalStart::kNone;
  u64 number = 0;
  {
    const sync::MutexGuard guard(registry.lock);
    if (!registry.tree.any(first, last)) return IntervalStart::kNone;
    ++registry.engaged;
    number = registry.sequence.load(sync::kRelaxed) | 1;
    registry.sequence.store(number, sync::kRelease);
  }
  if (registry.ring(event, number)) return IntervalStart::kEngaged;
  end_intervals();
  return IntervalStart::kWouldWait;
}

void end_intervals() {
  {
    const sync::MutexGuard guard(registry.lock);
    ST_CHECK(registry.engaged > 0);
    if (--registry.engaged != 0) return;
    registry.settle_waiting();
    registry.sequence.fetch_add(1, sync::kAcqRel);
  }
  registry.bell.fetch_add(1, sync::kAcqRel);
  sync::futex_wake(registry.bell, 1 << 30);
}

void release_intervals() {
  if (registry.stamp.load() != process_stamp()) return;
  const InvalidateEvent event{kWholeAddressSpace, EventKind::kRelease};
  if (start_intervals(event) == IntervalStart::kEngaged) end_intervals();
  const sync::MutexGuard guard(registry.lock);
  registry.stamp.store(0);
}

void intervals_after_fork_child() {
  std::construct_at(&registry.lock, sync::Rank::kLeaf);
  const sync::MutexGuard guard(registry.lock);
  registry.forget_all();
  registry.stamp.store(0);
}

u64 debug_interval_count() {
  return registry.stamp.load() == process_stamp() ? registry.count.load(sync::kRelaxed) : 0;
}

bool debug_intervals_changing() {
  return (registry.sequence.load(sync::kAcquire) & 1) != 0;
}

void debug_with_intervals_locked(void (*fn)(void*), void* context) {
  const sync::MutexGuard guard(registry.lock);
  fn(context);
}

// ---- the subscription -----------------------------------------------------------------------

IntervalNotifier::~IntervalNotifier() {
  ST_CHECK(link_.state == State::kOut || link_.stamp != process_stamp());
}

Result<void> IntervalNotifier::insert(Hva start, u64 size) {
  u64 beyond = 0;
  if (size == 0 || __builtin_add_overflow(start.raw(), size - 1, &beyond)) {
    return refuse(EOVERFLOW);
  }
  if (address_space_released()) return refuse(ESRCH);
  const sync::MutexGuard guard(registry.lock);
  registry.adopt_process();
  ST_CHECK(link_.state == State::kOut || link_.stamp != process_stamp());
  link_.stamp = process_stamp();
  link_.first = start.raw();
  link_.last = beyond;
  settled_.store(0, sync::kRelaxed);
  const u64 sequence = registry.sequence.load(sync::kRelaxed);
  if ((sequence & 1) != 0) {
    link_.state = State::kArriving;
    own_sequence_.store(sequence, sync::kRelease);
    registry.enlist(link_);
  } else {
    link_.state = State::kIn;
    own_sequence_.store(sequence - 1, sync::kRelease);  // odd: no number of a registry at rest
    registry.tree.insert(link_);
  }
  registry.count.fetch_add(1, sync::kRelaxed);
  return {};
}

void IntervalNotifier::remove() {
  ST_CHECK(!in_notifier_callback());
  u64 leaves_after = 0;
  {
    const sync::MutexGuard guard(registry.lock);
    if (link_.state == State::kOut) return;
    if (link_.stamp != process_stamp()) {
      link_.state = State::kOut;  // a child of fork: nobody rings it
      return;
    }
    // A process that ends rings nobody anew, but who began before is still inside.
    registry.count.fetch_sub(1, sync::kRelaxed);
    const u64 sequence = registry.sequence.load(sync::kRelaxed);
    if (link_.state == State::kArriving) {
      registry.delist(link_);  // nobody has seen it
      link_.state = State::kOut;
      return;
    }
    if ((sequence & 1) != 0) {
      link_.state = State::kLeaving;
      registry.enlist(link_);
      leaves_after = sequence;
    } else {
      link_.state = State::kOut;
      registry.tree.erase(link_);
    }
  }
  if (leaves_after != 0) registry.wait_while(leaves_after);
  // Who looked into the tree before it was taken out may still read it.
  if (ST_GUARD(interval_leaves, true)) wait_for_changes();
}

// Whoever has a change's number has it from a callback, and the registry stored it before.
bool IntervalNotifier::is_under_way(u64 sequence) {
  return registry.sequence.load(sync::kAcquire) == sequence;
}

u64 IntervalNotifier::read_begin() {
  ST_CHECK(!in_notifier_callback());
  u64 seen = 0;
  bool changing = false;
  {
    const sync::MutexGuard guard(registry.lock);
    seen = own_sequence_.load(sync::kAcquire);
    changing = seen == registry.sequence.load(sync::kRelaxed);
  }
  if (ST_GUARD(interval_read_waits, changing)) registry.wait_while(seen);
  if (ST_GUARD(interval_settles, settled_.load(sync::kAcquire) == 0)) {
    wait_for_changes();
    settled_.store(1, sync::kRelease);
  }
  return seen;
}

}  // namespace stagetwo::host

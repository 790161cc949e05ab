// SPDX-License-Identifier: Apache-2.0
#include "sync/ack_line.h"

#include <algorithm>

#include "base/check.h"
#include "base/guard.h"
#include "base/sys.h"
#include "base/trace.h"
#include "sync/futex.h"
#include "sync/restartable.h"
#include "sync/thread_sections.h"

// Entering against requesting (Dekker; all four accesses sequentially consistent):
//
//   owner                             | invalidator
//   state = running                   | request = n
//   read request                      | read state
//
//   Whoever is second in the total order sees the other: either the owner sees n, acknowledges it,
//   flushes, and sees the raised gate; or the invalidator sees running and waits for the
//   acknowledgement. If the invalidator reads "outside", the owner's next enter reads n.
//
// Polling against requesting:
//
//   running, uses an old address      |
//   (block boundary) poll: no request | request = n; state running, ack < n: wait
//   uses an old address               |
//   poll: request n; ack = n (release)|
//   flushes, uses new addresses       | ack >= n (acquire): every old use happened before
//
// One word to poll instead of two:
//
//   owner                             | invalidator
//                                     | request = n
//   poll: asked is 1 of an earlier one|
//   asked = 0; reads n; ack = n       |
//                                     | asked = 1: the next poll acknowledges n again
//
//   asked = 0                         | request = n, before asked = 1
//   reads request                     | asked = 1
//
//   Whichever of asked = 0 and asked = 1 is first: 1 stays and is polled, or the owner's look at
//   the request comes after it and finds n.
//
//                                     | request = n
//   enter: asked = 0; reads n; ack = n|
//   leave                             | asked = 1
//   enter: nothing new, but asked is 1: acknowledged once more, or who answers by leaving alone
//   would be asked for ever
//
// Thread death: pthread keys of a dying thread free its lines (sync/thread_sections.cc). A thread
// that ends by the bare system call, or that a fork left behind, is found by the waiter:
//
//   entry 7 of thread T               | waits 10 ms; T does not exist
//   (T is gone)                       | state: (7, T) → outside by compare-and-exchange
//   entry 8 of thread U               | the exchange fails: (8, U) is another section; wait on
//
// How long to wait: polls of running vCPUs come within 0.7 µs, so 2 µs of spinning sees most of
// them. Beyond that the owner is not scheduled. If it may have let go, a restart barrier tells
// (sync/restartable.cc has that race): one for all lines of the set, and for whoever else asks.
// What then still holds, or never lets go, is waited for: the processor is better given to it.

namespace stagetwo::sync {
namespace {

constexpr u64 kSpinNs = 2'000;
constexpr u64 kYieldNs = 200'000;
constexpr u64 kSleepNs = 200'000;
constexpr u64 kLivenessNs = 10'000'000;

}  // namespace

AckLine::~AckLine() {
  ST_CHECK(set_ == nullptr);
  ST_CHECK_OP(state_.load(kRelaxed), ==, u64{0});
}

bool AckLine::enter() {
  ST_DCHECK(!running());
  ThreadSections::push(*this);
  const u64 mine = u64{++entries_} << 32 | static_cast<u32>(sys::current_tid());
  holding_.store(kAlways, kRelaxed);
  // Mode and request (O4): both sides store and then load, sequentially consistent, so that not
  // both miss the other. Pairs with raise_to(): see the head of this file.
  state_.exchange(mine, kSeqCst);
  if (request_.load(kSeqCst) == ack_.load(kRelaxed) && !pending()) [[likely]]
    return false;
  acknowledge();
  return true;
}

void AckLine::leave() {
  ThreadSections::pop(*this);
  // Acknowledgement (O3): every use happened before what passed() acquires.
  state_.store(0, kRelease);
  if (waiters_.load(kRelaxed) != 0) [[unlikely]]
    ring();
}

void AckLine::acknowledge() {
  asked_.exchange(0, kSeqCst);  // before the look at the request: see the head of this file
  const u64 request = request_.load(kAcquire);  // pairs with raise_to()
  ack_.store(request, kRelease);                // pairs with passed(): O3, as in leave()
  trace::emit(trace::Event::st_ack, trace::Room::sync, request);
  if (waiters_.load(kRelaxed) != 0) [[unlikely]]
    ring();
}

void AckLine::let_go() {
  // As leave(): every use happened before what has_let_go() reads.
  holding_.store(kLetGo, kRelease);
  if (waiters_.load(kRelaxed) != 0) [[unlikely]]
    ring();
}

// A waiter may have missed it: it sleeps with a timeout.
void AckLine::ring() {
  bell_.fetch_add(1, kRelease);
  futex_wake(bell_, 1 << 30);
}

// Sleeps once; the owner's bell ends it early.
void AckLine::sleep_until_passed(u64 ticket) {
  waiters_.fetch_add(1, kSeqCst);
  const u32 seen = bell_.load(kAcquire);
  if (!passed(ticket)) futex_wait(bell_, seen, kSleepNs);
  waiters_.fetch_sub(1, kRelaxed);
}

// Puts the line outside if the thread of its section no longer exists.
void AckLine::leave_for_the_dead(u64 ticket) {
  u64 state = state_.load(kAcquire);
  const int owner = static_cast<int>(static_cast<u32>(state));
  if (state == 0 || sys::thread_alive(owner)) return;
  if (!state_.compare_exchange(state, 0, kAcqRel)) return;
  trace::emit(trace::Event::st_ack_owner_dead, trace::Room::sync, ticket, static_cast<u32>(owner));
}

void AckLine::raise_to(u64 ticket) {
  u64 seen = request_.load(kRelaxed);
  while (seen < ticket && !request_.compare_exchange_weak(seen, ticket, kSeqCst)) {
  }
  asked_.store(1, kSeqCst);
}

bool AckLine::passed(u64 ticket) const {
  return state_.load(kSeqCst) == 0 || ack_.load(kAcquire) >= ticket;
}

// Every call that waits for the set's lock does so with the thread's own sections aside: whoever
// holds the lock may be waiting for this thread to poll.
//
//   owner A, in its section           | invalidator B            | C
//                                     | holds the set shared:    |
//                                     | waits for A's poll       |
//                                     |                          | add(): waits for B, and
//   barrier(): waits for C's turn     |                          | keeps new readers out
//   (aside: outside, B goes on)       |                          |

void AckSet::add(AckLine& line) {
  const ThreadSections::Aside aside;
  const ExclusiveGuard guard(lock_);
  ST_CHECK(line.set_ == nullptr);
  ST_DCHECK(!line.running());
  // Requests so far do not concern it: it enters after them, and after this lock.
  const u64 ticket = ticket_.load(kAcquire);
  line.request_.store(ticket, kRelaxed);
  line.ack_.store(ticket, kRelaxed);
  line.asked_.store(0, kRelaxed);
  line.set_ = this;
  line.next_in_set_ = first_;
  first_ = &line;
}

void AckSet::remove(AckLine& line) {
  ST_CHECK(!line.running());
  const ThreadSections::Aside aside;
  const ExclusiveGuard guard(lock_);
  ST_CHECK(line.set_ == this);
  AckLine** link = &first_;
  while (*link != &line) link = &(*link)->next_in_set_;
  *link = line.next_in_set_;
  line.next_in_set_ = nullptr;
  line.set_ = nullptr;
}

u64 AckSet::raise_all() {
  // Acquire and release: what every retirer of an earlier ticket did is seen by whom we reach.
  const u64 ticket = ticket_.fetch_add(1, kSeqCst) + 1;
  for (AckLine* line = first_; line != nullptr; line = line->next_in_set_) line->raise_to(ticket);
  trace::emit(trace::Event::st_ack_request, trace::Room::sync, ticket);
  return ticket;
}

u64 AckSet::bump_all() {
  const ThreadSections::Aside aside;
  const SharedGuard guard(lock_);
  return raise_all();
}

namespace {

void raise(Atomic<u64>& word, u64 value) {
  u64 seen = word.load(kRelaxed);
  while (seen < value && !word.compare_exchange_weak(seen, value, kAcqRel)) {
  }
}

// True if `look()` says true within kSpinNs of *start, which is now if it is zero.
template <typename Look>
bool spin_until(u64* start, Look&& look) {
  if (*start == 0) *start = now_ns();
  do {
    for (int i = 0; i < 16; ++i) {
      if (look()) return true;
      spin_hint();
    }
  } while (now_ns() - *start < kSpinNs);
  return false;
}

// Waits by `look()` until it says true: yielding, then sleeping by `sleep()`. `liveness()` is asked
// every 10 ms. Returns the time waited.
template <typename Look, typename Sleep, typename Liveness>
u64 wait_until(u64 start, Look&& look, Sleep&& sleep, Liveness&& liveness) {
  u64 waited = now_ns() - start;
  u64 next_liveness = kLivenessNs;
  while (!look()) {
    if (waited < kYieldNs) {
      yield_thread();
    } else {
      sleep();
    }
    waited = now_ns() - start;
    if (waited >= next_liveness) {
      liveness();
      next_liveness = waited + kLivenessNs;
    }
  }
  return waited;
}

}  // namespace

bool AckSet::cover(u64 ticket) {
  if (!restart_barrier()) return false;
  raise(covered_, ticket);
  return true;
}

bool AckSet::passes_quickly(AckLine& line, Wait& wait) {
  if (line.passed(wait.ticket)) [[likely]]
    return true;
  if (!wait.covered) {
    if (spin_until(&wait.start, [&] { return line.passed(wait.ticket); })) return true;
    if (!line.may_let_go()) return false;
    wait.covered = cover(wait.ticket);
    if (!wait.covered) return false;
  }
  if (ST_GUARD(hold_is_waited_for, !line.has_let_go())) return false;
  let_go_.fetch_add(1, kRelaxed);
  return true;
}

void AckSet::await_all(u64 ticket) {
  Wait wait{ticket};
  for (AckLine* line = first_; line != nullptr; line = line->next_in_set_) {
    if (passes_quickly(*line, wait)) [[likely]]
      continue;
    const int owner = line->debug_owner();
    waited_.fetch_add(1, kRelaxed);
    const auto look = [&] { return line->passed(ticket) || (wait.covered && line->has_let_go()); };
    const u64 waited = wait_until(
        now_ns(), look, [=] { line->sleep_until_passed(ticket); },
        [=] { line->leave_for_the_dead(ticket); });
    trace::emit(trace::Event::st_ack_slow, trace::Room::sync, ticket, waited,
                static_cast<u64>(owner));
  }
  raise(waited_for_, ticket);
}

void AckSet::wait_all(u64 ticket) {
  const ThreadSections::Aside aside;  // nor can two owners that invalidate wait for each other
  const SharedGuard guard(lock_);
  await_all(ticket);
}

void AckSet::barrier() {
  const ThreadSections::Aside aside;
  const SharedGuard guard(lock_);
  await_all(raise_all());
}

bool AckSet::passes_soon(u64 ticket) {
  const ThreadSections::Aside aside;
  const SharedGuard guard(lock_);
  Wait wait{ticket};
  for (AckLine* line = first_; line != nullptr; line = line->next_in_set_) {
    if (!passes_quickly(*line, wait)) return false;
  }
  return true;
}

AckSet::Counts AckSet::counts() const {
  return {.let_go = let_go_.load(kRelaxed), .waited = waited_.load(kRelaxed)};
}

u64 AckSet::passed() {
  const ThreadSections::Aside aside;
  const SharedGuard guard(lock_);
  u64 passed = ticket_.load(kAcquire);
  const u64 covered = covered_.load(kAcquire);  // before the lines are asked what they hold
  for (AckLine* line = first_; line != nullptr; line = line->next_in_set_) {
    // The request is read before the state: a line that is outside now will see this request when
    // it enters, as in the Dekker handshake above.
    const u64 request = line->request_.load(kSeqCst);
    const u64 ack = line->ack_.load(kAcquire);
    // The own sections are aside, not over: only their acknowledgement counts.
    const bool outside = line->state_.load(kSeqCst) == 0 && !ThreadSections::entered(*line);
    u64 reached = outside ? request : ack;
    if (reached < covered && line->has_let_go()) reached = covered;
    if (reached < passed) passed = reached;
  }
  // A line that was outside when it was waited for, and is on its way in, has not said so yet.
  const u64 waited_for = ST_GUARD(passed_is_kept, true) ? waited_for_.load(kAcquire) : 0;
  return std::max(passed, waited_for);
}

size_t AckSet::debug_line_count() {
  const SharedGuard guard(lock_);
  size_t count = 0;
  for (AckLine* line = first_; line != nullptr; line = line->next_in_set_) ++count;
  return count;
}

}  // namespace stagetwo::sync

// SPDX-License-Identifier: Apache-2.0
#include "sync/mutex.h"

#include "base/sys.h"
#include "base/text.h"
#include "sync/futex.h"

// Mutex: 0 free, 1 locked, 2 locked and somebody may sleep. Who has slept once takes the lock as 2,
// because it cannot know whether it was the last sleeper; one superfluous wake is the price.
//
//   holder                            | waiter
//                                     | exchange(2) -> 1: not free
//   exchange(0) -> 2: wake            |
//                                     | futex_wait(2): the word is 0, returns at once
//                                     | exchange(2) -> 0: has it
//
// SharedMutex: sleepers set kParked before they sleep; whoever makes the word takeable clears it
// and wakes all, who then set it again if they lose. kWriterWaits keeps new readers out while a
// writer sleeps; it is cleared by the writer that gets in, and set again by the next that does not.

namespace stagetwo::sync {

void Mutex::acquire_slow() {
  // A lock of ours is held for well under a microsecond: look a few times before sleeping.
  for (int i = 0; i < 64; ++i) {
    u32 seen = state_.load(kRelaxed);
    if (seen == kFree && state_.compare_exchange(seen, kLocked, kAcquire)) return;
    if (seen == kContended) break;
    spin_hint();
  }
  while (state_.exchange(kContended, kAcquire) != kFree) futex_wait(state_, kContended);
}

void Mutex::wake_one() {
  futex_wake(state_, 1);
}

void SharedMutex::acquire_slow() {
  for (;;) {
    u32 seen = state_.load(kRelaxed);
    if ((seen & (kWriter | kReaders)) == 0) {
      // kParked stays: others may sleep and this writer's release wakes them.
      const u32 taken = (seen | kWriter) & ~kWriterWaits;
      if (state_.compare_exchange(seen, taken, kAcquire)) return;
      continue;
    }
    const u32 waiting = seen | kParked | kWriterWaits;
    if (seen != waiting && !state_.compare_exchange(seen, waiting, kRelaxed)) continue;
    futex_wait(state_, waiting);
  }
}

void SharedMutex::acquire_shared_slow() {
  for (;;) {
    u32 seen = state_.load(kRelaxed);
    if ((seen & (kWriter | kWriterWaits)) == 0) {
      if (state_.compare_exchange(seen, seen + 1, kAcquire)) return;
      continue;
    }
    const u32 waiting = seen | kParked;
    if (seen != waiting && !state_.compare_exchange(seen, waiting, kRelaxed)) continue;
    futex_wait(state_, waiting);
  }
}

void SharedMutex::release_shared_slow() {
  // The last reader left and somebody sleeps. If another thread got in meanwhile, its release
  // wakes.
  u32 seen = state_.load(kRelaxed);
  while ((seen & (kWriter | kReaders)) == 0 && (seen & kParked) != 0) {
    if (state_.compare_exchange(seen, seen & ~kParked, kRelaxed)) {
      wake_all();
      return;
    }
  }
}

void SharedMutex::wake_all() {
  futex_wake(state_, 1 << 30);
}

const char* name_of(Rank rank) {
  static constexpr const char* kNames[] = {
      "session",    "descriptors",   "vm",         "vcpu",       "container",  "device",
      "ioas",       "io_domains",    "uv",         "slots",      "slots_arch", "active",
      "mem_object", "address_space", "notifiers",  "passage",    "owners",     "pins",
      "reclaim",    "mem_store",     "secondary",  "attributes", "gate",       "ack_set",
      "tdp_pages",  "page_table",    "interrupts", "coalesced",  "blocks",     "retired",
      "frames",     "lru",           "stats",      "leaf"};
  static_assert(sizeof(kNames) / sizeof(kNames[0]) == static_cast<size_t>(Rank::kCount));
  return rank < Rank::kCount ? kNames[static_cast<size_t>(rank)] : "?";
}

namespace detail {
namespace {

// The innermost lock this thread holds; debug builds only.
[[gnu::tls_model("initial-exec")]] thread_local Held* innermost = nullptr;

void append_held(TextWriter& out, const Held& held) {
  out.append(name_of(held.rank)).append(" (").append(held.place.file).append(":");
  out.append_int(held.place.line).append(")");
}

[[noreturn, gnu::cold]] void order_broken(const Held& held, const Held& wanted) {
  FixedString<512> out;
  out.append("stagetwo: lock order broken: ");
  append_held(out, wanted);
  out.append(" taken while holding ");
  append_held(out, held);
  out.append("; the order is docs/locking.md\n");
  sys::write_stderr(out.data(), out.size());
  sys::abort_process();
}

}  // namespace

void note_acquire(Held& held, const void* lock, Rank rank, Place place) {
  held = {lock, rank, place, innermost};
  for (const Held* other = innermost; other != nullptr; other = other->outer) {
    if (other->rank >= rank) order_broken(*other, held);
  }
  innermost = &held;
}

void note_release(Held& held) {
  Held** link = &innermost;
  while (*link != nullptr && *link != &held) link = &(*link)->outer;
  if (*link == &held) *link = held.outer;
}

void check_held(const void* lock, Rank rank) {
  for (const Held* other = innermost; other != nullptr; other = other->outer) {
    if (other->lock == lock) return;
  }
  FixedString<128> out;
  out.append("stagetwo: lock ").append(name_of(rank)).append(" is not held\n");
  sys::write_stderr(out.data(), out.size());
  sys::abort_process();
}

}  // namespace detail
}  // namespace stagetwo::sync

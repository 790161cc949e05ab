// SPDX-License-Identifier: Apache-2.0
#include "host/kernel_io.h"

#include <errno.h>
#include <sys/sysmacros.h>

#include <algorithm>
#include <iterator>
#include <memory>

#include "base/alloc.h"
#include "host/access.h"
#include "host/process_files.h"
#include "host/process_map.h"
#include "sync/atomic.h"
#include "sync/mutex.h"

// A request and a taker that copies:
//
//   client                              | taker
//   count                               | hides the page
//   holds the buffer: waits for the     | any under way? refused, shows the page
//   taker, brings the page back         |
//   io_submit                           |
//
// Either the taker sees the count, or the submitter finds the taker's record.

namespace stagetwo::host {
namespace {

// An io_context, or a read that libc makes: kOfLibc and the address of the word that tells its end.
struct Context {
  u64 id = 0;
  u64 requests = 0;     // under way, or not yet known to have ended
  u32 tail = 0;         // of the ring when we last looked
  u32 turn = 0;         // raised by every look
  bool untold = false;  // more have ended than were told of: never trusted again
};
// Places of contexts, more of them when those are full. None is given back: whoever looks at all of
// them lets go of the lock meanwhile.
struct Places {
  Context contexts[64];
  sync::Atomic<Places*> more{nullptr};
};

constexpr u64 kOfLibc = 1;
u64 id_of(Hva word) {
  return word.raw() | kOfLibc;
}

constinit sync::Mutex requests_lock{sync::Rank::kLeaf};
constinit Places places;  // the contexts under the lock; `more` by whoever has the lock, once
constinit sync::Atomic<bool> unmapped_ring{false};
// Of all contexts, those that no place could be made for included: these never end.
constinit sync::Atomic<u64> under_way{0};

// What is behind it was published by a store that releases (add_places()).
Places* next_of(const Places* one) {
  return one->more.load(sync::kAcquire);
}

// 0: a free place.
Context* find(u64 id) TA_REQ(requests_lock) {
  for (Places* some = &places; some != nullptr; some = next_of(some)) {
    Context* const found = std::find_if(std::begin(some->contexts), std::end(some->contexts),
                                        [&](const Context& c) { return c.id == id; });
    if (found != std::end(some->contexts)) return found;
  }
  return nullptr;
}

bool is_full(u64 context) {
  const sync::MutexGuard guard(requests_lock);
  return find(context) == nullptr && find(0) == nullptr;
}

void add_places() TA_EXCL(requests_lock) {
  const auto made = make<Places>("host.io_contexts");
  if (!made) return;
  const sync::MutexGuard guard(requests_lock);
  Places* last = &places;
  while (Places* const after = next_of(last)) last = after;
  last->more.store(*made, sync::kRelease);
}

Context copy_of(const Context& context) {
  const sync::MutexGuard guard(requests_lock);
  return context;
}

// What the kernel maps into the process for a context, whose number is its address: where the next
// ended request will stand.
struct Ring {
  u32 id;
  u32 events;
  u32 head;
  u32 tail;
  u32 magic;
};
bool read_ring(u64 context, Ring* ring) {
  constexpr u32 kMagic = 0xa10a10a1;
  return read_struct(Hva(context), ring) && ring->magic == kMagic && ring->events != 0;
}

// Those that have ended since the last look are under way no more, whoever has fetched them: the
// program may take them from the ring by itself. Between two submissions fewer end than the ring
// has room for (the kernel takes no more), so that its tail tells how many exactly; each submission
// looks. False: there is no ring to look at.
bool look_at_ring(u64 context) {
  for (;;) {
    Context before;
    {
      const sync::MutexGuard guard(requests_lock);
      const Context* place = find(context);
      if (place == nullptr) return true;
      before = *place;
    }
    Ring ring{};
    if (!read_ring(context, &ring)) return false;
    const sync::MutexGuard guard(requests_lock);
    Context* const place = find(context);
    if (place == nullptr) return true;
    if (place->turn != before.turn) continue;  // progress: another look has been taken
    const u64 ended = (u64{ring.tail} + ring.events - before.tail % ring.events) % ring.events;
    const u64 over = std::min(ended, place->requests);
    place->untold = place->untold || ended > place->requests;
    place->requests -= over;
    place->tail = ring.tail;
    ++place->turn;
    under_way.fetch_sub(over);
    return true;
  }
}

// It may have ended, and the next one with this word begun, while we looked.
void look_at_word(const Context& read) {
  int word = 0;
  if (read_struct(Hva(read.id & ~kOfLibc), &word) && word == EINPROGRESS) return;
  const sync::MutexGuard guard(requests_lock);
  Context* const place = find(read.id);
  if (place == nullptr || place->turn != read.turn) return;
  under_way.fetch_sub(place->requests);
  *place = {};
}

void subtract(u64 context, u64 count) {
  const sync::MutexGuard guard(requests_lock);
  Context* const place = find(context);
  if (place == nullptr) return;
  const u64 over = std::min(count, place->requests);
  place->requests -= over;
  under_way.fetch_sub(over);
}

bool any_under_way() {
  for (const Places* some = &places; some != nullptr; some = next_of(some)) {
    for (const Context& each : some->contexts) {
      const Context context = copy_of(each);
      if ((context.id & kOfLibc) != 0) {
        look_at_word(context);
      } else if (context.requests != 0) {
        static_cast<void>(look_at_ring(context.id));
      }
    }
  }
  return under_way.load() != 0;
}

// Is each of its requests told of?
bool is_told_of(u64 context) {
  static_cast<void>(look_at_ring(context));
  const sync::MutexGuard guard(requests_lock);
  const Context* const place = find(context);
  return place != nullptr && !place->untold;
}

// A ring of which nobody tells what is under way. Where the kernel does not answer: yes.
bool any_untold_ring() {
  if (unmapped_ring.load()) return true;
  for (Hva at{};;) {
    const auto next = next_file_mapping(at, true);
    if (!next) return to_int(next.error()) != EFAULT;
    // A ring's file is on no device.
    const KernelRing ring =
        ::major(next->device) == 0 ? ring_at(next->range.start()) : KernelRing::kNone;
    if (ring == KernelRing::kIoUring) return true;
    if (ring == KernelRing::kIoContext && !is_told_of(next->range.start().raw())) return true;
    at = next->range.end();
  }
}

}  // namespace

bool kernel_pins_memory() {
  if (under_way.load() != 0 && any_under_way()) return true;
  if (any_untold_ring()) return true;
  const auto pinned = status_kilobytes("VmPin:");
  return !pinned || *pinned != 0;
}

void requests_made(u64 context) {
  if (is_full(context)) add_places();
  const sync::MutexGuard guard(requests_lock);
  Context* place = find(context);
  if (place == nullptr) place = find(0);
  if (place == nullptr) return;
  under_way.fetch_sub(place->requests);  // of one that stood there and went without a word
  *place = {context, 0, 0, 0, false};
}

void requests_begin(u64 context, u64 count) {
  Ring ring{};
  const bool has_ring = look_at_ring(context) && read_ring(context, &ring);
  if (is_full(context)) add_places();
  const sync::MutexGuard guard(requests_lock);
  Context* place = find(context);
  if (place == nullptr) {
    place = find(0);
    if (place != nullptr) *place = {context, 0, has_ring ? ring.tail : 0, 0, false};
  }
  if (place != nullptr) place->requests += count;
  under_way.fetch_add(count);
}

void read_begins(Hva word) {
  static constinit u32 turns = 0;  // under the lock
  const u64 id = id_of(word);
  if (is_full(id)) add_places();
  const sync::MutexGuard guard(requests_lock);
  Context* place = find(id);
  const bool again = place != nullptr;
  if (!again) place = find(0);
  if (place != nullptr) *place = {id, 1, 0, ++turns, false};
  if (!again) under_way.fetch_add(1);
}

void read_refused(Hva word) {
  requests_forget(id_of(word));
}

void ring_without_mapping() {
  unmapped_ring.store(true);
}

void requests_refused(u64 context, u64 count) {
  subtract(context, count);
}

void requests_fetched(u64 context, u64 count) {
  if (!look_at_ring(context)) subtract(context, count);
}

void requests_forget(u64 context) {
  const sync::MutexGuard guard(requests_lock);
  Context* const place = find(context);
  if (place == nullptr) return;
  under_way.fetch_sub(place->requests);
  *place = {};
}

// It has no contexts.
void requests_after_fork_child() {
  std::construct_at(&requests_lock, sync::Rank::kLeaf);
  const sync::MutexGuard guard(requests_lock);
  // The rest stands in the parent's arena, which is not ours to give back to.
  for (Context& context : places.contexts) context = {};
  places.more.store(nullptr, sync::kRelaxed);
  under_way.store(0);
}

}  // namespace stagetwo::host

// SPDX-License-Identifier: Apache-2.0
#include "host/kernel_io.h"

#include <algorithm>
#include <memory>

#include "host/access.h"
#include "host/process_files.h"
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

struct Context {
  u64 id = 0;
  u64 requests = 0;
};
constexpr unsigned kMostContexts = 64;

constinit sync::Mutex requests_lock{sync::Rank::kLeaf};
constinit Context contexts[kMostContexts] TA_GUARDED(requests_lock);
// Of all contexts, those without a place in the table included: these never end.
constinit sync::Atomic<u64> under_way{0};

Context* find(u64 id) TA_REQ(requests_lock) {
  Context* const end = contexts + kMostContexts;
  Context* const found = std::find_if(contexts, end, [&](const Context& c) { return c.id == id; });
  return found == end ? nullptr : found;
}

Context context_at(unsigned place) {
  const sync::MutexGuard guard(requests_lock);
  return contexts[place];
}

// How many of a context have ended and were not fetched. It stands in the ring that the kernel maps
// into the process: the context's number is its address.
u64 ended_in_ring(u64 context) {
  struct Ring {
    u32 id;
    u32 events;
    u32 head;
    u32 tail;
    u32 magic;
  };
  constexpr u32 kMagic = 0xa10a10a1;
  Ring ring{};
  const bool read = read_struct(Hva(context), &ring);
  if (!read || ring.magic != kMagic || ring.events == 0) return 0;
  return (u64{ring.tail} + ring.events - ring.head) % ring.events;
}

bool any_under_way() {
  u64 all = under_way.load();
  for (unsigned i = 0; i < kMostContexts && all != 0; ++i) {
    const Context context = context_at(i);
    if (context.requests == 0) continue;
    if (context.requests > ended_in_ring(context.id)) return true;
    all -= std::min(all, context.requests);
  }
  return all != 0;
}

}  // namespace

bool kernel_pins_memory() {
  if (under_way.load() != 0 && any_under_way()) return true;
  const auto pinned = status_kilobytes("VmPin:");
  return !pinned || *pinned != 0;
}

void requests_begin(u64 context, u64 count) {
  const sync::MutexGuard guard(requests_lock);
  Context* place = find(context);
  if (place == nullptr) place = find(0);
  if (place != nullptr) *place = {context, place->requests + count};
  under_way.fetch_add(count);
}

void requests_end(u64 context, u64 count) {
  const sync::MutexGuard guard(requests_lock);
  Context* const place = find(context);
  if (place == nullptr) return;
  const u64 over = std::min(count, place->requests);
  place->requests -= over;
  under_way.fetch_sub(over);
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
  for (Context& context : contexts) context = {};
  under_way.store(0);
}

}  // namespace stagetwo::host

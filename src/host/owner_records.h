// SPDX-License-Identifier: Apache-2.0
#pragma once

// What the table of absent pages keeps (host/owner_table.h), all under its lock. Not for other
// rooms.
//
//   state      who may act                    a touch                successors
//   kTaking    the taker                      waits                  kAbsent, none (refused)
//   kReading   the taker, copying it          missing: zeros         kTaking
//   kAbsent    the first toucher              brings it back         kFilling, kClosing
//   kFilling   that toucher                   waits                  none, kAbsent (retry), kLost
//   kClosing   the change that discards it    waits                  none, kAbsent (it failed)
//   kLost      nobody                         bus error              none (discarded)
//
// kAbsent without an owner: the bytes are in place, but the kernel did not give the page its rights
// back (vm.max_map_count). Whoever touches it tries again, together with its neighbours.

#include "host/page_transit.h"

namespace stagetwo::host {

enum class PageStage : u8 { kTaking, kReading, kAbsent, kFilling, kClosing, kLost };
constexpr bool in_transit(PageStage stage) {
  return stage == PageStage::kTaking || stage == PageStage::kReading ||
         stage == PageStage::kFilling;
}
// What the kernel sees of a page of private memory that the client's neighbour of it has not.
enum class Mark : u8 { kNone, kWatched, kHidden, kInTransit };

struct PageRecord {
  PageOwner* owner = nullptr;  // null: see above
  Hva at;
  PageStage stage = PageStage::kTaking;
  Hiding hiding = Hiding::kUserfault;
  Prot prot;  // of private memory; of shared memory each view has its own
  bool writable = false;
  bool touched = false;  // while in transit: whoever ends that wakes the page

  [[nodiscard]] bool in_place() const { return owner == nullptr; }
};

// A record somebody works on, and where the process sees its page.
struct PageJob {
  PageRecord record;
  PageViews views;
};

// One mapping of a shared object. They stand in the table from before the first page of the object
// is taken; a view that is new since then shows no absent page (host/shared_views.cc).
struct SharedView {
  HvaRange range;
  u64 object;
  u64 first;  // the index of its first page
  Prot prot;
  bool rights_known = true;  // else the client has changed them since
};

// A span whose touches are reported to us. It is given up when nothing of it is absent, so that
// first touches are the kernel's again. Of a shared view all absent pages of its object count.
struct WatchedSpan {
  HvaRange range;
  u64 object;
  u64 absent;
  bool grows = false;  // watch_growth() asks for it whatever is absent
};

// What take_away() was asked for.
struct Taking {
  PageOwner* owner;  // null: nothing is taken (budget::watch_growth())
  Which which;
  HvaRange span;
};

// A call that is using the range (host/held_pages.h).
struct Hold {
  Reach reach;
  u64 object;  // where on the thread's stack it stands
  u64 id;
  int thread;
};

// Records that are looked at under one lock.
inline constexpr unsigned kBatch = 256;
// Of a page whose owner says "not now": who cannot wait any longer goes on without it.
inline constexpr unsigned kMostAsks = 4096;
// How many of them an outcome is worth. The kernel changes its mind less often than an owner.
constexpr unsigned asks_of(BringBack outcome) {
  if (outcome == BringBack::kStuck) return kMostAsks / 16;
  return outcome == BringBack::kRetry ? 1 : 0;
}

constexpr PageKey private_key(Hva at) {
  return {kPrivateMemory, at.raw() >> kPageShift};
}
constexpr PageKey behind(PageKey key, u64 pages) {
  return {key.object, key.index + pages};
}
// What the pages of one mapping are called.
struct Names {
  u64 object = kPrivateMemory;
  u64 shift = 0;  // of a page's index against its address's

  [[nodiscard]] PageKey of(Hva at) const { return {object, (at.raw() >> kPageShift) + shift}; }
};
constexpr HvaRange page_at(Hva at) {
  return HvaRange(page_floor(at), kPageSize);
}

}  // namespace stagetwo::host

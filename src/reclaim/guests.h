// SPDX-License-Identifier: Apache-2.0
#pragma once

// The guests of the process and the ranges they use. Part of reclaim; not for other rooms.
// Locking: lock (rank: address space), above the spans'. Lifetime: a guest while it is in the list.

#include "reclaim/reclaim.h"
#include "sync/atomic.h"
#include "sync/mutex.h"

namespace stagetwo::reclaim {

struct Guests {
  sync::Mutex lock{sync::Rank::kAddressSpace};
  Guest* first TA_GUARDED(lock) = nullptr;
  u64 limit TA_GUARDED(lock) = kNoLimit;  // of those that come
  // Raised under the lock when a guest, a range or a limit comes, changes or goes.
  sync::Atomic<u64> changes{1};
};
extern Guests guests;

struct GuestAccess {
  static Guest* next(Guest& guest) { return guest.next_; }
  static void set_limit(Guest& guest, u64 bytes) { guest.limit_ = bytes; }
  static u64 limit(const Guest& guest) { return guest.limit_; }
  static HashMap<u32, Guest::Range>& ranges(Guest& guest) { return guest.ranges_; }
};

}  // namespace stagetwo::reclaim

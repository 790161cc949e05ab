// SPDX-License-Identifier: Apache-2.0
#pragma once

// Which engine's addresses are private pages that may leave, and the objects that have sealed ones.
// Part of mem; not for other rooms (mem/private_swap.h).
// Locking: lock (rank: slots_arch: below the changes of slots, which bind, above the objects').

#include "base/interval_map.h"
#include "mem/object_observer.h"
#include "mem/private_swap.h"
#include "sync/mutex.h"

namespace stagetwo::mem {

class Binding;
class GuestMemfd;
class SealedPages;

struct PrivateTable {
  sync::Mutex lock{sync::Rank::kSlotsArch};
  PrivateSwap* swap TA_GUARDED(lock) = nullptr;
  GuestMemfd* objects TA_GUARDED(lock) = nullptr;  // those with sealed pages
  using Bound = IntervalMap<u64, Binding*>;
  Bound* bound TA_GUARDED(lock) = nullptr;  // by address; with the swap
  u32 forks TA_GUARDED(lock) = 0;           // that are under way

  // Its pages can leave from now on, unless there is no memory for that.
  void enter(GuestMemfd& object, int fd, Binding& binding) TA_REQ(lock);
  void leave(const Binding& binding) TA_REQ(lock);
  void leave(GuestMemfd& object) TA_REQ(lock);
  // What is away of the pages dies.
  void forget(GuestMemfd& object, PageRange pages) TA_REQ(lock);
};
extern PrivateTable private_table;

struct PrivateAccess;

}  // namespace stagetwo::mem

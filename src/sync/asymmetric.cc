// SPDX-License-Identifier: Apache-2.0
#include "sync/asymmetric.h"

#include <linux/membarrier.h>

#include "base/sys.h"

// The choice between barrier and fallback is made once. A light store that still used the exchange
// while the barrier is ready is merely dearer; the other way round does not occur, because the
// barrier is never taken back outside tests.

namespace stagetwo::sync {
namespace detail {
Atomic<u32> membarrier_ready{0};
}  // namespace detail

bool asymmetric_init() {
  if constexpr (!detail::kMembarrierKnown) return false;
  if (!sys::membarrier(MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED)) return false;
  detail::membarrier_ready.store(1, kRelease);
  return true;
}

void debug_forbid_membarrier() {
  detail::membarrier_ready.store(0, kRelease);
}

void asymmetric_barrier() {
#if defined(ST_SCHED)
  if (sched::active()) {
    if (detail::membarrier_ready.load(kRelaxed) != 0) sched::barrier_everywhere();
    return;
  }
#endif
  if (!detail::kMembarrierKnown || detail::membarrier_ready.load(kRelaxed) == 0) return;
  // A process that registered is not refused, except in a child that has not registered yet.
  if (sys::membarrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED)) return;
  static_cast<void>(sys::membarrier(MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED));
  static_cast<void>(sys::membarrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED));
}

}  // namespace stagetwo::sync

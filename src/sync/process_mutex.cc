// SPDX-License-Identifier: Apache-2.0
#include "sync/process_mutex.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>

#include "base/sys.h"
#include "sync/futex.h"

namespace stagetwo::sync {
namespace {

constexpr u64 kLookNs = 10'000'000;

// futex(2) that other processes take part in.
void wait_shared(Atomic<u32>& word, u32 expected) {
#if defined(ST_SCHED)
  if (sched::active()) return futex_wait(word, expected, kLookNs);
#endif
  const timespec relative{0, static_cast<long>(kLookNs)};
  sys::call(SYS_futex, sys::arg(word.address()), FUTEX_WAIT, expected, sys::arg(&relative));
}

}  // namespace

bool is_thread_gone(u32 tid) {
  return sys::thread_gone(static_cast<int>(tid));
}

bool ProcessMutex::acquire_slow(DeathNotice& notice) {
  for (;;) {
    u32 seen = word_.load(kRelaxed);
    if ((seen & kOwner) == 0) {
      const bool died = (seen & kDied) != 0;
      if (try_word(notice, &seen, kWaiters)) return died;
      continue;
    }
    if ((seen & kWaiters) == 0) {
      if (!word_.compare_exchange(seen, seen | kWaiters, kRelaxed)) continue;
      seen |= kWaiters;
    }
    wait_shared(word_, seen);
    if ((seen & kUntold) == 0 || word_.load(kRelaxed) != seen) continue;
    if (is_thread_gone(seen & kOwner)) {
      static_cast<void>(word_.compare_exchange(seen, kDied | kWaiters, kRelaxed));
    }
  }
}

void ProcessMutex::wake() {
#if defined(ST_SCHED)
  if (sched::active()) return futex_wake(word_, 1);
#endif
  sys::call(SYS_futex, sys::arg(word_.address()), FUTEX_WAKE, 1);
}

}  // namespace stagetwo::sync

// SPDX-License-Identifier: Apache-2.0
#include "sync/futex.h"

#include <time.h>

#include "base/sys.h"

namespace stagetwo::sync {

void futex_wait(Atomic<u32>& word, u32 expected, u64 timeout_ns) {
#if defined(ST_SCHED)
  if (sched::active()) {
    static_cast<void>(sched::futex_wait(word.address(), expected, timeout_ns != kNoTimeout));
    return;
  }
#endif
  timespec relative{};
  relative.tv_sec = static_cast<time_t>(timeout_ns / 1'000'000'000u);
  relative.tv_nsec = static_cast<long>(timeout_ns % 1'000'000'000u);
  static_cast<void>(
      sys::futex_wait(word.address(), expected, timeout_ns == kNoTimeout ? nullptr : &relative));
}

void futex_wake(Atomic<u32>& word, int count) {
#if defined(ST_SCHED)
  if (sched::active()) {
    sched::futex_wake(word.address(), count);
    return;
  }
#endif
  sys::futex_wake(word.address(), count);
}

void yield_thread() {
#if defined(ST_SCHED)
  if (sched::active()) {
    sched::spin();
    return;
  }
#endif
  sys::sched_yield();
}

u64 now_ns() {
#if defined(ST_SCHED)
  if (sched::active()) return sched::now();
#endif
  return sys::monotonic_ns();
}

}  // namespace stagetwo::sync

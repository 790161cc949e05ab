// SPDX-License-Identifier: Apache-2.0
#include "host/fork_marks.h"

#include "base/sys.h"
#include "sync/futex.h"

namespace stagetwo::host {
namespace {

u32 now_ms() {
  return static_cast<u32>(sync::now_ns() / 1'000'000);
}
u64 mark_of(int thread) {
  return u64{static_cast<u32>(thread)} << 32 | now_ms();
}
int thread_of(u64 mark) {
  return static_cast<int>(mark >> 32);
}
bool is_stale(u64 mark) {
  const u32 age = now_ms() - static_cast<u32>(mark);
  return age > ForkMarks::kLongestMs || !sys::thread_alive(thread_of(mark));
}

}  // namespace

void ForkMarks::enter() {
  leave();
  const u64 mine = mark_of(sys::current_tid());
  for (;;) {
    for (sync::Atomic<u64>& mark : marks_) {
      u64 nobody = 0;
      if (mark.compare_exchange(nobody, mine)) return;
    }
    if (any()) sync::yield_thread();
  }
}

void ForkMarks::leave() {
  const int me = sys::current_tid();
  for (sync::Atomic<u64>& mark : marks_) {
    // Nobody else writes a mark of ours, but whoever finds it stale.
    u64 seen = mark.load();
    if (thread_of(seen) == me) static_cast<void>(mark.compare_exchange(seen, 0));
  }
}

bool ForkMarks::any() {
  bool found = false;
  for (sync::Atomic<u64>& mark : marks_) {
    u64 seen = mark.load();
    if (seen == 0) continue;
    if (!is_stale(seen)) {
      found = true;
    } else {
      static_cast<void>(mark.compare_exchange(seen, 0));
    }
  }
  return found;
}

void ForkMarks::clear() {
  for (sync::Atomic<u64>& mark : marks_) mark.store(0);
}

}  // namespace stagetwo::host

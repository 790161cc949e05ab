// SPDX-License-Identifier: Apache-2.0
#include "sync/epoch.h"

#include <algorithm>

#include "base/check.h"
#include "base/guard.h"

// Retiring against reading:
//
//   reader                            | retirer
//   running; reads pointer p          |
//                                     | unlinks p
//                                     | ticket n = next (read-modify-write, after the unlink)
//                                     | bump m >= n: the line's request is m; ack < n: p waits
//   poll: ack = m; p is forgotten     |
//                                     | collect: every line passed n: release(p)
//
//   reader                            | retirer
//   outside                           | unlinks p; n; bump m >= n
//                                     | collect: outside, request m >= n: passed: release(p)
//   running; reads request m, hence   |
//   sees the unlink: cannot find p    |
//
// A line that is outside but was not asked since (request < n) has not passed: its next entry might
// still see the old pointer. So a retired object waits for the next flush of its set, which every
// zap brings anyway, or for synchronize().

namespace stagetwo::sync {

EpochDomain::~EpochDomain() {
  release_up_to(~u64{0});
}

u32 EpochDomain::take(u64 passed, Retired* batch) {
  const MutexGuard guard(lock_);
  u32 taken = 0;
  while (taken < kBatch && count_ > 0) {
    if (ST_GUARD(retired_waits, ring_[first_].ticket > passed)) break;
    batch[taken++] = ring_[first_];
    first_ = (first_ + 1) % kCapacity;
    --count_;
  }
  return taken;
}

u32 EpochDomain::release_up_to(u64 passed) {
  Retired batch[kBatch];
  u32 released = 0;
  for (;;) {
    const u32 taken = take(passed, batch);
    for (u32 i = 0; i < taken; ++i) batch[i].release(batch[i].object);
    released += taken;
    if (taken < kBatch) return released;
  }
}

void EpochDomain::retire(void* object, Release release) {
  for (;;) {
    {
      const MutexGuard guard(lock_);
      if (count_ < kCapacity) {
        // Under the lock, so that the ring is in order of tickets.
        ring_[(first_ + count_) % kCapacity] = {set_.next_ticket(), object, release};
        ++count_;
        return;
      }
    }
    if (collect() == 0) synchronize();
  }
}

u32 EpochDomain::collect() {
  return release_up_to(set_.passed());
}

void EpochDomain::synchronize() {
  const u64 ticket = set_.bump_all();
  set_.wait_all(ticket);
  release_up_to(ticket);
}

bool EpochDomain::is_waiting(const void* object) {
  const MutexGuard guard(lock_);
  for (u32 i = 0; i < count_; ++i) {
    if (ring_[(first_ + i) % kCapacity].object == object) return true;
  }
  return false;
}

u32 EpochDomain::debug_waiting() {
  const MutexGuard guard(lock_);
  return count_;
}

}  // namespace stagetwo::sync

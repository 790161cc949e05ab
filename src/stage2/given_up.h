// SPDX-License-Identifier: Apache-2.0
#pragma once

// Which frames' private pages were given up of late: who keeps what he has read of them compares
// the count, and forgets what is named since, or all where it is not. Analogue: the sequence of
// mmu_invalidate_seq with its range (kernel file: kvm_host.h), for readers that come later.
//
//   who gives up (lock held)            | reader
//   the frame's name; count + 1         | count n; the names since; count m
//                                       | m is too far from what it had: a name may be another's
//
// Locking: lock_ (rank leaf), among writers; readers take none.

#include "addr/addr.h"
#include "sync/atomic.h"
#include "sync/mutex.h"

namespace stagetwo::stage2 {

class GivenUp {
 public:
  static constexpr u64 kNames = 64;

  [[nodiscard]] u64 count() const { return count_.load(sync::kAcquire); }

  void all() TA_EXCL(lock_) { name(kAll); }
  void frames(GfnRange frames) TA_EXCL(lock_) {
    name(frames.size() == 1 ? frames.start().raw() : kAll);
  }

  // Was one of those since the count was `seen` among what is kept? `keeps(gfn)`; where it is not
  // known which they were it is taken to be.
  template <typename F>
  [[nodiscard]] bool any_since(u64 seen, F&& keeps) const {
    const u64 now = count();
    if (now - seen > kNames) return true;
    for (u64 i = seen; i != now; ++i) {
      const u64 gfn = names_[i % kNames].load(sync::kAcquire);
      if (gfn == kAll || keeps(Gfn(gfn))) return true;
    }
    return count() - seen >= kNames;
  }

 private:
  static constexpr u64 kAll = ~u64{0};

  void name(u64 gfn) TA_EXCL(lock_) {
    const sync::MutexGuard guard(lock_);
    const u64 now = count_.load(sync::kRelaxed);
    names_[now % kNames].store(gfn, sync::kRelease);
    count_.store(now + 1, sync::kRelease);
  }

  sync::Mutex lock_{sync::Rank::kLeaf};
  sync::Atomic<u64> names_[kNames] = {};
  sync::Atomic<u64> count_{0};
};

}  // namespace stagetwo::stage2

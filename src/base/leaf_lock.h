// SPDX-License-Identifier: Apache-2.0
#pragma once

// The lock below all locks: three words of protocol for the few tables of `base` itself (arena,
// failpoints). It exists because `sync` stands above `base`; everybody else uses sync::Mutex.
// Nothing is called, and no schedule point lies, while one is held: so the deterministic scheduler
// never sees one contended, and the rank check needs no entry for it.
//
// States of the word: 0 free, 1 held, 2 held and somebody sleeps.

#include "base/sys.h"
#include "base/types.h"

namespace stagetwo {

class LeafGuard {
 public:
  explicit LeafGuard(u32* word) : word_(word) {
    u32 seen = 0;
    if (__atomic_compare_exchange_n(word_, &seen, 1u, false, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED)) {
      return;
    }
    while (__atomic_exchange_n(word_, 2u, __ATOMIC_ACQUIRE) != 0) {
      static_cast<void>(sys::futex_wait(word_, 2, nullptr));
    }
  }
  ~LeafGuard() {
    if (__atomic_exchange_n(word_, 0u, __ATOMIC_RELEASE) == 2) sys::futex_wake(word_, 1);
  }
  LeafGuard(const LeafGuard&) = delete;
  LeafGuard& operator=(const LeafGuard&) = delete;

 private:
  u32* word_;
};

}  // namespace stagetwo

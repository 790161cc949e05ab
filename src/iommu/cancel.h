// SPDX-License-Identifier: Apache-2.0
#pragma once

// Whether somebody who waits should give up: words that others set, each where it can, in this
// process or in memory of several. They outlive who asks.

#include "base/types.h"
#include "sync/atomic.h"

namespace stagetwo::iommu {

struct Cancel {
  const sync::Atomic<u32>* words[2] = {};
  [[nodiscard]] bool is_set() const {
    for (const auto* const word : words) {
      if (word != nullptr && word->load(sync::kAcquire) != 0) return true;
    }
    return false;
  }
};

}  // namespace stagetwo::iommu

// SPDX-License-Identifier: Apache-2.0
#pragma once

// Pins that a section let go of are charged less behind its end: one that is put back (kept.h)
// would have to charge them again, and who does that has died. Part of locked.h.

#include <algorithm>
#include <iterator>
#include <utility>

#include "host/pin_account.h"

namespace stagetwo::iommu {

class Uncharged {
 public:
  Uncharged() {}  // NOLINT: what is not used is not written
  Uncharged(const Uncharged&) = delete;
  Uncharged& operator=(const Uncharged&) = delete;
  ~Uncharged() {
    if (any_) [[unlikely]]
      settle();
  }
  void add(host::PinCharge mode, u64 pages) {
    if (!std::exchange(any_, true)) std::fill(std::begin(pages_), std::end(pages_), 0);
    pages_[static_cast<unsigned>(mode)] += pages;
  }

 private:
  void settle();

  bool any_ = false;
  u64 pages_[3];  // of each mode
};

}  // namespace stagetwo::iommu

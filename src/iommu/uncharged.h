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
  void add(host::PinCharge mode, bool dead, u64 pages) {
    if (!std::exchange(any_, true)) std::fill(std::begin(pages_), std::end(pages_), 0);
    pages_[place_of(mode, dead)] += pages;
  }

 private:
  static unsigned place_of(host::PinCharge mode, bool dead) {
    return static_cast<unsigned>(mode) * 2 + (dead ? 1 : 0);
  }
  void settle();

  bool any_ = false;
  u64 pages_[6];
};

}  // namespace stagetwo::iommu

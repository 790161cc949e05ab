// SPDX-License-Identifier: Apache-2.0
#pragma once

// How many pages to ask for at once, by who goes through memory of which much may never have been
// touched: more each time as long as none had been, fewer where one had, and then some by
// themselves. Analogue: the batches of khugepaged and of read-ahead, which grow and fall back.

#include "base/types.h"

namespace stagetwo::uv {

class RunLength {
 public:
  // 1: by itself.
  [[nodiscard]] u64 most() const { return singly_ != 0 ? 1 : length_; }
  // `count` pages were asked for, and were untouched or not; one by itself may be either.
  void next(u64 count, bool untouched) {
    if (count == 1) {
      singly_ -= singly_ != 0 ? 1 : 0;
    } else if (untouched) {
      length_ = length_ < kLongest ? length_ * kStep : length_;
    } else if (length_ > kStep) {
      length_ /= kStep;
    } else {
      singly_ = kStep;
    }
  }

 private:
  static constexpr u64 kStep = 8, kLongest = 4096;
  u64 length_ = kLongest;
  u64 singly_ = 0;  // so many more
};

}  // namespace stagetwo::uv

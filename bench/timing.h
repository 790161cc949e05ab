// SPDX-License-Identifier: Apache-2.0
#pragma once

// Times that a benchmark takes itself, and what of many of them is told.

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <vector>

namespace stagetwo::bench {

using Clock = std::chrono::steady_clock;

inline double since_ns(Clock::time_point start) {
  return std::chrono::duration<double, std::nano>(Clock::now() - start).count();
}

// Sorts as far as it must. Pre: not empty.
inline double median(std::vector<double>& values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

}  // namespace stagetwo::bench

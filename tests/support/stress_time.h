// SPDX-License-Identifier: Apache-2.0
#pragma once

// How long a test that stresses may take: STAGETWO_TEST_SECONDS (3 in `make test`, 60 in `make
// stress`), and the seed of its choices: STAGETWO_SEED, else a new one, printed.

#include <chrono>
#include <cstdio>
#include <cstdlib>

#include "base/types.h"

namespace stagetwo::test {

inline double stress_seconds() {
  const char* text = std::getenv("STAGETWO_TEST_SECONDS");
  return text == nullptr ? 3.0 : std::atof(text);
}

class Deadline {
 public:
  // `share` of the test's seconds.
  explicit Deadline(double share = 1.0)
      : end_(std::chrono::steady_clock::now() +
             std::chrono::duration_cast<std::chrono::steady_clock::duration>(
                 std::chrono::duration<double>(stress_seconds() * share))) {}
  [[nodiscard]] bool passed() const { return std::chrono::steady_clock::now() >= end_; }

 private:
  std::chrono::steady_clock::time_point end_;
};

// `full` rounds at 60 seconds, in proportion below, never fewer than a twentieth.
inline u64 stress_rounds(u64 full) {
  const double share = stress_seconds() / 60.0;
  if (share >= 1.0) return full;
  return static_cast<u64>(static_cast<double>(full) * (share < 0.05 ? 0.05 : share));
}

}  // namespace stagetwo::test

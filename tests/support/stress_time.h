// SPDX-License-Identifier: Apache-2.0
#pragma once

// Round counts of stress tests: the full number at 60 seconds (`make stress`), a share of it below.
// What a run left out of the full number it says on a line of its own, and `make stress` lists
// those lines (tools/run-tests).

#include <cstdio>

#include "base/types.h"
#include "tests/support/random_source.h"

namespace stagetwo::test {

inline void tell_cut(const char* what, u64 done, u64 full) {
  if (done >= full) return;
  std::printf("cut: %llu of %llu %s\n", static_cast<unsigned long long>(done),
              static_cast<unsigned long long>(full), what);
}

// Never fewer than a twentieth of `full`.
inline u64 stress_rounds(u64 full) {
  const double share = test_seconds() / 60.0;
  if (share >= 1.0) return full;
  const u64 rounds = static_cast<u64>(static_cast<double>(full) * (share < 0.05 ? 0.05 : share));
  tell_cut("rounds", rounds, full);
  return rounds;
}

}  // namespace stagetwo::test

// SPDX-License-Identifier: Apache-2.0
#pragma once

// Round counts of stress tests: the full number at 60 seconds (`make stress`), a share of it below.

#include "base/types.h"
#include "tests/support/random_source.h"

namespace stagetwo::test {

// Never fewer than a twentieth of `full`.
inline u64 stress_rounds(u64 full) {
  const double share = test_seconds() / 60.0;
  if (share >= 1.0) return full;
  return static_cast<u64>(static_cast<double>(full) * (share < 0.05 ? 0.05 : share));
}

}  // namespace stagetwo::test

// SPDX-License-Identifier: Apache-2.0
#pragma once

// How long a model test lives: STAGETWO_TEST_STEPS steps where that is set (a million of them by
// `make stress`), else its share of STAGETWO_TEST_SECONDS (3).

#include <cstdlib>

#include "base/types.h"
#include "tests/support/seeds.h"
#include "tests/support/stress_time.h"

namespace stagetwo::test {

class ModelTime {
 public:
  explicit ModelTime(double share) : deadline_(share) {
    if (const char* text = std::getenv("STAGETWO_TEST_STEPS")) {
      fixed_ = true;
      limit_ = std::strtoull(text, nullptr, 0);
    }
  }
  ModelTime(const ModelTime&) = delete;
  ModelTime& operator=(const ModelTime&) = delete;
  ~ModelTime() { tell_cut("steps", steps_, kFull); }
  // Asked once a step.
  [[nodiscard]] bool another() {
    if (steps_ == limit_ || (!fixed_ && steps_ % 64 == 0 && !deadline_.running())) return false;
    ++steps_;
    return true;
  }
  [[nodiscard]] u64 steps() const { return steps_; }

 private:
  static constexpr u64 kFull = 1'000'000;

  Deadline deadline_;
  bool fixed_ = false;
  u64 steps_ = 0;
  u64 limit_ = kFull;
};

}  // namespace stagetwo::test

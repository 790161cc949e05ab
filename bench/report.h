// SPDX-License-Identifier: Apache-2.0
#pragma once

// How a benchmark says what its figure means, so that tools/bench can put it beside a yardstick.
// A figure without report() is a time per iteration in nanoseconds, with neither yardstick nor
// target.

#include <benchmark/benchmark.h>

#include <cmath>
#include <limits>
#include <string>

namespace stagetwo::bench {

inline constexpr double kNone = std::numeric_limits<double>::quiet_NaN();

struct Figure {
  std::string unit;         // what `value` counts: "ns", "M instructions/s"
  double value = kNone;     // none: the time per iteration in nanoseconds
  std::string yardstick{};  // what it is held against: "munmap alone"
  double yardstick_value = kNone;
  // The target bounds the ratio value / yardstick_value, or the value where there is no yardstick.
  double at_most = kNone;
  double at_least = kNone;
};

inline void report(benchmark::State& state, const Figure& figure) {
  state.SetLabel(figure.unit + "|" + figure.yardstick);
  const auto put = [&](const char* name, double number) {
    if (!std::isnan(number)) state.counters[name] = number;
  };
  put("value", figure.value);
  put("yardstick_value", figure.yardstick_value);
  put("at_most", figure.at_most);
  put("at_least", figure.at_least);
}

}  // namespace stagetwo::bench

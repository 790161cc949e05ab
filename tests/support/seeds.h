// SPDX-License-Identifier: Apache-2.0
#pragma once

// What random and time-boxed tests share: STAGETWO_SEED fixes the seed, STAGETWO_TEST_SECONDS the
// duration (3). A test prints its seed where it fails. tools/run-tests gives STAGETWO_DEFAULT_SEED,
// so that two runs of `make test` draw the same numbers; it does not say "this one seed", as
// STAGETWO_SEED does to a test that searches many.

#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <random>

namespace stagetwo::test {

inline bool seed_is_fixed() {
  return std::getenv("STAGETWO_SEED") != nullptr;
}

// The seed of this process: from the environment, else a fresh one.
inline std::uint64_t seed() {
  static const std::uint64_t value = [] {
    for (const char* name : {"STAGETWO_SEED", "STAGETWO_DEFAULT_SEED"}) {
      if (const char* text = std::getenv(name))
        return std::uint64_t{std::strtoull(text, nullptr, 0)};
    }
    std::random_device device;
    return (std::uint64_t{device()} << 32 | device()) & 0xffffffffu;
  }();
  return value;
}

inline double test_seconds() {
  const char* text = std::getenv("STAGETWO_TEST_SECONDS");
  const double seconds = text != nullptr ? std::strtod(text, nullptr) : 0;
  return seconds > 0 ? seconds : 3;
}

// True until `share` of the test's duration has passed.
class Deadline {
 public:
  explicit Deadline(double share = 1)
      : end_(std::chrono::steady_clock::now() +
             std::chrono::duration_cast<std::chrono::steady_clock::duration>(
                 std::chrono::duration<double>(test_seconds() * share))) {}
  [[nodiscard]] bool running() const { return std::chrono::steady_clock::now() < end_; }

 private:
  std::chrono::steady_clock::time_point end_;
};

}  // namespace stagetwo::test

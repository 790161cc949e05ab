// SPDX-License-Identifier: Apache-2.0
#pragma once

// What a random test draws from. Its seed and its duration come from seeds.h.

#include <cstdint>
#include <cstdio>

#include "tests/support/seeds.h"

namespace stagetwo::test {

// splitmix64: small, fast, and every seed is a good one.
class RandomSource {
 public:
  explicit RandomSource(std::uint64_t seed) : state_(seed) {}

  std::uint64_t next() {
    std::uint64_t z = (state_ += 0x9e3779b97f4a7c15U);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9U;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebU;
    return z ^ (z >> 31);
  }
  // Uniform enough for tests. Pre: bound > 0.
  std::uint64_t below(std::uint64_t bound) { return next() % bound; }
  unsigned small(unsigned bound) { return static_cast<unsigned>(next() % bound); }
  std::uint8_t byte() { return static_cast<std::uint8_t>(next()); }
  bool one_in(unsigned n) { return next() % n == 0; }

 private:
  std::uint64_t state_;
};

// The seed of this run, printed once with the test's name so that a failure can be repeated.
inline std::uint64_t announced_seed(const char* test) {
  std::printf("%s: STAGETWO_SEED=%llu\n", test, static_cast<unsigned long long>(seed()));
  return seed();
}

}  // namespace stagetwo::test

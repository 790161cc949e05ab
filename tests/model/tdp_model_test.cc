// SPDX-License-Identifier: Apache-2.0
// Random operations on a stage-2 table against a map that knows nothing of tables. A failure is
// repeated with the seed that was printed.

#include <gtest/gtest.h>

#include <cstdio>

#include "base/alloc.h"
#include "tests/model/model_time.h"
#include "tests/model/tdp_model.h"

namespace stagetwo::test {
namespace {

constexpr u64 kStepsOfALife = 20'000;
constexpr u64 kCompareEvery = 16;

// Lives follow one another until the time is over; each begins and ends with nothing.
void live(const char* name, bool nx, double share) {
  const u64 seed = announced_seed(name);
  ModelTime time(share);
  u64 accesses = 0;
  u64 refused = 0;
  for (u64 life = 0; !::testing::Test::HasFailure(); ++life) {
    const s64 before = alloc_use().bytes;
    bool more = true;
    {
      TdpModel model(seed + life, nx);
      for (u64 step = 0; step < kStepsOfALife && (more = time.another()); ++step) {
        model.step();
        model.check_world();
        if (step % kCompareEvery == 0) model.compare();
        if (::testing::Test::HasFailure()) {
          std::printf("life %llu, step %llu\n", static_cast<unsigned long long>(life),
                      static_cast<unsigned long long>(step));
          return;
        }
      }
      model.compare();
      accesses += model.accesses;
      refused += model.refused;
    }
    EXPECT_EQ(alloc_use().bytes, before) << "something is left";
    if (!more) break;
  }
  std::printf("%llu steps, %llu accesses, %llu refused for want of memory\n",
              static_cast<unsigned long long>(time.steps()),
              static_cast<unsigned long long>(accesses), static_cast<unsigned long long>(refused));
}

TEST(TdpModel, ATableHoldsWhatANaiveMapHolds) {
  live("TdpModel", false, 0.6);
}

TEST(TdpModel, ATableUnderTheNxPolicyHoldsWhatANaiveMapHolds) {
  live("TdpModel, NX", true, 0.4);
}

}  // namespace
}  // namespace stagetwo::test

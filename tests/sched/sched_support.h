// SPDX-License-Identifier: Apache-2.0
#pragma once

// Running one scenario over many seeds. A scenario is a class with
//   static constexpr unsigned kThreads;
//   void thread(unsigned index);      // the scheduled part
//   void after();                     // checks when all threads are done; may call sched::fail
// made anew for every seed. A failing run leaves threads asleep, so its scenario is kept for ever.

#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "sync/schedule.h"
#include "tests/support/seeds.h"

namespace stagetwo::test {

struct Found {
  bool found = false;
  std::uint64_t seed = 0;
  unsigned runs = 0;
  sync::sched::Outcome outcome{};
};

template <typename Scenario>
sync::sched::Outcome run_once(std::uint64_t seed, bool weak_memory = true) {
  auto scenario = std::make_unique<Scenario>();
  sync::sched::Options options;
  options.seed = seed;
  options.weak_memory = weak_memory;
  const auto outcome = sync::sched::run(options, Scenario::kThreads,
                                        [&](unsigned index) { scenario->thread(index); });
  if (!outcome.finished()) {
    static auto& kept = *new std::vector<Scenario*>;  // reachable after static destructors too
    kept.push_back(scenario.release());
  }
  return outcome;
}

// Looks for a seed that breaks the scenario, at most `limit` of them.
template <typename Scenario>
Found search(unsigned limit, bool weak_memory = true) {
  Found result;
  for (unsigned i = 0; i < limit; ++i) {
    result.seed = seed_is_fixed() ? seed() : i + 1;
    result.outcome = run_once<Scenario>(result.seed, weak_memory);
    ++result.runs;
    if (!result.outcome.finished()) {
      result.found = true;
      return result;
    }
    if (seed_is_fixed()) break;
  }
  return result;
}

// The protocol holds in every schedule tried: half of `seeds`, ten times as many in `make stress`.
template <typename Scenario>
void expect_holds(unsigned seeds = 1500) {
  const Found found = search<Scenario>(test_seconds() < 60 ? seeds / 2 : seeds * 10);
  EXPECT_FALSE(found.found) << "STAGETWO_SEED=" << found.seed << ": " << found.outcome.why
                            << " after " << found.outcome.steps << " steps";
}

// The deliberately broken twin is found within `seeds` schedules.
template <typename Scenario>
void expect_found(unsigned seeds = 1500) {
  if (seed_is_fixed()) GTEST_SKIP() << "one fixed seed says nothing about a search";
  const Found found = search<Scenario>(seeds);
  EXPECT_TRUE(found.found) << "the broken twin survived " << found.runs << " schedules";
  if (found.found) {
    ::testing::Test::RecordProperty("found_after", static_cast<int>(found.runs));
    // The seed is a reproduction.
    const auto again = run_once<Scenario>(found.seed);
    EXPECT_EQ(again.end, found.outcome.end);
    EXPECT_EQ(again.steps, found.outcome.steps);
  }
}

}  // namespace stagetwo::test

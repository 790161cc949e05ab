// SPDX-License-Identifier: Apache-2.0
// IntervalMap against a naive model (one value per address), step by step, and its refusals.

#include "base/interval_map.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <string>
#include <tuple>
#include <vector>

#include "base/failpoint.h"
#include "tests/support/seeds.h"

namespace stagetwo {
namespace {

using Map = IntervalMap<u64, int>;
using Row = std::tuple<u64, u64, int>;

std::vector<Row> rows(const Map& map) {
  std::vector<Row> out;
  map.for_each(0, ~u64{0}, [&](Map::Entry e) { out.emplace_back(e.start, e.end, *e.value); });
  return out;
}

TEST(IntervalMap, FindsTheRangeThatContainsAnAddress) {
  Map map;
  ASSERT_TRUE(map.insert(10, 20, 1));
  EXPECT_FALSE(map.find(9));
  EXPECT_EQ(*map.find(10).value, 1);
  EXPECT_EQ(*map.find(19).value, 1);
  EXPECT_FALSE(map.find(20));
}

TEST(IntervalMap, RefusesToInsertOverARange) {
  Map map;
  ASSERT_TRUE(map.insert(10, 20, 1));
  EXPECT_EQ(map.insert(19, 30, 2).error(), Errno{EEXIST});
  EXPECT_EQ(map.insert(5, 11, 2).error(), Errno{EEXIST});
  EXPECT_TRUE(map.insert(20, 30, 2));
  EXPECT_EQ(rows(map), (std::vector<Row>{{10, 20, 1}, {20, 30, 2}}));
}

TEST(IntervalMap, NeighboursWithEqualValuesAreOneRange) {
  Map map;
  ASSERT_TRUE(map.insert(10, 20, 1));
  ASSERT_TRUE(map.insert(30, 40, 1));
  ASSERT_TRUE(map.insert(20, 30, 1));
  EXPECT_EQ(rows(map), (std::vector<Row>{{10, 40, 1}}));
}

TEST(IntervalMap, AssignCutsWhatItCovers) {
  Map map;
  ASSERT_TRUE(map.insert(0, 100, 1));
  ASSERT_TRUE(map.assign(40, 60, 2));
  EXPECT_EQ(rows(map), (std::vector<Row>{{0, 40, 1}, {40, 60, 2}, {60, 100, 1}}));
  ASSERT_TRUE(map.assign(40, 60, 1));
  EXPECT_EQ(rows(map), (std::vector<Row>{{0, 100, 1}}));
}

TEST(IntervalMap, EraseInTheMiddleLeavesTwo) {
  Map map;
  ASSERT_TRUE(map.insert(0, 100, 1));
  ASSERT_TRUE(map.erase(40, 60));
  EXPECT_EQ(rows(map), (std::vector<Row>{{0, 40, 1}, {60, 100, 1}}));
  ASSERT_TRUE(map.erase(0, 1000));
  EXPECT_TRUE(map.empty());
}

TEST(IntervalMap, ARefusedChangeChangesNothing) {
  const u64 failing = failpoint::sweep([] {
    Map map;
    const bool first = map.insert(0, 100, 1).has_value();
    if (!first) {
      EXPECT_TRUE(map.empty());
      return;
    }
    const auto before = rows(map);
    if (!map.assign(10, 20, 2)) {
      EXPECT_EQ(rows(map), before);
      return;
    }
    const auto between = rows(map);
    if (!map.erase(30, 40)) {
      EXPECT_EQ(rows(map), between);
    }
  });
  EXPECT_GT(failing, 2u);
}

TEST(IntervalMap, AReservedChangeNeedsNoMemory) {
  Map map;
  ASSERT_TRUE(map.insert(0, 100, 1));
  ASSERT_TRUE(map.reserve());
  failpoint::arm(nullptr, 1, failpoint::kForever);
  map.erase_reserved(40, 60);
  EXPECT_EQ(failpoint::asked(), 0u);
  failpoint::disarm();
  EXPECT_EQ(map.size(), 2u);
}

TEST(IntervalMap, GivesEverythingBack) {
  const AllocUse before = alloc_use();
  {
    Map map;
    for (u64 i = 0; i < 1000; ++i) ASSERT_TRUE(map.insert(i * 10, i * 10 + 5, 1));
    ASSERT_TRUE(map.erase(100, 5000));
  }
  EXPECT_EQ(alloc_use().blocks, before.blocks);
  EXPECT_EQ(alloc_use().bytes, before.bytes);
}

// The model: an array of values, 0 for unmapped.
constexpr u64 kSpan = 96;

void expect_same(const Map& map, const std::vector<int>& model) {
  std::vector<Row> want;
  for (u64 at = 0; at < kSpan; ++at) {
    const int value = model[at];
    if (value == 0) continue;
    if (!want.empty() && std::get<1>(want.back()) == at && std::get<2>(want.back()) == value) {
      std::get<1>(want.back()) = at + 1;
    } else {
      want.emplace_back(at, at + 1, value);
    }
  }
  ASSERT_EQ(rows(map), want);
  ASSERT_EQ(map.size(), want.size());
}

TEST(IntervalMap, AgreesWithTheNaiveModel) {
  SCOPED_TRACE("STAGETWO_SEED=" + std::to_string(test::seed()));
  std::mt19937_64 random(test::seed());
  Map map;
  std::vector<int> model(kSpan, 0);
  for (int step = 0; step < 20'000; ++step) {
    const u64 start = random() % kSpan;
    const u64 end = start + 1 + random() % (kSpan - start);
    const auto first = model.begin() + static_cast<long>(start);
    const auto last = model.begin() + static_cast<long>(end);
    const int value = 1 + static_cast<int>(random() % 3);
    switch (random() % 3) {
      case 0: {
        const bool free = std::all_of(first, last, [](int v) { return v == 0; });
        ASSERT_EQ(map.insert(start, end, value).has_value(), free);
        if (free) std::fill(first, last, value);
        break;
      }
      case 1:
        ASSERT_TRUE(map.assign(start, end, value));
        std::fill(first, last, value);
        break;
      default:
        ASSERT_TRUE(map.erase(start, end));
        std::fill(first, last, 0);
        break;
    }
    expect_same(map, model);
    if (::testing::Test::HasFatalFailure()) FAIL() << "at step " << step;
  }
}

TEST(IntervalMap, ALargeMapStaysShallow) {
  Map map;
  for (u64 i = 0; i < 100'000; ++i) ASSERT_TRUE(map.insert(i * 2, i * 2 + 1, 1));
  EXPECT_EQ(map.size(), 100'000u);
  for (u64 i = 0; i < 100'000; ++i) ASSERT_TRUE(map.find(i * 2));
  ASSERT_TRUE(map.assign(0, 200'000, 7));
  EXPECT_EQ(map.size(), 1u);
}

}  // namespace
}  // namespace stagetwo

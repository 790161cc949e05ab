// SPDX-License-Identifier: Apache-2.0
#include "iommu/interval_set.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "tests/support/random_source.h"

namespace stagetwo::iommu {
namespace {

struct Item {
  IntervalNode node;
};

std::unique_ptr<Item> item(u64 start, u64 last) {
  auto made = std::make_unique<Item>();
  made->node.start = start;
  made->node.last = last;
  return made;
}

TEST(IntervalSet, FindsTheFirstThatOverlaps) {
  IntervalSet<Item> set;
  const auto a = item(10, 19), b = item(20, 29), c = item(40, ~u64{0});
  for (const auto* one : {&c, &a, &b}) set.insert(one->get());
  EXPECT_EQ(set.first(0, 9), nullptr);
  EXPECT_EQ(set.first(0, 10), a.get());
  EXPECT_EQ(set.first(19, 25), a.get());
  EXPECT_EQ(set.first(20, 25), b.get());
  EXPECT_EQ(set.first(30, 39), nullptr);
  EXPECT_EQ(set.first(~u64{0}, ~u64{0}), c.get());
  EXPECT_EQ(set.next(a.get()), b.get());
  EXPECT_EQ(set.next(c.get()), nullptr);
}

TEST(IntervalSet, HoldsIntervalsThatOverlapEachOther) {
  IntervalSet<Item> set;
  const auto a = item(0, 99), b = item(0, 99), c = item(50, 60);
  for (const auto* one : {&a, &b, &c}) set.insert(one->get());
  set.erase(a.get());
  EXPECT_EQ(set.first(70, 70), b.get());
  set.erase(b.get());
  EXPECT_EQ(set.first(70, 70), nullptr);
  EXPECT_EQ(set.first(55, 55), c.get());
}

TEST(IntervalSet, AgreesWithAList) {
  test::RandomSource random(test::announced_seed("IntervalSet"));
  IntervalSet<Item> set;
  std::vector<std::unique_ptr<Item>> list;
  for (int step = 0; step < 20'000; ++step) {
    if (list.empty() || random.below(3) != 0) {
      const u64 start = random.below(4096);
      list.push_back(item(start, start + random.below(64)));
      set.insert(list.back().get());
    } else {
      const size_t victim = random.below(list.size());
      set.erase(list[victim].get());
      list.erase(list.begin() + static_cast<std::ptrdiff_t>(victim));
    }
    const u64 from = random.below(4096), to = from + random.below(128);
    u64 expected = ~u64{0};
    for (const auto& one : list) {
      if (one->node.start <= to && one->node.last >= from) {
        expected = std::min(expected, one->node.start.get());
      }
    }
    const Item* const found = set.first(from, to);
    ASSERT_EQ(found == nullptr ? ~u64{0} : found->node.start, expected) << "step " << step;
    if (list.size() > 200) {
      set.erase(list.back().get());
      list.pop_back();
    }
  }
  size_t count = 0;
  const Item* before = nullptr;
  for (const Item* one = set.first(); one != nullptr; one = set.next(one)) {
    if (before != nullptr) {
      EXPECT_LE(before->node.start, one->node.start);
    }
    before = one;
    ++count;
  }
  EXPECT_EQ(count, list.size());
}

// Entered and erased side by side, from either end, and anywhere; each question also beside the
// last change, where the answer is found without a walk.
TEST(IntervalSet, OfDisjointOnesAgreesWithAList) {
  test::RandomSource random(test::announced_seed("IntervalSet"));
  constexpr u64 kPlaces = 512, kWidth = 16;
  IntervalSet<Item, Intervals::kDisjoint> set;
  std::vector<std::unique_ptr<Item>> list(kPlaces);
  u64 at = 0;
  s64 step_by = 1;
  for (int step = 0; step < 20'000; ++step) {
    if (random.below(20) == 0) {
      at = random.below(kPlaces);
      step_by = random.below(2) == 0 ? 1 : -1;
    }
    at = (at + static_cast<u64>(step_by)) % kPlaces;
    if (list[at] == nullptr) {
      const u64 start = at * kWidth + random.below(kWidth);
      list[at] = item(start, start + random.below(at * kWidth + kWidth - start));
      set.insert(list[at].get());
    } else {
      set.erase(list[at].get());
      list[at] = nullptr;
    }
    const u64 from = random.below(3) == 0 ? random.below(kPlaces * kWidth) : at * kWidth;
    const u64 to = from + random.below(3 * kWidth);
    const Item* expected = nullptr;
    for (u64 i = from / kWidth; i < kPlaces && i * kWidth <= to && expected == nullptr; ++i) {
      const Item* const one = list[i].get();
      if (one != nullptr && one->node.last >= from && one->node.start <= to) expected = one;
    }
    ASSERT_EQ(set.first(from, to), expected) << "step " << step;
  }
  const Item* one = set.first();
  for (const auto& expected : list) {
    if (expected == nullptr) continue;
    ASSERT_EQ(one, expected.get());
    one = set.next(one);
  }
  EXPECT_EQ(one, nullptr);
  EXPECT_EQ(set.empty(), set.first() == nullptr);
}

// Whoever goes through them may erase what is behind, from either end.
TEST(IntervalSet, IsEmptiedInOrderAndAgainstIt) {
  for (const bool from_the_end : {false, true}) {
    IntervalSet<Item> set;
    std::vector<std::unique_ptr<Item>> list;
    for (u64 i = 0; i < 1000; ++i) {
      list.push_back(item(i * 10, i * 10 + 9));
      set.insert(list.back().get());
    }
    for (u64 i = 0; i < 1000; ++i) {
      const u64 at = from_the_end ? 999 - i : i;
      Item* const next = set.next(list[at].get());
      EXPECT_EQ(next, !from_the_end && at != 999 ? list[at + 1].get() : nullptr);
      set.erase(list[at].get());
      EXPECT_EQ(set.first(at * 10, at * 10 + 9), nullptr);
      EXPECT_EQ(set.first(), i == 999 ? nullptr : from_the_end ? list[0].get() : next);
    }
    EXPECT_TRUE(set.empty());
  }
}

}  // namespace
}  // namespace stagetwo::iommu

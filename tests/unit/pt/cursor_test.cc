// SPDX-License-Identifier: Apache-2.0
// The walker on hand-built trees: what it visits, and what it does when the tree changes under it.

#include "pt/cursor.h"

#include <gtest/gtest.h>

#include <deque>
#include <tuple>
#include <vector>

#include "pt/fmt/stage2.h"

namespace stagetwo::pt {
namespace {

// Tables that live as long as the test.
class Tables {
 public:
  Entry<Stage2>* make() { return made_.emplace_back().entries; }

 private:
  struct alignas(4096) Page {
    Entry<Stage2> entries[512];
  };
  std::deque<Page> made_;
};

u64 address_of(Entry<Stage2>* entries) {
  return reinterpret_cast<u64>(entries);
}

constexpr Stage2::Attributes kReadOnly{};
Stage2::Word page(u64 hva) {
  return Stage2::make_leaf(hva, 1, kReadOnly);
}

class CursorTest : public ::testing::Test {
 protected:
  void SetUp() override {
    // Level 3: [1] → level 2: [0] a 2 MiB leaf, [1] → level 1: [5] a page, [2] nothing.
    level3->store(Stage2::kNonpresent);
    level3[1].store(Stage2::make_table(address_of(level2)));
    level2[0].store(Stage2::make_leaf(0x4000'0000, 2, kReadOnly));
    level2[1].store(Stage2::make_table(address_of(level1)));
    level1[5].store(page(0x7000'0000));
  }

  using Visit = std::tuple<unsigned, u64>;  // level, first frame
  std::vector<Visit> visits(u64 first, u64 last, unsigned min_level = 1) {
    std::vector<Visit> seen;
    for (Cursor<Stage2> at(level3, 3, min_level, first, last); at.valid(); at.next()) {
      seen.emplace_back(at.level(), at.frame());
    }
    return seen;
  }

  Tables tables;
  Entry<Stage2>* level3 = tables.make();
  Entry<Stage2>* level2 = tables.make();
  Entry<Stage2>* level1 = tables.make();
  static constexpr u64 kGig = 1 << 18;    // frames of level 3
  static constexpr u64 kTwoMeg = 1 << 9;  // frames of level 2
};

TEST_F(CursorTest, ATableIsVisitedBeforeItsEntries) {
  const std::vector<Visit> want = {{3, kGig}, {2, kGig + kTwoMeg}, {1, kGig + kTwoMeg + 5}};
  EXPECT_EQ(visits(kGig + kTwoMeg + 5, kGig + kTwoMeg + 6), want);
}

TEST_F(CursorTest, TheWholeTreeIsVisitedOnceInOrder) {
  const auto seen = visits(0, 512 * kGig);
  EXPECT_EQ(seen.size(), 512U * 3);
  u64 reached = 0;
  for (const auto& [level, frame] : seen) {
    EXPECT_GE(frame, reached) << "frames never go backwards";
    reached = frame;
  }
}

TEST_F(CursorTest, TheRangeIsHalfOpenAndMayBeginInsideAnEntry) {
  EXPECT_EQ(visits(kGig + 7, kGig + 8), (std::vector<Visit>{{3, kGig}, {2, kGig}}));
  EXPECT_EQ(visits(kGig + 7, kGig + 7), std::vector<Visit>{});
  EXPECT_EQ(visits(kGig - 1, kGig), (std::vector<Visit>{{3, 0}}));
  EXPECT_EQ(visits(2 * kGig - 1, 2 * kGig + 1),
            (std::vector<Visit>{{3, kGig}, {2, 2 * kGig - kTwoMeg}, {3, 2 * kGig}}))
      << "up and aside at the end of a table";
}

TEST_F(CursorTest, WhatTheRootDoesNotCoverIsNotVisited) {
  EXPECT_EQ(visits(511 * kGig, ~u64{0}), (std::vector<Visit>{{3, 511 * kGig}}));
  EXPECT_EQ(visits(512 * kGig, ~u64{0}), std::vector<Visit>{});
}

TEST_F(CursorTest, BelowTheMinimumLevelNothingIsVisited) {
  EXPECT_EQ(visits(kGig + kTwoMeg, kGig + 2 * kTwoMeg, 2),
            (std::vector<Visit>{{3, kGig}, {2, kGig + kTwoMeg}}));
}

TEST_F(CursorTest, SkipPassesOverATable) {
  Cursor<Stage2> at(level3, 3, 1, kGig, 3 * kGig);
  ASSERT_TRUE(at.is_table());
  at.skip();
  EXPECT_EQ(at.frame(), 2 * kGig);
  EXPECT_EQ(at.level(), 3U);
}

TEST_F(CursorTest, ATableThatVanishedIsNotEntered) {
  Cursor<Stage2> at(level3, 3, 1, kGig + kTwoMeg + 5, kGig + kTwoMeg + 6);
  at.next();
  ASSERT_EQ(at.level(), 2U);
  ASSERT_TRUE(at.is_table());
  level2[1].store(Stage2::kFrozen);  // another thread removes it
  at.next();
  EXPECT_FALSE(at.valid()) << "the walk ends above the level that was wanted";
  EXPECT_EQ(at.level(), 2U);
}

TEST_F(CursorTest, ATableThatAppearedIsEntered) {
  Entry<Stage2>* fresh = tables.make();
  Cursor<Stage2> at(level3, 3, 1, kGig + 2 * kTwoMeg, kGig + 2 * kTwoMeg + 1);
  at.next();
  ASSERT_EQ(at.old(), Stage2::kNonpresent);
  ASSERT_TRUE(at.compare_exchange(Stage2::make_table(address_of(fresh))));
  at.next();
  EXPECT_EQ(at.level(), 1U);
  EXPECT_EQ(at.entry(), fresh);
}

TEST_F(CursorTest, TheLoserOfAnExchangeIsToldWhatIsThere) {
  Cursor<Stage2> at(level3, 3, 1, kGig + kTwoMeg + 5, kGig + kTwoMeg + 6);
  while (at.level() > 1) at.next();
  level1[5].store(page(0x9000));
  EXPECT_FALSE(at.compare_exchange(Stage2::kNonpresent));
  EXPECT_EQ(at.old(), page(0x9000));
  EXPECT_EQ(level1[5].load(), page(0x9000)) << "and wrote nothing";
  EXPECT_TRUE(at.compare_exchange(Stage2::kNonpresent));
  EXPECT_EQ(at.old(), Stage2::kNonpresent);
}

TEST_F(CursorTest, FetchAndAndExchangeTellWhatWas) {
  const auto writable =
      page(0x9000) | Stage2::kHostWritable | Stage2::kMmuWritable | Stage2::kWrite;
  level1[5].store(writable);
  Cursor<Stage2> at(level3, 3, 1, kGig + kTwoMeg + 5, kGig + kTwoMeg + 6);
  while (at.level() > 1) at.next();
  EXPECT_EQ(at.fetch_and(~Stage2::kWrite), writable);
  EXPECT_EQ(at.old(), Stage2::write_protected(writable));
  EXPECT_EQ(at.exchange(Stage2::kFrozen), Stage2::write_protected(writable));
  EXPECT_EQ(at.old(), Stage2::kFrozen);
}

TEST_F(CursorTest, AfterAYieldTheWalkGoesOnWhereItWas) {
  Cursor<Stage2> at(level3, 3, 1, kGig + kTwoMeg, kGig + 2 * kTwoMeg);
  EXPECT_FALSE(at.progressed()) << "yielding before the first step would not end";
  while (at.level() > 1) at.next();
  at.next();
  at.next();
  ASSERT_EQ(at.frame(), kGig + kTwoMeg + 2);
  EXPECT_TRUE(at.progressed());
  at.mark_yielded();
  at.next();
  EXPECT_EQ(at.level(), 3U) << "from the root";
  EXPECT_FALSE(at.progressed());
  EXPECT_EQ(at.yielded_frame(), kGig + kTwoMeg + 2);
  while (at.level() > 1) at.next();
  EXPECT_EQ(at.frame(), kGig + kTwoMeg + 2)
      << "the frame it had reached is seen again, none is lost";
}

TEST_F(CursorTest, FindEndsAtTheLeafTheHoleOrTheLevelAsked) {
  auto found = find<Stage2>(level3, 3, kGig + kTwoMeg + 5);
  EXPECT_EQ(found.entry, level1 + 5);
  EXPECT_EQ(found.word, page(0x7000'0000));
  EXPECT_EQ(found.level, 1U);
  found = find<Stage2>(level3, 3, kGig + 77);
  EXPECT_EQ(found.level, 2U);
  EXPECT_TRUE(Stage2::is_leaf(found.word));
  found = find<Stage2>(level3, 3, 5);
  EXPECT_EQ(found.level, 3U);
  EXPECT_EQ(found.word, Stage2::kNonpresent);
  found = find<Stage2>(level3, 3, kGig + kTwoMeg, 2);
  EXPECT_EQ(found.entry, level2 + 1);
}

}  // namespace
}  // namespace stagetwo::pt

// SPDX-License-Identifier: Apache-2.0
// Pages charged to one user, by process: what one that has ended had charged goes with its place,
// wherever it or who takes its place away was killed.
#include "host/pin_ledger.h"

#include <gtest/gtest.h>

#include <random>
#include <thread>
#include <vector>

namespace stagetwo {
namespace {

using host::PinLedger;

constexpr unsigned kPlaces = 4, kMostNames = 1024;
constexpr u64 kLimit = 10;

u64 name_of(u64 number) {
  return number * 2;
}

class PinLedgerTest : public testing::Test {
 protected:
  PinLedgerTest() {
    for (auto& is : gone()) is.store(false);
  }
  static void die(u64 name) { gone()[name / 2].store(true); }

  sync::Atomic<u64> names_[kPlaces], counts_[kPlaces], common_;
  PinLedger ledger_{{names_, counts_, kPlaces, &common_},
                    [](u64 name) { return gone()[name / 2].load(); }};

 private:
  static std::vector<sync::Atomic<bool>>& gone() {
    static auto& is = *new std::vector<sync::Atomic<bool>>(kMostNames);
    return is;
  }
};

TEST_F(PinLedgerTest, ProcessesShareTheLimitAndEachPaysItsOwnBack) {
  const u64 a = name_of(1), b = name_of(2);
  const unsigned of_a = ledger_.claim(a), of_b = ledger_.claim(b);
  EXPECT_NE(of_a, of_b);
  EXPECT_EQ(ledger_.claim(a), of_a);
  EXPECT_TRUE(ledger_.charge(of_a, 6, kLimit, a));
  EXPECT_FALSE(ledger_.charge(of_b, 5, kLimit, b));
  EXPECT_TRUE(ledger_.charge(of_b, 4, kLimit, b));
  EXPECT_EQ(ledger_.charged(), 10u);
  ledger_.uncharge(of_a, 6);
  EXPECT_TRUE(ledger_.charge(of_b, 6, kLimit, b));
  EXPECT_FALSE(ledger_.charge(of_b, ~u64{0}, kLimit, b)) << "numbers that wrap";
  EXPECT_EQ(ledger_.charged(), 10u);
}

TEST_F(PinLedgerTest, WhatADeadProcessHadChargedIsFreeForTheNextOne) {
  const u64 a = name_of(1), b = name_of(2);
  const unsigned of_a = ledger_.claim(a), of_b = ledger_.claim(b);
  ASSERT_TRUE(ledger_.charge(of_a, 10, kLimit, a));
  EXPECT_FALSE(ledger_.charge(of_b, 1, kLimit, b));
  die(a);
  EXPECT_TRUE(ledger_.charge(of_b, 10, kLimit, b));
  EXPECT_EQ(ledger_.charged(), 10u);
}

TEST_F(PinLedgerTest, WhatOneThatWasKilledAskedForIsInNobodysWay) {
  const u64 a = name_of(1), b = name_of(2);
  const unsigned of_a = ledger_.claim(a), of_b = ledger_.claim(b);
  counts_[of_a].store(u64{10} << 32 | 3);
  die(a);
  EXPECT_TRUE(ledger_.charge(of_b, 10, kLimit, b));
}

TEST_F(PinLedgerTest, APlaceWhoseTakerWasKilledIsTakenByTheNextOne) {
  const u64 dead = name_of(1), taker = name_of(2), b = name_of(3);
  for (const u64 left : {u64{7}, u64{0}}) {  // before and behind its store of the count
    names_[0].store(taker | PinLedger::kTakes);
    counts_[0].store(left);
    die(dead);
    die(taker);
    const unsigned of_b = ledger_.claim(b);
    ASSERT_TRUE(ledger_.charge(of_b, 10, kLimit, b)) << left;
    EXPECT_EQ(ledger_.charged(), 10u);
    ledger_.uncharge(of_b, 10);
    ledger_.drop(b);
  }
}

TEST_F(PinLedgerTest, APlaceThatALivingOneTakesIsLeftToIt) {
  names_[0].store(name_of(2) | PinLedger::kTakes);
  counts_[0].store(7);
  const u64 b = name_of(3);
  EXPECT_FALSE(ledger_.charge(ledger_.claim(b), 4, kLimit, b));
  EXPECT_EQ(names_[0].load(), name_of(2) | PinLedger::kTakes);
}

TEST_F(PinLedgerTest, WhoBeginsAnotherProgramBeginsWithNothing) {
  const u64 a = name_of(1), b = name_of(2);
  ASSERT_TRUE(ledger_.charge(ledger_.claim(a), 6, kLimit, a));
  ASSERT_TRUE(ledger_.charge(ledger_.claim(b), 3, kLimit, b));
  ledger_.drop(a);
  EXPECT_EQ(ledger_.charged(), 3u);
  EXPECT_TRUE(ledger_.charge(ledger_.claim(a), 7, kLimit, a));
}

TEST_F(PinLedgerTest, MoreProcessesThanPlacesShareOne) {
  for (u64 i = 1; i <= kPlaces; ++i) EXPECT_LT(ledger_.claim(name_of(i)), kPlaces);
  const u64 more = name_of(kPlaces + 1);
  EXPECT_EQ(ledger_.claim(more), PinLedger::kCommon);
  EXPECT_TRUE(ledger_.charge(PinLedger::kCommon, 4, kLimit, more));
  EXPECT_FALSE(ledger_.charge(0, 7, kLimit, name_of(1))) << "the limit is of all of them";
  ledger_.uncharge(PinLedger::kCommon, 4);
  EXPECT_TRUE(ledger_.charge(0, 7, kLimit, name_of(1)));
  die(name_of(1));
  EXPECT_EQ(ledger_.claim(name_of(kPlaces + 2)), 0u) << "a dead one's is free";
  EXPECT_EQ(ledger_.charged(), 0u);
}

TEST_F(PinLedgerTest, WhoMayLockWhatTheyLikeIsNeverRefusedAndOthersAre) {
  const u64 a = name_of(1), b = name_of(2);
  const unsigned of_a = ledger_.claim(a);
  EXPECT_TRUE(ledger_.charge(of_a, 1000, PinLedger::kMost, a));
  EXPECT_FALSE(ledger_.charge(ledger_.claim(b), 1, kLimit, b));
  ledger_.uncharge(of_a, 1000);
  EXPECT_EQ(ledger_.charged(), 0u);
}

// Threads as processes that charge, pay back and die, each life under a name of its own.
TEST_F(PinLedgerTest, WhatTheLivingHaveChargedIsNeverMoreThanTheLimit) {
  constexpr unsigned kThreads = 4, kLives = 20;
  sync::Atomic<u64> held{0}, over{0};
  const auto live = [&](unsigned me) {
    std::minstd_rand random(me + 1);
    for (unsigned life = 0; life < kLives; ++life) {
      const u64 name = name_of(1 + me * kLives + life);
      const unsigned place = ledger_.claim(name);
      u64 mine = 0;
      for (int step = 0; step < 20; ++step) {
        if (const u64 pages = 1 + random() % 6; ledger_.charge(place, pages, kLimit, name)) {
          mine += pages;
          if (held.fetch_add(pages) + pages > kLimit) over.fetch_add(1);
        }
        if (random() % 2 != 0) {
          held.fetch_sub(mine);
          ledger_.uncharge(place, mine);
          mine = 0;
        }
      }
      held.fetch_sub(mine);
      // While the others' places are just being taken away there may be none.
      if (place == PinLedger::kCommon) ledger_.uncharge(place, mine);
      die(name);
    }
  };
  std::vector<std::thread> threads;
  for (unsigned i = 0; i < kThreads; ++i) threads.emplace_back(live, i);
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(over.load(), 0u);
  const u64 last = name_of(kMostNames - 1);
  EXPECT_TRUE(ledger_.charge(ledger_.claim(last), kLimit, kLimit, last));
}

}  // namespace
}  // namespace stagetwo

// SPDX-License-Identifier: Apache-2.0
// Goal: an entry is young from its use until it is aged, whatever its size, and ageing changes
// nothing else. Method: faults and walks in a small world, ageing in between.
#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "tests/support/stress_time.h"
#include "tests/support/tdp_world.h"

namespace stagetwo::test {
namespace {

struct TdpAge : ::testing::Test {
  TdpWorld world;
  MmuContext context{world.mmu};
  TdpAge() { world.add_slot(0, 4096, kWorldHva); }
  ~TdpAge() override { world.mmu.check_world(); }

  static GfnRange frame(u64 gfn) { return {Gfn(gfn), 1}; }
  bool young(u64 gfn) { return world.mmu.test_young(0, frame(gfn)); }
  bool age(u64 gfn) { return world.mmu.age(0, frame(gfn)); }
  Word entry(u64 gfn) { return TdpTestAccess::find(world.mmu, context, Gfn(gfn)).word; }
  void map(u64 gfn, unsigned level = 1) {
    ASSERT_EQ(world.fault(context, gfn, Access::kWrite, level), FaultOutcome::kFixed);
  }
};

TEST_F(TdpAge, AFrameNobodyMappedIsOld) {
  EXPECT_FALSE(young(7));
  EXPECT_FALSE(age(7));
  map(8);
  EXPECT_FALSE(young(7)) << "its neighbour";
}

TEST_F(TdpAge, AUseMakesYoungAndAgeingMakesOld) {
  map(7);
  EXPECT_TRUE(young(7));
  EXPECT_TRUE(young(7)) << "asking changes nothing";
  EXPECT_TRUE(age(7));
  EXPECT_FALSE(young(7));
  EXPECT_FALSE(age(7));
  ASSERT_EQ(world.walk(context, 7).kind, Walk::Kind::kHit) << "it is mapped as before";
  EXPECT_TRUE(young(7));
}

TEST_F(TdpAge, AgeingKeepsEveryRightAndTheDirtyBit) {
  map(7);
  const Word before = entry(7);
  ASSERT_TRUE(age(7));
  EXPECT_EQ(before & ~Format::kAccessed, entry(7));
  EXPECT_TRUE(Format::is_dirty(entry(7)));
  EXPECT_EQ(0U, world.flushes.load()) << "nobody is made to flush here";
}

TEST_F(TdpAge, ALargeEntryIsYoungAsAWhole) {
  map(512, 2);
  EXPECT_TRUE(young(512 + 100));
  EXPECT_TRUE(age(512 + 100));
  EXPECT_FALSE(young(512));
  ASSERT_EQ(world.walk(context, 1023).kind, Walk::Kind::kHit);
  EXPECT_TRUE(young(512));
}

TEST_F(TdpAge, ARangeIsYoungIfOneOfItsPagesIs) {
  for (u64 gfn = 0; gfn < 8; ++gfn) map(gfn);
  EXPECT_TRUE(world.mmu.age(0, {Gfn(0), 8}));
  EXPECT_FALSE(world.mmu.test_young(0, {Gfn(0), 8}));
  ASSERT_EQ(world.walk(context, 5).kind, Walk::Kind::kHit);
  EXPECT_TRUE(world.mmu.test_young(0, {Gfn(0), 8}));
  EXPECT_FALSE(world.mmu.test_young(0, {Gfn(0), 5}));
  EXPECT_TRUE(world.mmu.age(0, {Gfn(4), 2}));
}

TEST_F(TdpAge, AnotherAddressSpaceHasItsOwn) {
  map(7);
  EXPECT_FALSE(world.mmu.test_young(1, frame(7)));
  EXPECT_FALSE(world.mmu.age(1, frame(7)));
  EXPECT_TRUE(young(7));
}

TEST_F(TdpAge, WhatIsNotALeafStaysWhatItIs) {
  world.generation.store(3);
  ASSERT_EQ(world.fault(context, 5000, Access::kRead), FaultOutcome::kMmio);
  map(7);
  const Word mmio = entry(5000);
  EXPECT_FALSE(world.mmu.age(0, {Gfn(4096), 4096}));
  EXPECT_EQ(mmio, entry(5000));
}

// A page that is zapped and mapped again while it is aged is never brought back by the ageing.
TEST_F(TdpAge, BesideZapsAndFaultsNothingIsBroughtBack) {
  std::atomic<bool> stop{false};
  std::thread ager([&] {
    while (!stop) static_cast<void>(world.mmu.age(0, {Gfn(0), 64}));
  });
  for (u64 rounds = stress_rounds(20'000); rounds > 0; --rounds) {
    for (u64 gfn = 0; gfn < 64; ++gfn) map(gfn);
    world.zap(0, 64);
    for (u64 gfn = 0; gfn < 64; ++gfn) ASSERT_FALSE(Format::is_present(entry(gfn)));
  }
  stop = true;
  ager.join();
}

}  // namespace
}  // namespace stagetwo::test

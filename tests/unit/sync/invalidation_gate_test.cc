// SPDX-License-Identifier: Apache-2.0
// The gate's answers one by one; its races are in tests/sched/gate_test.cc.

#include "sync/invalidation_gate.h"

#include <gtest/gtest.h>

namespace stagetwo::sync {
namespace {

TEST(InvalidationGate, LetsAFaultPassThatMetNoInvalidation) {
  InvalidationGate gate;
  const auto snapshot = gate.snapshot();
  EXPECT_FALSE(gate.active());
  EXPECT_FALSE(gate.must_retry(snapshot, 0));
  EXPECT_FALSE(gate.must_retry(snapshot, ~u64{0}));
}

TEST(InvalidationGate, RefusesFramesOfARangeInProgress) {
  InvalidationGate gate;
  const auto snapshot = gate.snapshot();
  gate.begin(10, 20);
  EXPECT_TRUE(gate.active());
  EXPECT_FALSE(gate.must_retry(snapshot, 9));
  EXPECT_TRUE(gate.must_retry(snapshot, 10));
  EXPECT_TRUE(gate.must_retry(snapshot, 20));
  EXPECT_FALSE(gate.must_retry(snapshot, 21));
  gate.end(10, 20);
}

TEST(InvalidationGate, RefusesEveryFaultThatBeganBeforeAnEnd) {
  InvalidationGate gate;
  const auto before = gate.snapshot();
  gate.begin(10, 20);
  const auto during = gate.snapshot();
  gate.end();
  EXPECT_TRUE(gate.must_retry(before, 1000)) << "the sequence is global";
  EXPECT_TRUE(gate.must_retry(during, 10));
  EXPECT_FALSE(gate.must_retry(gate.snapshot(), 10));
}

TEST(InvalidationGate, KeepsOneHullOfAllRangesInProgress) {
  InvalidationGate gate;
  gate.begin(10, 20);
  gate.begin(100, 110);
  const auto snapshot = gate.snapshot();
  EXPECT_TRUE(gate.must_retry(snapshot, 50)) << "between two ranges a false retry is accepted";
  gate.end(100, 110);
  EXPECT_TRUE(gate.must_retry(gate.snapshot(), 105)) << "the hull does not shrink";
  gate.end(10, 20);
  EXPECT_FALSE(gate.must_retry(gate.snapshot(), 15));
}

TEST(InvalidationGate, BeginsANewHullWhenTheCountWasZero) {
  InvalidationGate gate;
  gate.begin(10, 20);
  gate.end(10, 20);
  gate.begin(100, 110);
  EXPECT_FALSE(gate.must_retry(gate.snapshot(), 15));
  gate.extend(5, 7);
  EXPECT_TRUE(gate.must_retry(gate.snapshot(), 15));
  EXPECT_TRUE(gate.must_retry(gate.snapshot(), 5));
  EXPECT_FALSE(gate.must_retry(gate.snapshot(), 4));
  gate.end();
}

TEST(InvalidationGate, CoversTheWholeOfTheAddressSpace) {
  InvalidationGate gate;
  gate.begin(0, ~u64{0});
  EXPECT_TRUE(gate.must_retry(gate.snapshot(), 0));
  EXPECT_TRUE(gate.must_retry(gate.snapshot(), ~u64{0}));
  gate.end(0, ~u64{0});
}

TEST(InvalidationGate, AnEndWithoutABeginIsABug) {
  EXPECT_DEATH(
      {
        InvalidationGate gate;
        gate.end();
      },
      "check failed");
}

}  // namespace
}  // namespace stagetwo::sync

// SPDX-License-Identifier: Apache-2.0
// The memory model asked directly: which values may a load return? The scheduler around it is
// tested by the litmus tests of tests/sched/model_test.cc.

#include "sync/schedule_model.h"

#include <gtest/gtest.h>

#include <memory>
#include <set>

#include "sync/schedule.h"

namespace stagetwo::sync::sched {
namespace {

constexpr auto kRelaxedOrder = std::memory_order_relaxed;
constexpr auto kAcquireOrder = std::memory_order_acquire;
constexpr auto kReleaseOrder = std::memory_order_release;
constexpr auto kSeqCstOrder = std::memory_order_seq_cst;

class ModelTest : public ::testing::Test {
 protected:
  ModelTest() { model->reset(3, true); }
  // Every value that thread 1 may read, each time from a fresh view of thread 1's present.
  std::set<u64> readable(const int* word, std::memory_order order) {
    std::set<u64> out;
    for (u64 seed = 0; seed < 200; ++seed) {
      Model copy = *model;
      Random random(seed);
      out.insert(copy.load(1, word, 0, order, random));
    }
    return out;
  }
  std::unique_ptr<Model> model = std::make_unique<Model>();
  int a = 0, b = 0;
};

TEST_F(ModelTest, ARelaxedLoadMayReadAnyWriteItHasNotPassed) {
  model->learn(&a, 0);
  model->write(0, &a, 1, kRelaxedOrder, false);
  model->write(0, &a, 2, kRelaxedOrder, false);
  EXPECT_EQ(readable(&a, kRelaxedOrder), (std::set<u64>{0, 1, 2}));
}

TEST_F(ModelTest, ALoadNeverGoesBack) {
  model->learn(&a, 0);
  model->write(0, &a, 1, kRelaxedOrder, false);
  model->read_newest(1, &a, kRelaxedOrder);
  EXPECT_EQ(readable(&a, kRelaxedOrder), (std::set<u64>{1}));
}

TEST_F(ModelTest, AnAcquiredReleaseBringsItsPast) {
  model->learn(&a, 0);
  model->learn(&b, 0);
  model->write(0, &a, 1, kRelaxedOrder, false);
  model->write(0, &b, 1, kReleaseOrder, false);
  EXPECT_EQ(readable(&a, kRelaxedOrder), (std::set<u64>{0, 1}));
  model->read_newest(1, &b, kAcquireOrder);
  EXPECT_EQ(readable(&a, kRelaxedOrder), (std::set<u64>{1}));
}

TEST_F(ModelTest, ASequentiallyConsistentLoadSeesTheLastSuchWrite) {
  model->learn(&a, 0);
  model->write(0, &a, 1, kSeqCstOrder, false);
  EXPECT_EQ(readable(&a, kSeqCstOrder), (std::set<u64>{1}));
  EXPECT_EQ(readable(&a, kAcquireOrder), (std::set<u64>{0, 1}));
}

TEST_F(ModelTest, TheBarrierReachesEverybody) {
  model->learn(&a, 0);
  model->write(0, &a, 1, kRelaxedOrder, false);
  EXPECT_FALSE(model->ordered(1, &a));
  model->barrier_everywhere();
  EXPECT_TRUE(model->ordered(1, &a));
  EXPECT_EQ(readable(&a, kRelaxedOrder), (std::set<u64>{1}));
}

TEST_F(ModelTest, WithoutWeaknessOnlyTheNewestIsRead) {
  model->reset(2, false);
  model->learn(&a, 0);
  model->write(0, &a, 1, kRelaxedOrder, false);
  EXPECT_EQ(readable(&a, kRelaxedOrder), (std::set<u64>{1}));
}

TEST_F(ModelTest, HistoryIsShortButNeverForgetsTheNewest) {
  model->learn(&a, 0);
  for (u64 n = 1; n <= 20; ++n) model->write(0, &a, n, kRelaxedOrder, false);
  const auto seen = readable(&a, kRelaxedOrder);
  EXPECT_EQ(*seen.rbegin(), 20u);
  EXPECT_GE(*seen.begin(), 20u - Model::kHistory + 1);
}

TEST(Random, IsTheSameForTheSameSeed) {
  Random x(5), y(5), z(6);
  EXPECT_EQ(x.next(), y.next());
  EXPECT_NE(x.next(), z.next());
}

TEST(Schedule, CodeOutsideARunIsNotScheduled) {
  EXPECT_FALSE(active());
}

}  // namespace
}  // namespace stagetwo::sync::sched

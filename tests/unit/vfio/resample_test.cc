// SPDX-License-Identifier: Apache-2.0
#include "vfio/resample.h"

#include <gtest/gtest.h>
#include <sys/eventfd.h>
#include <sys/wait.h>
#include <unistd.h>

namespace stagetwo::vfio {
namespace {

class ResampleTest : public testing::Test {
 protected:
  void SetUp() override {
    bell_ = eventfd(0, EFD_NONBLOCK);
    auto held = make_box<host::HeldFd>("test.bell", host::HeldFd::Child::kHasIt);
    ASSERT_TRUE(held && (*held)->hold(dup(bell_)));
    resample_ = std::move(*make_box<Resample>("test.resample", std::move(*held), count, &told_));
    ASSERT_TRUE(resample_->start());
  }
  void TearDown() override { close(bell_); }
  static void count(void* told) { static_cast<sync::Atomic<u32>*>(told)->fetch_add(1); }
  void ring() const {
    const u64 one = 1;
    ASSERT_EQ(write(bell_, &one, sizeof(one)), 8);
  }
  // Waits until so many were told: at most some seconds.
  u32 told(u32 wanted) {
    for (unsigned i = 0; told_.load() < wanted && i < 50000; ++i) usleep(100);
    return told_.load();
  }
  bool is_rung() const {
    u64 value = 0;
    return read(bell_, &value, sizeof(value)) == 8;
  }

  int bell_ = -1;
  sync::Atomic<u32> told_{0};
  Box<Resample> resample_;
};

TEST_F(ResampleTest, TellsOnceForEachArming) {
  ring();
  resample_->arm();  // what was written before it means nothing
  for (u32 n = 1; n < 20; ++n) {
    ring();
    ASSERT_EQ(told(n), n);
    resample_->arm();
  }
  EXPECT_EQ(told_.load(), 19u);
}

TEST_F(ResampleTest, WhatWaitsCountsWhereItIsToldSo) {
  ring();
  resample_->arm(false);
  EXPECT_EQ(told(1), 1u);
}

TEST_F(ResampleTest, StoppedItNeitherTellsNorReads) {
  resample_->arm();
  resample_->stop();
  ring();
  usleep(5000);
  EXPECT_EQ(told_.load(), 0u);
  EXPECT_TRUE(is_rung());
  resample_->stop();
}

TEST_F(ResampleTest, AChildMakesItsOwnWhenItArms) {
  const pid_t child = fork();
  if (child == 0) {
    resample_->arm();
    ring();
    const bool one = told(1) == 1;
    resample_->stop();
    _exit(one ? 0 : 1);
  }
  int status = -1;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  EXPECT_EQ(told_.load(), 0u);
}

}  // namespace
}  // namespace stagetwo::vfio

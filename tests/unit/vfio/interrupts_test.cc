// SPDX-License-Identifier: Apache-2.0
#include "vfio/interrupts.h"

#include <gtest/gtest.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <thread>
#include <vector>

namespace stagetwo::vfio {
namespace {

class InterruptsTest : public testing::Test {
 protected:
  void SetUp() override {
    shape_.vectors[kIntxIndex] = shape_.vectors[kMsiIndex] = 1;
    shape_.vectors[kMsixIndex] = 3;
    for (int& bell : bells_) bell = eventfd(0, EFD_NONBLOCK);
  }
  void TearDown() override {
    for (const int bell : bells_) close(bell);
  }
  int set(u32 flags, u32 index, u32 start, u32 count, std::vector<s32> fds = {}) {
    const auto* const data = reinterpret_cast<const u8*>(fds.data());
    const auto done =
        interrupts_.set(shape_, {flags, index, start, count, {data, fds.size() * sizeof(s32)}});
    return done ? 0 : to_int(done.error());
  }
  int listen(u32 index, int fd, u32 start = 0) {
    return set(IrqSet::kEventfds | IrqSet::kTrigger, index, start, 1, {fd});
  }
  int plain(u32 action, u32 index, u32 count = 1) {
    return set(IrqSet::kNoData | action, index, 0, count);
  }
  int unmask_by(int fd) { return set(IrqSet::kEventfds | IrqSet::kUnmask, kIntxIndex, 0, 1, {fd}); }
  int bools(u32 action, u32 index, std::vector<u8> values) {
    const auto done = interrupts_.set(
        shape_, {IrqSet::kBools | action, index, 0, static_cast<u32>(values.size()), values});
    return done ? 0 : to_int(done.error());
  }
  void write_to(unsigned bell) {
    const u64 one = 1;
    ASSERT_EQ(write(bells_[bell], &one, sizeof(one)), 8);
  }
  // Waits for one: at most some seconds.
  u64 wait_ring(unsigned bell = 0) {
    for (unsigned i = 0; i < 50000; ++i) {
      if (const u64 count = rings(bell); count != 0) return count;
      usleep(100);
    }
    return 0;
  }
  u64 rings(unsigned bell = 0) {
    u64 count = 0;
    return read(bells_[bell], &count, sizeof(count)) == sizeof(count) ? count : 0;
  }

  Shape shape_;
  Interrupts interrupts_;
  int bells_[3];
};

TEST_F(InterruptsTest, ALineRingsOnceAndIsMasked) {
  ASSERT_EQ(listen(kIntxIndex, bells_[0]), 0);
  interrupts_.set_line(true);
  interrupts_.set_line(false);
  interrupts_.set_line(true);
  EXPECT_EQ(rings(), 1u);
  EXPECT_EQ(plain(IrqSet::kUnmask, kIntxIndex), 0);  // the line is still up
  EXPECT_EQ(rings(), 1u);
  interrupts_.set_line(false);
  EXPECT_EQ(plain(IrqSet::kUnmask, kIntxIndex), 0);
  EXPECT_EQ(rings(), 0u);
}

TEST_F(InterruptsTest, AMaskedLineIsSilent) {
  ASSERT_EQ(listen(kIntxIndex, bells_[0]), 0);
  ASSERT_EQ(plain(IrqSet::kMask, kIntxIndex), 0);
  interrupts_.set_line(true);
  EXPECT_EQ(rings(), 0u);
}

TEST_F(InterruptsTest, EachRiseIsAMessage) {
  ASSERT_EQ(listen(kMsiIndex, bells_[0]), 0);
  for (int i = 0; i < 3; ++i) {
    interrupts_.set_line(true);
    interrupts_.set_line(true);
    interrupts_.set_line(false);
  }
  EXPECT_EQ(rings(), 3u);
}

TEST_F(InterruptsTest, VectorsRingTheirOwnBells) {
  ASSERT_EQ(set(IrqSet::kEventfds | IrqSet::kTrigger, kMsixIndex, 1, 2, {bells_[1], bells_[2]}), 0);
  interrupts_.raise(0);
  interrupts_.raise(2);
  EXPECT_EQ(rings(1), 0u);
  EXPECT_EQ(rings(2), 1u);
  EXPECT_EQ(listen(kMsixIndex, -1, 2), 0);
  interrupts_.raise(2);
  EXPECT_EQ(rings(2), 0u);
  interrupts_.raise(1);
  EXPECT_EQ(rings(1), 1u);
}

// As eventfd_signal: a device never waits for who reads.
TEST_F(InterruptsTest, ACounterThatIsFullHasRungAndNobodyWaitsForRoom) {
  shape_.vectors[kRequestIndex] = 1;
  for (const int flags : {0, int{EFD_SEMAPHORE}, int{EFD_NONBLOCK}}) {
    const int bell = eventfd(0, flags);
    const u64 full = ~u64{1};
    ASSERT_EQ(write(bell, &full, sizeof(full)), 8);
    EXPECT_EQ(listen(kMsiIndex, bell), 0);
    EXPECT_EQ(listen(kRequestIndex, bell), 0);
    std::atomic<bool> done = false;
    std::thread device([&] {
      interrupts_.raise(0);
      EXPECT_EQ(plain(IrqSet::kTrigger, kMsiIndex), 0);
      interrupts_.ask_for_release();
      done = true;
    });
    for (unsigned i = 0; i < 20000 && !done; ++i) usleep(100);
    EXPECT_TRUE(done) << "it waits";
    u64 count = 0;
    while (!done) {  // makes room, so that the thread ends
      EXPECT_EQ(read(bell, &count, sizeof(count)), 8);
      usleep(10'000);
    }
    device.join();
    EXPECT_EQ(read(bell, &count, sizeof(count)), 8);
    EXPECT_EQ(count, (flags & EFD_SEMAPHORE) != 0 ? 1 : full) << "full, and no more";
    interrupts_.raise(0);
    EXPECT_EQ(listen(kMsiIndex, -1), 0);
    EXPECT_EQ(listen(kRequestIndex, -1), 0);
    close(bell);
  }
}

// The number the engine has for an eventfd is none of the client's: what `ulimit -n` allows it, and
// how much of that it has open, is not asked.
TEST_F(InterruptsTest, ALowLimitOfDescriptorsIsNoHindrance) {
  struct rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &before), 0);
  for (rlim_t few : {1024u, 256u, 64u}) {
    few = std::min(few, before.rlim_max);  // where an administrator allows less
    const struct rlimit lower{few, before.rlim_max};
    ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &lower), 0);
    EXPECT_EQ(listen(kMsiIndex, bells_[0]), 0) << few;
    interrupts_.raise(0);
    EXPECT_EQ(rings(), 1u) << few;
  }
  std::vector<int> taken;
  for (int fd = dup(bells_[1]); fd >= 0; fd = dup(bells_[1])) taken.push_back(fd);
  EXPECT_EQ(listen(kMsiIndex, bells_[2]), 0);
  interrupts_.raise(0);
  EXPECT_EQ(rings(2), 1u);
  for (const int fd : taken) close(fd);
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &before), 0);
}

TEST_F(InterruptsTest, TheClientMayCloseItsOwn) {
  const int copy = dup(bells_[0]);
  ASSERT_EQ(listen(kMsiIndex, copy), 0);
  close(copy);
  interrupts_.raise(0);
  EXPECT_EQ(rings(), 1u);
}

TEST_F(InterruptsTest, ALineThatIsOffSaysNothingAndMessagesGoOn) {
  ASSERT_EQ(listen(kIntxIndex, bells_[0]), 0);
  interrupts_.set_line(true, true);
  EXPECT_EQ(rings(), 0u);
  interrupts_.set_line(true, false);
  EXPECT_EQ(rings(), 1u) << "it is still up";
  interrupts_.set_line(false, true);
  ASSERT_EQ(plain(IrqSet::kTrigger, kIntxIndex, 0), 0);
  ASSERT_EQ(listen(kMsiIndex, bells_[0]), 0);
  interrupts_.set_line(true, true);
  EXPECT_EQ(rings(), 1u);
}

// mtty.c: a line that its client rings is masked, and silent while it is; vfio-pci only rings.
TEST_F(InterruptsTest, AClientsOwnRingOfALineIsTheDriversAffair) {
  for (const bool function : {false, true}) {
    shape_.function = function;
    ASSERT_EQ(listen(kIntxIndex, bells_[0]), 0);
    EXPECT_EQ(plain(IrqSet::kTrigger, kIntxIndex), 0);
    EXPECT_EQ(plain(IrqSet::kTrigger, kIntxIndex), 0);
    EXPECT_EQ(rings(), function ? 2u : 1u);
    EXPECT_EQ(plain(IrqSet::kUnmask, kIntxIndex), 0);
    EXPECT_EQ(plain(IrqSet::kTrigger, kIntxIndex), 0);
    EXPECT_EQ(rings(), 1u);
    EXPECT_EQ(plain(IrqSet::kTrigger, kIntxIndex, 0), 0);
  }
}

// vfio_pci_intrs.c: -1 takes the eventfd out, what is below it changes nothing.
TEST_F(InterruptsTest, OfTheFunctionsOwnOnlyMinusOneTakesItOut) {
  shape_.function = true;
  shape_.vectors[kRequestIndex] = 1;
  ASSERT_EQ(listen(kRequestIndex, bells_[0]), 0);
  EXPECT_EQ(listen(kRequestIndex, -2), 0);
  EXPECT_EQ(plain(IrqSet::kTrigger, kRequestIndex), 0);
  EXPECT_EQ(rings(), 1u);
  EXPECT_EQ(listen(kRequestIndex, -1), 0);
  EXPECT_EQ(plain(IrqSet::kTrigger, kRequestIndex), EINVAL);
}

TEST_F(InterruptsTest, AClientMayTriggerThemItself) {
  ASSERT_EQ(listen(kMsiIndex, bells_[0]), 0);
  EXPECT_EQ(plain(IrqSet::kTrigger, kMsiIndex), 0);
  EXPECT_EQ(rings(), 1u);
}

TEST_F(InterruptsTest, OneIndexIsInUseAtATime) {
  ASSERT_EQ(listen(kIntxIndex, bells_[0]), 0);
  EXPECT_EQ(listen(kMsiIndex, bells_[1]), EINVAL);
  EXPECT_EQ(plain(IrqSet::kTrigger, kIntxIndex, 0), 0);  // all of them off
  EXPECT_EQ(listen(kMsiIndex, bells_[1]), 0);
  interrupts_.raise(0);
  EXPECT_EQ(rings(0), 0u);
  EXPECT_EQ(rings(1), 1u);
}

TEST_F(InterruptsTest, OtherRequestsAreRefusedAndChangeNothing) {
  int pipes[2];
  ASSERT_EQ(pipe(pipes), 0);
  EXPECT_EQ(listen(kMsiIndex, pipes[0]), EINVAL);
  EXPECT_EQ(listen(kMsiIndex, 1 << 20), EBADF);
  EXPECT_EQ(listen(4, bells_[0]), ENOTTY);  // there is no such index
  EXPECT_EQ(plain(IrqSet::kTrigger, kMsiIndex), EINVAL);
  EXPECT_EQ(plain(IrqSet::kMask, kIntxIndex), EINVAL);
  EXPECT_EQ(plain(IrqSet::kMask, kMsiIndex), ENOTTY);
  ASSERT_EQ(listen(kMsiIndex, bells_[0]), 0);
  EXPECT_EQ(listen(kMsiIndex, pipes[0]), EINVAL);
  interrupts_.raise(0);
  EXPECT_EQ(rings(), 1u);
  ASSERT_EQ(plain(IrqSet::kTrigger, kMsiIndex, 0), 0);
  EXPECT_EQ(unmask_by(bells_[1]), EINVAL) << "no line in use";
  ASSERT_EQ(listen(kIntxIndex, bells_[0]), 0);
  EXPECT_EQ(set(IrqSet::kEventfds | IrqSet::kMask, kIntxIndex, 0, 1, {bells_[1]}), ENOTTY);
  EXPECT_EQ(unmask_by(pipes[0]), EINVAL);
  EXPECT_EQ(unmask_by(1 << 20), EBADF);
  EXPECT_EQ(set(IrqSet::kNoData, kIntxIndex, 0, 1), ENOTTY) << "no action";
  close(pipes[0]);
  close(pipes[1]);
}

TEST_F(InterruptsTest, AnEventfdUnmasksTheLine) {
  ASSERT_EQ(listen(kIntxIndex, bells_[0]), 0);
  ASSERT_EQ(unmask_by(bells_[1]), 0);
  EXPECT_EQ(unmask_by(bells_[2]), EBUSY) << "there is one";
  write_to(1);  // before it is masked: it means nothing
  for (unsigned i = 0; i < 20; ++i) {
    interrupts_.set_line(true);
    ASSERT_EQ(rings(), 1u) << i;
    write_to(1);  // the line is still up
    ASSERT_EQ(wait_ring(), 1u) << i;
    interrupts_.set_line(false);
    ASSERT_EQ(plain(IrqSet::kUnmask, kIntxIndex), 0);
  }
  EXPECT_EQ(unmask_by(-1), 0);
  interrupts_.set_line(true);
  ASSERT_EQ(rings(), 1u);
  write_to(1);
  usleep(10000);
  EXPECT_EQ(rings(), 0u) << "nobody listens any more";
  EXPECT_EQ(rings(1), 1u) << "nor reads it";
}

TEST_F(InterruptsTest, WhatWaitsOnTheEventfdOfAMaskedLineCounts) {
  ASSERT_EQ(listen(kIntxIndex, bells_[0]), 0);
  interrupts_.set_line(true);
  ASSERT_EQ(rings(), 1u);
  write_to(1);
  ASSERT_EQ(unmask_by(bells_[1]), 0);
  EXPECT_EQ(wait_ring(), 1u);
  // All of them off takes it out, too.
  ASSERT_EQ(plain(IrqSet::kTrigger, kIntxIndex, 0), 0);
  write_to(1);
  usleep(5000);
  EXPECT_EQ(rings(1), 1u);
}

TEST_F(InterruptsTest, TheClientsOwnRingsMaskNothing) {
  shape_.function = true;
  ASSERT_EQ(listen(kIntxIndex, bells_[0]), 0);
  EXPECT_EQ(plain(IrqSet::kTrigger, kIntxIndex), 0);
  EXPECT_EQ(bools(IrqSet::kTrigger, kIntxIndex, {1}), 0);
  EXPECT_EQ(bools(IrqSet::kTrigger, kIntxIndex, {0}), 0);
  EXPECT_EQ(rings(), 2u);
  EXPECT_EQ(bools(IrqSet::kMask, kIntxIndex, {0}), 0);
  interrupts_.set_line(true);
  EXPECT_EQ(rings(), 1u) << "it was not masked";
  EXPECT_EQ(bools(IrqSet::kUnmask, kIntxIndex, {0}), 0);
  EXPECT_EQ(rings(), 0u);
  EXPECT_EQ(plain(IrqSet::kTrigger, kIntxIndex), 0);
  EXPECT_EQ(rings(), 1u) << "masked or not";
  EXPECT_EQ(bools(IrqSet::kUnmask, kIntxIndex, {1}), 0);
  EXPECT_EQ(rings(), 1u);
}

TEST_F(InterruptsTest, EachVectorIsTriggeredByItsOwnBool) {
  ASSERT_EQ(set(IrqSet::kEventfds | IrqSet::kTrigger, kMsixIndex, 0, 3,
                {bells_[0], bells_[1], bells_[2]}),
            0);
  EXPECT_EQ(bools(IrqSet::kTrigger, kMsixIndex, {1, 0, 1}), 0);
  EXPECT_EQ(rings(0), 1u);
  EXPECT_EQ(rings(1), 0u);
  EXPECT_EQ(rings(2), 1u);
}

// A function's index is in use until it is turned off, eventfds or not; a mediated device's until
// its last eventfd is out.
TEST_F(InterruptsTest, WithoutEventfdsAFunctionsIndexIsStillInUse) {
  ASSERT_EQ(listen(kMsiIndex, bells_[0]), 0);
  ASSERT_EQ(listen(kMsiIndex, -1), 0);
  EXPECT_EQ(listen(kIntxIndex, bells_[0]), 0);
  EXPECT_EQ(set(IrqSet::kBools | IrqSet::kTrigger, kIntxIndex, 0, 0), EINVAL);
  ASSERT_EQ(plain(IrqSet::kTrigger, kIntxIndex, 0), 0);
  shape_.function = true;
  ASSERT_EQ(listen(kMsiIndex, bells_[0]), 0);
  ASSERT_EQ(listen(kMsiIndex, -1), 0);
  EXPECT_EQ(set(IrqSet::kBools | IrqSet::kTrigger, kMsiIndex, 0, 0), 0);
  EXPECT_EQ(listen(kIntxIndex, bells_[0]), EINVAL);
  EXPECT_EQ(plain(IrqSet::kTrigger, kMsiIndex, 0), 0);
  EXPECT_EQ(listen(kIntxIndex, bells_[0]), 0);
}

// As vfio_pci_intrs.c: beside whatever index is in use, one eventfd, or none.
TEST_F(InterruptsTest, TheFunctionsOwnAreApart) {
  shape_.vectors[kRequestIndex] = 1;
  ASSERT_EQ(listen(kMsixIndex, bells_[0]), 0);
  EXPECT_EQ(plain(IrqSet::kTrigger, kRequestIndex), EINVAL) << "nobody listens";
  ASSERT_EQ(listen(kRequestIndex, bells_[1]), 0);
  EXPECT_EQ(plain(IrqSet::kTrigger, kRequestIndex), 0);
  EXPECT_EQ(rings(1), 1u);
  interrupts_.raise(0);
  EXPECT_EQ(rings(0), 1u);
  EXPECT_EQ(plain(IrqSet::kTrigger, kRequestIndex, 0), 0);
  EXPECT_EQ(plain(IrqSet::kTrigger, kRequestIndex, 0), EINVAL) << "it is out already";
  EXPECT_EQ(plain(IrqSet::kMask, kRequestIndex), ENOTTY);
  EXPECT_EQ(set(IrqSet::kEventfds | IrqSet::kTrigger, kRequestIndex, 0, 2, {bells_[1], bells_[2]}),
            EINVAL);
  EXPECT_EQ(listen(kRequestIndex, 0), EINVAL) << "no eventfd";
  EXPECT_EQ(listen(kErrorIndex, bells_[1]), ENOTTY) << "it has none";
}

}  // namespace
}  // namespace stagetwo::vfio

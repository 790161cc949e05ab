// SPDX-License-Identifier: Apache-2.0
// Descriptors come as they were sent, in order, by either way; and what was discarded does not.
#include "vfio/work_queue.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <thread>
#include <vector>

#include "base/process_page.h"
#include "vfio/dsa_format.h"

namespace stagetwo::vfio {
namespace {

class WorkQueueTest : public testing::Test {
 protected:
  static Descriptor numbered(u64 number) {
    Descriptor d{};
    d.completion = number * 32;
    return d;
  }
  RingHead& head() { return *reinterpret_cast<RingHead*>(ring_.data()); }
  // As a client does that has the ring mapped.
  void send(u64 first, u64 count) {
    auto* const slots = reinterpret_cast<Descriptor*>(ring_.data() + kRingAt);
    for (u64 i = first; i < first + count; ++i) slots[i % kRingSlots] = numbered(i);
    __atomic_store_n(&head().tail, static_cast<u32>(first + count), __ATOMIC_RELEASE);
  }
  bool put(const Descriptor& descriptor) { return queue_.put(&descriptor); }
  // The numbers of what is taken at once.
  std::vector<u64> taken() {
    Descriptor list[WorkQueue::kTaken];
    const u32 some = queue_.take(list, &overrun_);
    std::vector<u64> numbers;
    for (u32 i = 0; i < some; ++i) numbers.push_back(list[i].completion / 32);
    return numbers;
  }

  std::vector<u8> ring_ = std::vector<u8>(kRingBytes);
  QueueShare share_{sync::Atomic<u32>(process_stamp()), {}, {}, {}, {}, {}};
  WorkQueue queue_{ring_.data(), share_};
  bool overrun_ = false;
};

TEST_F(WorkQueueTest, ThePortalHasADescriptorWithTheLastBytesOfItsSlot) {
  const Descriptor one = numbered(1), other = numbered(2);
  const auto* const from = reinterpret_cast<const u8*>(&one);
  const auto* const of_other = reinterpret_cast<const u8*>(&other);
  for (u64 at = 0; at < 60; at += 4) {
    EXPECT_EQ(queue_.write_portal(at, {from + at, 4}), nullptr);
    EXPECT_EQ(queue_.write_portal(64 + at, {of_other + at, 4}), nullptr) << "two threads at once";
  }
  const void* whole = queue_.write_portal(124, {of_other + 60, 4});
  ASSERT_NE(whole, nullptr);
  EXPECT_EQ(static_cast<const Descriptor*>(whole)->completion, 64u);
  whole = queue_.write_portal(60, {from + 60, 4});
  ASSERT_NE(whole, nullptr);
  EXPECT_EQ(static_cast<const Descriptor*>(whole)->completion, 32u);
}

TEST_F(WorkQueueTest, SoManyWaitAsThereArePlaces) {
  for (u64 i = 0; i < WorkQueue::kPlaces; ++i) EXPECT_TRUE(put(numbered(i)));
  EXPECT_FALSE(put(numbered(99)));
  u64 next = 0, sent = WorkQueue::kPlaces;
  while (next < 3 * WorkQueue::kPlaces) {
    const auto some = taken();
    ASSERT_FALSE(some.empty());
    for (const u64 number : some) EXPECT_EQ(number, next++);
    for (u64 i = 0; i < some.size(); ++i) EXPECT_TRUE(put(numbered(sent++)));
  }
}

TEST_F(WorkQueueTest, TheRingIsTakenInOrderAroundItsEnd) {
  u64 sent = 0, next = 0;
  while (next < 5 * kRingSlots) {
    if (sent - next < kRingSlots / 2) send(sent, 300), sent += 300;
    const auto some = taken();
    ASSERT_FALSE(some.empty());
    for (const u64 number : some) ASSERT_EQ(number, next++);
    EXPECT_EQ(head().head, static_cast<u32>(next));
  }
  EXPECT_FALSE(overrun_);
}

TEST_F(WorkQueueTest, ATailThatIsTooFarIsMovedBackAndSaid) {
  head().tail = kRingSlots + 1;
  EXPECT_TRUE(taken().empty());
  EXPECT_TRUE(overrun_);
  EXPECT_EQ(head().tail, 0u);
  overrun_ = false;
  send(0, 2);
  EXPECT_EQ(taken(), (std::vector<u64>{0, 1}));
  EXPECT_FALSE(overrun_);
}

TEST_F(WorkQueueTest, WhatWasDiscardedIsNotTaken) {
  EXPECT_TRUE(put(numbered(1)));
  send(0, 5);
  queue_.discard();
  EXPECT_TRUE(taken().empty());
  EXPECT_EQ(head().head, 5u);
  send(5, 1);
  EXPECT_EQ(taken(), std::vector<u64>{5});
  queue_.reset();
  EXPECT_EQ(head().tail, 0u);
  EXPECT_NE(head().asleep, 0u) << "a client writes the doorbell";
  send(0, 1);
  EXPECT_EQ(taken(), std::vector<u64>{0});
}

TEST_F(WorkQueueTest, OneProcessServesTheRing) {
  send(0, 3);
  share_.server.store(process_stamp() + 1);
  EXPECT_TRUE(taken().empty());
  queue_.say_asleep(true);
  EXPECT_EQ(head().asleep, 0u) << "that is the other's to say";
  EXPECT_TRUE(put(numbered(7)));
  EXPECT_EQ(taken(), std::vector<u64>{7}) << "the portal is each process's own";
  share_.server.store(process_stamp());
  EXPECT_EQ(taken().size(), 3u);
}

TEST_F(WorkQueueTest, AClientMayWriteWhileAThreadTakes) {
  constexpr u64 kCount = 20'000;
  std::thread client([&] {
    for (u64 i = 0; i < kCount; ++i) {
      while (!put(numbered(i))) std::this_thread::yield();
    }
  });
  for (u64 next = 0; next < kCount;) {
    for (const u64 number : taken()) EXPECT_EQ(number, next++);
  }
  client.join();
}

// ---- of several processes

// Its parent stands for another one.
TEST_F(WorkQueueTest, WhoForksLeavesWhatIsInTheRingToItsServer) {
  queue_.first_user();
  share_.server.store(static_cast<u32>(getppid()));
  share_.users[1].store(static_cast<u32>(getppid()));
  send(0, 3);
  queue_.after_fork();
  EXPECT_EQ(share_.limit.load(), 3u);
  EXPECT_EQ(head().asleep, 1u) << "everybody rings";
  EXPECT_TRUE(taken().empty());
  queue_.say_asleep(false);
  EXPECT_EQ(head().asleep, 1u);
}

TEST_F(WorkQueueTest, OfSeveralEachTakesWhatItRangFor) {
  queue_.first_user();
  share_.users[1].store(static_cast<u32>(getppid()));
  queue_.after_fork();
  send(0, 3);
  EXPECT_TRUE(taken().empty()) << "nobody rang here";
  queue_.rung();
  send(3, 2);
  EXPECT_EQ(taken(), (std::vector<u64>{0, 1, 2}));
  EXPECT_TRUE(taken().empty());
  head().head = 4;  // by the other
  queue_.rung();
  EXPECT_EQ(taken(), std::vector<u64>{4});
}

TEST_F(WorkQueueTest, OfSeveralTheServerTakesWhatWasThere) {
  queue_.first_user();
  send(0, 2);
  share_.limit.store(2);
  share_.several.store(1);
  send(2, 1);
  EXPECT_EQ(taken(), (std::vector<u64>{0, 1}));
  EXPECT_TRUE(taken().empty()) << "of another";
}

TEST_F(WorkQueueTest, ADoorbellOfBeforeADiscardIsNone) {
  queue_.first_user();
  share_.users[1].store(static_cast<u32>(getppid()));
  queue_.after_fork();
  send(0, 3);
  queue_.rung();
  queue_.discard();
  send(3, 1);
  EXPECT_TRUE(taken().empty());
  queue_.rung();
  EXPECT_EQ(taken(), std::vector<u64>{3});
}

TEST_F(WorkQueueTest, WhoIsLeftAloneServesAllOfIt) {
  const pid_t child = fork();
  if (child == 0) _exit(0);
  queue_.first_user();
  share_.users[1].store(static_cast<u32>(child));
  share_.users[2].store(static_cast<u32>(getppid()));
  queue_.after_fork();
  queue_.say_asleep(true);
  EXPECT_EQ(share_.several.load(), 1u);
  waitpid(child, nullptr, 0);
  share_.users[2].store(0);
  share_.server.store(static_cast<u32>(child));
  share_.taking.store(static_cast<u32>(child));  // it died there
  queue_.say_asleep(true);
  EXPECT_EQ(share_.several.load(), 0u);
  send(0, 2);
  EXPECT_EQ(taken(), (std::vector<u64>{0, 1}));
  queue_.say_asleep(false);
  EXPECT_EQ(head().asleep, 0u);
}

}  // namespace
}  // namespace stagetwo::vfio

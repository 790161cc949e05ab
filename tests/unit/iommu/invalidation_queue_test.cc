// SPDX-License-Identifier: Apache-2.0
// Descriptors come out as they went in, in order, or as "everything". With threads: tests/sched.
#include "iommu/invalidation_queue.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <memory>
#include <thread>
#include <vector>

#include "iommu/other_process.h"

namespace stagetwo::iommu {
namespace {

class QueueTest : public testing::Test {
 protected:
  // What `line` is told: the PASID of each, -1 for everything.
  std::vector<s64> heed(DmaLine& line) {
    std::vector<s64> out;
    queue_->heed(line, [&](const Invalidation* one) {
      out.push_back(one == nullptr ? -1 : s64{one->pasid()});
    });
    return out;
  }
  void post(u32 pasid) { queue_->post(forget_pasid_entry(9, pasid)); }

  std::unique_ptr<InvalidationQueue> queue_ = std::make_unique<InvalidationQueue>();
};

TEST_F(QueueTest, EachLineHeedsWhatCameAfterIt) {
  EXPECT_FALSE(queue_->has_lines());
  post(1);
  DmaLine* const a = queue_->add(0);
  post(2);
  DmaLine* const b = queue_->add(0);
  post(3);
  EXPECT_TRUE(queue_->owes(*a));
  EXPECT_EQ(heed(*a), (std::vector<s64>{2, 3}));
  EXPECT_FALSE(queue_->owes(*a));
  EXPECT_EQ(heed(*a), std::vector<s64>{});
  EXPECT_EQ(heed(*b), std::vector<s64>{3});
  queue_->remove(a);
  queue_->remove(b);
  EXPECT_FALSE(queue_->has_lines());
}

TEST_F(QueueTest, WhatWasOverwrittenIsEverything) {
  DmaLine* const line = queue_->add(0);
  for (u32 i = 0; i < InvalidationQueue::kLength - 1; ++i) post(i);
  EXPECT_EQ(heed(*line).size(), InvalidationQueue::kLength - 1);
  for (u32 i = 0; i < InvalidationQueue::kLength; ++i) post(i);
  EXPECT_EQ(heed(*line), std::vector<s64>{-1});
  post(7);
  EXPECT_EQ(heed(*line), std::vector<s64>{7});
  queue_->remove(line);
}

TEST_F(QueueTest, PlacesRunOut) {
  std::vector<DmaLine*> lines;
  for (unsigned i = 0; i < InvalidationQueue::kLines; ++i) lines.push_back(queue_->add(0));
  EXPECT_EQ(queue_->add(0), nullptr);
  queue_->remove(lines[3]);
  EXPECT_EQ(queue_->add(0), lines[3]);
}

TEST_F(QueueTest, AThreadThatDiedInsideIsNotWaitedFor) {
  DmaLine* const line = queue_->add(0);
  std::thread([&] { queue_->enter(*line, static_cast<u32>(gettid())); }).join();
  post(1);
  queue_->wait();
  queue_->remove(line);
}

// Its number says nothing here, where no thread has it.
TEST_F(QueueTest, AThreadOfAnotherPidNamespaceIsWaitedFor) {
  DmaLine* const line = queue_->add(0, pid_space() + 1);
  std::thread([&] { queue_->enter(*line, static_cast<u32>(gettid())); }).join();
  post(1);
  std::atomic<bool> waited{false};
  std::thread waiter([&] {
    queue_->wait();
    waited = true;
  });
  ::usleep(100'000);
  EXPECT_FALSE(waited) << "it was taken for dead";
  queue_->leave(*line);
  waiter.join();
  queue_->remove(line);
}

TEST_F(QueueTest, ALineOutsideIsNotWaitedFor) {
  DmaLine* const line = queue_->add(0);
  post(1);
  queue_->wait();
  EXPECT_TRUE(queue_->owes(*line));
  queue_->remove(line);
}

// 6.5.2 of the specification, bit by bit.
TEST(Descriptors, StandAsTheSpecificationHasThem) {
  EXPECT_EQ(forget_domain(0x1234).low, 0x1234'0022u);
  EXPECT_EQ(forget_pages(0x1234, block_of(0x5000, 0x6fff)).low, 0x1234'0032u);
  EXPECT_EQ(forget_pages(0x1234, block_of(0x5000, 0x6fff)).high, 0x4002u);
  EXPECT_EQ(forget_pasid_pages(1, 0xabcde, {}).low, 0xabcde'0001'0026u);
  EXPECT_EQ(forget_pasid_pages(1, 0xabcde, block_of(0, 0xfff)).low, 0xabcde'0001'0036u);
  EXPECT_EQ(forget_pasid_entry(2, 0xabcde).low, 0xabcde'0002'0017u);
  EXPECT_EQ(forget_device_pages(SourceId{0x77}, 0, block_of(0x8000, 0x8fff)).low, 0x77'0000'0003u);
  EXPECT_EQ(forget_device_pages(SourceId{0x77}, 0, block_of(0x8000, 0x8fff)).high, 0x8000u);
  EXPECT_EQ(forget_device_pages(SourceId{0x77}, 0, block_of(0x8000, 0x9fff)).high, 0x8001u);
  EXPECT_EQ(forget_device_pages(SourceId{0x77}, 5, block_of(0x8000, 0xbfff)).low, 0x5'0077'0008u);
  EXPECT_EQ(forget_device_pages(SourceId{0x77}, 5, block_of(0x8000, 0xbfff)).high, 0x9800u);
}

}  // namespace
}  // namespace stagetwo::iommu

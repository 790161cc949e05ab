// SPDX-License-Identifier: Apache-2.0
// Event queues: order, numbers, and the mark of what was lost.
#include "iommu/event_queue.h"

#include <climits>

#include "base/failpoint.h"
#include "tests/unit/iommu/viommu_world.h"

namespace stagetwo::iommu {
namespace {

class EventQueues : public ViommuWorld {
 protected:
  int report(Locked& locked, u32 word, u32 type = 3) {
    return error_of(report_event(locked, viommu(locked), type, &word, sizeof(word)));
  }
  static std::pair<u32, u32> next(Locked& locked, EventQueue& queue) {
    const FirstEvent event = first_event(queue);
    EXPECT_TRUE(event.any);
    const u32 word = event.lost ? 0 : *reinterpret_cast<const u32*>(event.data);
    const std::pair out{event.sequence, word};
    drop_first(locked, queue);
    return out;
  }
  using Told = std::pair<u32, u32>;  // number and word; of the mark 0
};

TEST_F(EventQueues, KeepTheOrderAndCountOn) {
  Locked locked(*context_);
  EventQueue* const queue = *make_event_queue(locked, viommu(locked), 3, 2);
  EXPECT_EQ(report(locked, 10, 4), EOPNOTSUPP);
  for (const u32 word : {10u, 11u, 12u, 13u}) EXPECT_EQ(report(locked, word), 0);
  EXPECT_EQ(next(locked, *queue), Told(0, 10));
  EXPECT_EQ(next(locked, *queue), Told(1, 11));
  EXPECT_EQ(next(locked, *queue), Told(3, 0)) << "the mark has the last number";
  EXPECT_FALSE(first_event(*queue).any);
  queue->sequence = INT_MAX;
  EXPECT_EQ(report(locked, 14), 0);
  EXPECT_EQ(report(locked, 15), 0);
  EXPECT_EQ(next(locked, *queue), Told(INT_MAX, 14));
  EXPECT_EQ(next(locked, *queue), Told(0, 15)) << "numbers begin again";
  destroy_event_queue(locked, queue);
}

TEST_F(EventQueues, WhatHasNoMemoryIsMarked) {
  Locked locked(*context_);
  EventQueue* const queue = *make_event_queue(locked, viommu(locked), 3, 2);
  failpoint::arm("iommu.event", 1);
  EXPECT_EQ(report(locked, 10), ENOMEM);
  failpoint::disarm();
  EXPECT_TRUE(first_event(*queue).lost);
  EXPECT_EQ(report(locked, 11), 0);
  EXPECT_EQ(next(locked, *queue), Told(1, 11)) << "it takes the mark's place";
  EXPECT_EQ(report(locked, 12), 0);
  destroy_event_queue(locked, queue);  // with one in it
  EXPECT_EQ(viommu(locked).object.users, 0u);
}

TEST_F(EventQueues, AreTakenOutFromBetweenOthers) {
  Locked locked(*context_);
  EventQueue* queues[3];
  for (u32 i = 0; i < 3; ++i) queues[i] = *make_event_queue(locked, viommu(locked), i + 1, 1);
  EXPECT_EQ(error_of(make_event_queue(locked, viommu(locked), 2, 1)), EEXIST);
  destroy_event_queue(locked, queues[1]);
  EXPECT_EQ(report(locked, 1, 2), EOPNOTSUPP);
  EXPECT_EQ(report(locked, 1, 1), 0);
  EXPECT_EQ(report(locked, 1, 3), 0);
  destroy_event_queue(locked, queues[0]);
  destroy_event_queue(locked, queues[2]);
}

}  // namespace
}  // namespace stagetwo::iommu

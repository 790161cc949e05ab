// SPDX-License-Identifier: Apache-2.0
// Page requests: to the queue of the page table, a cookie for the reader, an answer.
#include "tests/unit/iommu/iommufd_world.h"

namespace stagetwo::iommu {
namespace {

class FaultTest : public IommufdWorld {
 protected:
  void SetUp() override {
    IommufdWorld::SetUp();
    ioas_ = make_ioas();
    a_ = attach_device(ioas_);
    Locked locked(*context_);
    auto* const queue = *locked.make_fault_queue();
    auto* const parent = *locked.make_hwpt(**locked.find<Ioas>(ioas_),
                                           **locked.find<Device>(a_.device), {.nest_parent = true});
    auto* const nested = *locked.make_nested(*parent);
    nested->fault = queue;
    ++queue->object.users;
    queue_ = queue->object.id;
    parent_ = parent->object.id;
    nested_ = nested->object.id;
  }
  void TearDown() override {
    replace(ioas_);
    EXPECT_EQ(destroy(queue_), EBUSY);
    for (const u32 id : {nested_, parent_, queue_, a_.test_device, ioas_})
      EXPECT_EQ(destroy(id), 0);
    IommufdWorld::TearDown();
  }
  void replace(u32 pt) {
    Locked locked(*context_);
    EXPECT_TRUE(locked.replace(**locked.find<Device>(a_.device), &pt));
  }
  void request(u32 pasid, u64 address) {
    Locked locked(*context_);
    locked.report(**locked.find<Device>(a_.device), pasid, 2, kReadWrite, address);
  }
  // The cookie and the address of the next one; 0: there is none.
  std::pair<u32, u64> read() {
    Locked locked(*context_);
    FaultQueue& queue = **locked.find<FaultQueue>(queue_);
    PageRequest* const first = queue.delivered;
    if (first == nullptr) return {0, 0};
    locked.mark_read(queue);
    return {first->cookie, first->address};
  }
  int answer(u32 cookie) {
    Locked locked(*context_);
    return error_of(locked.answer(**locked.find<FaultQueue>(queue_), cookie));
  }

  u32 ioas_ = 0, queue_ = 0, parent_ = 0, nested_ = 0;
  Attached a_;
};

TEST_F(FaultTest, ARequestNobodyTakesIsDropped) {
  request(0, 0x1000);
  request(1, 0x1000);
  EXPECT_EQ(read().first, 0u);
}

TEST_F(FaultTest, RequestsAreReadInTheirOrderAndAnsweredInAny) {
  replace(nested_);
  request(0, 0x1000);
  request(7, 0x2000);  // a PASID nobody attached: the guest's own, so the nested table's
  EXPECT_EQ(read(), (std::pair<u32, u64>{1, 0x1000}));
  EXPECT_EQ(read(), (std::pair<u32, u64>{2, 0x2000}));
  EXPECT_EQ(read().first, 0u);
  EXPECT_EQ(answer(3), EINVAL);
  EXPECT_EQ(answer(1), 0);
  EXPECT_EQ(answer(1), EINVAL);
  request(0, 0x3000);
  EXPECT_EQ(read().first, 1u) << "the lowest free cookie";
  EXPECT_EQ(answer(2), 0);
  EXPECT_EQ(answer(1), 0);
}

TEST_F(FaultTest, DetachingAnswersWhatIsOutstanding) {
  replace(nested_);
  request(0, 0x1000);
  request(0, 0x2000);
  const u32 cookie = read().first;
  replace(parent_);
  EXPECT_EQ(answer(cookie), EINVAL);
  EXPECT_EQ(read().first, 0u);
}

TEST_F(FaultTest, AGroupIsToldWhenItsLastHasComeAndAnsweredAsOne) {
  replace(nested_);
  {
    Locked locked(*context_);
    Device& device = **locked.find<Device>(a_.device);
    locked.report(device, 0, 4, kMayRead, 0x1000, false);
    locked.report(device, 0, 5, kMayRead, 0x9000, false);  // another one's
    locked.report(device, 0, 4, kMayRead, 0x2000, false);
    EXPECT_EQ((*locked.find<FaultQueue>(queue_))->delivered.get(), nullptr);
    locked.report(device, 0, 4, kMayWrite, 0x3000);
    const PageRequest* const first = (*locked.find<FaultQueue>(queue_))->delivered;
    ASSERT_NE(first, nullptr);
    EXPECT_EQ(first->in_group, 3u);
    EXPECT_EQ(first->next.get(), nullptr);
    EXPECT_EQ(first->address, 0x1000u);
    EXPECT_EQ(first->rest->address, 0x2000u);
    EXPECT_EQ(first->rest->rest->address, 0x3000u);
  }
  EXPECT_EQ(answer(read().first), 0);
  EXPECT_EQ(read().first, 0u);  // what is left of the other goes with the attachment
}

TEST_F(FaultTest, WhatCouldNotBeToldComesAgain) {
  replace(nested_);
  request(0, 0x1000);
  request(0, 0x2000);
  {
    Locked locked(*context_);
    FaultQueue& queue = **locked.find<FaultQueue>(queue_);
    PageRequest* const first = queue.delivered;
    locked.mark_read(queue);
    locked.mark_unread(queue, first);
  }
  EXPECT_EQ(read().second, 0x1000u);
  EXPECT_EQ(read().second, 0x2000u);
}

}  // namespace
}  // namespace stagetwo::iommu

// SPDX-License-Identifier: Apache-2.0
#pragma once

// A device that works by itself, on two IOASes of one page each (and a third page that is
// nobody's).

#include "iommu/dma_engine.h"
#include "tests/unit/iommu/device_world.h"

namespace stagetwo::iommu {

class EngineWorld : public DeviceWorld {
 protected:
  static constexpr u64 kIova = kApertureStart;

  void SetUp() override {
    DeviceWorld::SetUp();
    device_ = make_vtd(0x60);
    for (unsigned i = 0; i < 2; ++i) {
      ioas_[i] = make_ioas();
      table_[i] = make_hwpt(ioas_[i], device_, how());
      ASSERT_NE(table_[i], 0u);
      ASSERT_EQ(map_at(ioas_[i], page(i), kPageSize, kIova), 0);
    }
    for (unsigned i = 0; i < 3; ++i) *memory_.bytes_at(i * kPageSize) = mark(i);
    auto engine = DmaEngine::make(*context_, device_);
    ASSERT_TRUE(engine);
    engine_ = std::move(*engine);
  }
  void TearDown() override {
    engine_ = {};
    {
      Locked locked(*context_);
      locked.detach_all(**locked.find<Device>(device_));
      EXPECT_FALSE(locked.root().queue.has_lines());
    }
    for (unsigned i = 0; i < 2; ++i) {
      EXPECT_EQ(unmap_all(ioas_[i]), 0);
      EXPECT_EQ(destroy(table_[i]), 0);
      EXPECT_EQ(destroy(ioas_[i]), 0);
    }
    EXPECT_EQ(destroy(device_), 0);
    DeviceWorld::TearDown();
  }
  virtual HwptHow how() { return {.pasid = true}; }

  [[nodiscard]] u64 page(unsigned i) const { return memory_.address() + i * kPageSize; }
  static u8 mark(unsigned i) { return static_cast<u8>(0x51 + i); }
  // What the engine reads at the one IOVA; 0: a fault.
  u8 seen(s64 pasid) {
    u8 value = 0;
    reason_ = engine_->access(pasid, kIova, 1, &value, nullptr).reason;
    return reason_ == FaultReason::kNone ? value : u8{0};
  }

  test::GuardedPages memory_{3};
  u32 device_ = 0, ioas_[2] = {}, table_[2] = {};
  Box<DmaEngine> engine_;
  FaultReason reason_{};
};

}  // namespace stagetwo::iommu

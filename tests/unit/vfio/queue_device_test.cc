// SPDX-License-Identifier: Apache-2.0
// The smallest device that is given work by descriptors: it adds up their first words.
#include "vfio/queue_device.h"

#include <gtest/gtest.h>

#include <cstring>
#include <thread>
#include <vector>

#include "tests/support/pages.h"
#include "vfio/interrupts.h"

namespace stagetwo::vfio {
namespace {

struct AdderState {
  QueueDevice::Shared device;
  sync::Atomic<u64> sum, full;
};
constexpr PciIdentity kAdderIdentity{.vendor = 0x1af4,
                                     .device = 1,
                                     .sub_vendor = 0,
                                     .sub_device = 0,
                                     .class_code = 0,
                                     .revision = 0,
                                     .interrupt_pin = 0,
                                     .bars = {{4096}, {}, {4096}, {}, {kRingBytes}}};

class Adder final : public QueueDevice {
 public:
  explicit Adder(const ModelContext& context)
      : QueueDevice(kAdderIdentity, 1, Addresses::kMapped, context),
        state_(*reinterpret_cast<AdderState*>(context.state.data())) {
    reset();
  }
  ~Adder() override { stop(); }
  using QueueDevice::discard;
  sync::Atomic<bool> holds_{false};

 private:
  u64 word_at(u64 offset) const override {
    return offset == 0 ? state_.sum.load() : state_.full.load();
  }
  void write_register(u64, u32) override {}
  void clear_registers() override { state_.sum.store(0); }
  void is_full(const void*) override { state_.full.fetch_add(1); }
  void serve(const void* list, u32 count) override {
    while (holds_.load() && !cancelled()) std::this_thread::yield();
    for (u32 i = 0; i < count && !cancelled(); ++i) {
      u64 first = 0;
      std::memcpy(&first, static_cast<const u8*>(list) + i * 64, sizeof(first));
      state_.sum.fetch_add(first);
    }
  }
  void overran() override {}
  void unbound(const void*, u32, int) override {}

  AdderState& state_;
};

class QueueDeviceTest : public testing::Test {
 protected:
  u64 reg(u64 offset) {
    u32 value = 0;
    adder_.read(0, offset, {reinterpret_cast<u8*>(&value), sizeof(value)});
    return value;
  }
  void write(unsigned region, u64 offset, u32 value) {
    adder_.write(region, offset, {reinterpret_cast<const u8*>(&value), sizeof(value)});
  }
  void submit(u32 number, u64 slot = 0) {
    for (u64 at = 0; at < 64; at += 4) write(2, slot * 64 + at, at == 0 ? number : 0);
  }
  void expect_sum(u64 sum) {
    for (int i = 0; i < 10'000 && reg(0) != sum; ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    EXPECT_EQ(reg(0), sum);
  }

  alignas(64) u8 state_[Model::kStateBytes] = {};
  test::GuardedPages memory_{Model::kMemoryBytes / kPageSize};
  Interrupts interrupts_;
  Dma dma_;
  Adder adder_{{state_, {memory_.bytes_at(0), Model::kMemoryBytes}, interrupts_, dma_}};
};

TEST_F(QueueDeviceTest, ServesThePortalAndTheRing) {
  submit(1, 0);
  submit(2, 63);
  expect_sum(3);
  write(4, kRingAt, 40);
  write(4, kRingAt + 64, 500);
  write(4, 0, 2);
  write(0, QueueDevice::kDoorbell, 1);
  expect_sum(543);
}

TEST_F(QueueDeviceTest, WhatIsDiscardedIsNotServed) {
  adder_.holds_.store(true);
  for (u32 i = 0; i < 10; ++i) submit(1);
  adder_.discard();
  adder_.holds_.store(false);
  submit(100);
  expect_sum(100);
  adder_.holds_.store(true);
  submit(7);
  adder_.reset();
  adder_.holds_.store(false);
  submit(1000);
  expect_sum(1000);
}

TEST_F(QueueDeviceTest, SaysWhatHasNoPlace) {
  adder_.holds_.store(true);
  for (u32 i = 0; i < 3 * WorkQueue::kPlaces; ++i) submit(1);
  const u64 full = reg(8);
  EXPECT_GE(full, WorkQueue::kPlaces);
  adder_.holds_.store(false);
  expect_sum(3 * WorkQueue::kPlaces - full);
}

TEST_F(QueueDeviceTest, HasThePasidItsClientNames) {
  write(0, QueueDevice::kPasid, 77);
  EXPECT_EQ(reg(QueueDevice::kPasid), 77u);
  adder_.reset();
  EXPECT_EQ(reg(QueueDevice::kPasid), 0u) << "its container's; it has none";
}

TEST_F(QueueDeviceTest, ShowsItsRegionsAndVectors) {
  const Shape& shape = adder_.shape();
  EXPECT_EQ(shape.regions[4].size, kRingBytes);
  EXPECT_TRUE(shape.regions[2].mapped[0].trapped);
  EXPECT_EQ(shape.vectors[kMsixIndex], 1u);
  u16 vendor = 0;
  adder_.read(kConfigRegion, 0, {reinterpret_cast<u8*>(&vendor), sizeof(vendor)});
  EXPECT_EQ(vendor, 0x1af4);
}

}  // namespace
}  // namespace stagetwo::vfio

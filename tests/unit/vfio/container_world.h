// SPDX-License-Identifier: Apache-2.0
#pragma once

// A container of a test's own, groups with an IOMMU device and without, and memory to map.

#include "host/backstop.h"
#include "host/pin.h"
#include "tests/support/pages.h"
#include "tests/unit/vfio/bus_world.h"
#include "vfio/container.h"
#include "vfio/serial.h"

namespace stagetwo::vfio {

class ContainerWorld : public testing::Test {
 protected:
  static constexpr u64 kIova = 0x100000;
  static constexpr u32 kBoth = iommu::kMayRead | iommu::kMayWrite;

  void SetUp() override {
    ASSERT_TRUE(host::backstop::install());
    backing_.emplace(*Container::make_file("test-container"));
    container_ = *Container::attach(backing_->fd());
  }
  void TearDown() override {
    for (u32 slot = 0; slot < 8; ++slot) container_->remove_group(group(slot));
    container_->closed();
    container_.reset();
    EXPECT_EQ(host::pin_use().pages, 0u);
  }

  // Slots from 4 on are devices of a parent whose requests the IOMMU tells apart.
  static Listed group(u32 slot) {
    static Parent isolated = kSerial;
    isolated.source = 0x100;
    isolated.pasid_bits = 8;
    return {slot, slot + 100, {}, {slot >= 4 ? &isolated : &kSerial, 0}, false};
  }
  int add(u32 slot) { return error_of(container_->add_group(group(slot))); }
  int set_type(IommuType type) { return error_of(container_->set_type(static_cast<u64>(type))); }
  void start(u32 slot, IommuType type = IommuType::kType1v2) {
    ASSERT_EQ(add(slot), 0);
    ASSERT_EQ(set_type(type), 0);
  }
  int map(u64 iova, u64 pages = 1, u64 page = 0, u32 rights = kBoth) {
    return error_of(
        container_->map({iova, pages * kPageSize, memory_.address() + page * kPageSize, rights}));
  }
  // Bytes, or minus the errno.
  s64 unmap(u64 iova, u64 pages) {
    const auto done = container_->unmap({iova, pages * kPageSize, false});
    return done ? static_cast<s64>(*done) : -to_int(done.error());
  }
  s64 unmap_all() {
    const auto done = container_->unmap({0, 0, true});
    return done ? static_cast<s64>(*done) : -to_int(done.error());
  }
  // What a device of the group writes to `iova`.
  iommu::FaultReason write(u32 slot, u64 iova, u8 value) {
    const auto tag = container_->tag_of(group(slot));
    EXPECT_TRUE(tag);
    iommu::Locked locked(container_->context());
    return locked
        .dma(**locked.find<iommu::Device>(tag->device), tag->pasid, iova, 1, nullptr, &value)
        .reason;
  }

  test::GuardedPages memory_{8};
  std::optional<host::Backing> backing_;
  sync::Ref<Container> container_;
};

}  // namespace stagetwo::vfio

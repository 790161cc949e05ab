// SPDX-License-Identifier: Apache-2.0
#pragma once

// An iommufd whose next pages go the short way (src/iommu/one_page.cc): what is asked there is
// known.

#include <cstring>

#include "tests/unit/iommu/device_world.h"

namespace stagetwo::iommu {

class OnePage : public DeviceWorld {
 protected:
  static constexpr u64 kPages = 32;

  void SetUp() override {
    DeviceWorld::SetUp();
    ioas_ = make_ioas();
    device_ = make_vtd(0x10);
    hwpt_ = make_hwpt(ioas_, device_);
    ASSERT_EQ(attach(device_, hwpt_, 1), 0);
    // The memory is known, and so is the table; the last page stays pinned, and with it the block.
    memset(bytes_at(0), 0, (kPages + 1) * kPageSize);
    ASSERT_EQ(map_at(ioas_, address(0), (kPages + 1) * kPageSize, kIova), 0);
    ASSERT_EQ(map_at(ioas_, address(kPages), kPageSize, iova(kPages + 1)), 0);
    ASSERT_EQ(unmap(ioas_, kIova, (kPages + 1) * kPageSize), 0);
    ASSERT_EQ(host::pin_use().pins, 1u);
  }
  void TearDown() override {
    ASSERT_EQ(unmap_all(ioas_), 0);
    detach(device_, 1);
    for (const u32 id : {hwpt_, device_, ioas_}) ASSERT_EQ(destroy(id), 0);
    DeviceWorld::TearDown();
  }
  static u64 iova(u64 page) { return kIova + page * kPageSize; }
  // Within 2 MiB of their own.
  u64 address(u64 page) const {
    return ((memory_.address() + kLarge - 1) & ~(kLarge - 1)) + page * kPageSize;
  }
  u8* bytes_at(u64 page) const { return reinterpret_cast<u8*>(address(page)); }
  bool maps(u64 page, MapRequest request) {
    Locked locked(*context_);
    return locked.map_one_page(**locked.find<Ioas>(ioas_), address(page), request);
  }
  bool maps(u64 page) { return maps(page, {true, iova(page), kPageSize, kReadWrite}); }
  bool unmaps(u64 start, u64 last) {
    Locked locked(*context_);
    return locked.unmap_one_page(**locked.find<Ioas>(ioas_), start, last);
  }
  bool unmaps(u64 page) { return unmaps(iova(page), iova(page + 1) - 1); }
  // So many blocks of the arena; of rows, as long as nobody asks for their areas.
  s64 blocks() {
    Locked locked(*context_);
    return locked.arena().blocks_in_use();
  }
  // The same when each page has an area of its own.
  s64 blocks_of_areas() {
    {
      Locked locked(*context_);
      locked.areas(**locked.find<Ioas>(ioas_));
    }
    return blocks();
  }
  u64 areas() {
    Locked locked(*context_);
    return (*locked.find<Ioas>(ioas_))->area_count;
  }
  // Does the device reach that very page, pinned so often?
  void expect_there(u64 page, u32 pins = 1) {
    EXPECT_EQ(walk(hwpt_, iova(page)), frame_address(address(page))) << page;
    EXPECT_EQ(pins_at(address(page)), pins) << page;
    const u8 byte = static_cast<u8>(page + 1);
    EXPECT_EQ(write_byte(device_, 1, iova(page) + 5, byte), FaultReason::kNone);
    EXPECT_EQ(bytes_at(page)[5], byte);
  }
  void expect_gone(u64 page) {
    EXPECT_EQ(walk(hwpt_, iova(page)), kNowhere) << page;
    EXPECT_EQ(pins_at(address(page)), 0u) << page;
  }

  static constexpr u64 kIova = kApertureStart, kLarge = u64{2} << 20;
  test::GuardedPages memory_{kPages + 2 + kLarge / kPageSize};
  u32 ioas_ = 0, device_ = 0, hwpt_ = 0;
};

}  // namespace stagetwo::iommu

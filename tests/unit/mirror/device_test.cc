// SPDX-License-Identifier: Apache-2.0
// Device memory: places are used again and none is lost, also where memory ends.
#include "mirror/device.h"

#include <gtest/gtest.h>

#include "base/failpoint.h"
#include "tests/unit/mirror/mirror_fixture.h"

namespace stagetwo {
namespace {

class DeviceMemory : public test::MirrorTest {};

TEST_F(DeviceMemory, PlacesComeBack) {
  // Far more pages in all than the device has places for at once.
  for (int round = 0; round < 100; ++round) {
    ASSERT_TRUE(one_->migrate_to_device(range()));
    for (size_t i = 0; i < kPages; ++i) ASSERT_EQ(i + 1, page(i)[7]);
  }
}

TEST_F(DeviceMemory, EachUnitHasItsOwn) {
  EXPECT_NE(*mirror::Device::get(0), *mirror::Device::get(1));
  EXPECT_EQ(*mirror::Device::get(0), *mirror::Device::get(0));
}

TEST_F(DeviceMemory, WithoutMemoryThePagesStay) {
  failpoint::arm("mirror.device_pages", 1, failpoint::kForever);
  const auto moved = one_->migrate_to_device(range());
  failpoint::disarm();
  EXPECT_TRUE(moved);
  for (size_t i = 0; i < kPages; ++i) ASSERT_EQ(i + 1, page(i)[7]);
}

TEST_F(DeviceMemory, EveryAllocationMayFailOnce) {
  for (u64 nth = 1; nth < 40; ++nth) {
    failpoint::arm(nullptr, nth);
    static_cast<void>(one_->migrate_to_device(range(0, 8)));
    mirror::Transfer done;
    std::vector<u8> bytes(kPageSize);
    static_cast<void>(one_->read(at(0), 1, bytes.data(), &done));
    failpoint::disarm();
    for (size_t i = 0; i < 8; ++i) ASSERT_EQ(i + 1, page(i)[7]) << "allocation " << nth;
  }
}

}  // namespace
}  // namespace stagetwo

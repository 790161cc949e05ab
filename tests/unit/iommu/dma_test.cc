// SPDX-License-Identifier: Apache-2.0
// Accesses of devices: how far they come and why no further. Who reaches what: isolation_test.cc.
#include <vector>

#include "host/piecewise.h"
#include "tests/unit/iommu/device_world.h"

namespace stagetwo::iommu {
namespace {

class Dma : public DeviceWorld {
 protected:
  void SetUp() override {
    DeviceWorld::SetUp();
    ioas_ = make_ioas();
    device_ = make_vtd(0x50);
    table_ = make_hwpt(ioas_, device_);
    ASSERT_EQ(attach(device_, table_, 1), 0);
    ASSERT_EQ(map_at(ioas_, memory_.address(), 2 * kPageSize, kApertureStart), 0);
  }
  void TearDown() override {
    EXPECT_EQ(unmap_all(ioas_), 0);
    detach(device_, 1);
    for (const u32 id : {table_, device_, ioas_}) EXPECT_EQ(destroy(id), 0);
    DeviceWorld::TearDown();
  }

  test::GuardedPages memory_{2};
  u32 ioas_ = 0, device_ = 0, table_ = 0;
};

TEST_F(Dma, CrossesPagesAndStopsAtAHole) {
  const std::vector<u8> bytes(3 * kPageSize, 0xee);
  const u64 iova = kApertureStart + 100;
  const DmaAnswer answer = write(device_, 1, iova, bytes.data(), bytes.size());
  EXPECT_EQ(answer.done, 2 * kPageSize - 100);
  EXPECT_EQ(answer.reason, FaultReason::kSecondDenied);
  EXPECT_EQ(answer.iova, kApertureStart + 2 * kPageSize);
  EXPECT_EQ(*memory_.bytes_at(99), 0);
  EXPECT_EQ(*memory_.bytes_at(100), 0xee);
  EXPECT_EQ(*memory_.bytes_at(2 * kPageSize - 1), 0xee);
}

TEST_F(Dma, OfATestDeviceIsRefusedForTheSameReasons) {
  Locked locked(*context_);
  Device& plain = **locked.make_device(false, false, 0);
  Device& wide = **locked.make_device(false, false, 4);
  const auto reason = [&](Device& device, s64 pasid) {
    return locked.look_up(device, pasid, kApertureStart, kMayRead).reason;
  };
  EXPECT_EQ(reason(plain, kNoPasid), FaultReason::kPasidNotPresent);
  EXPECT_EQ(reason(plain, 1), FaultReason::kPasidNotEnabled);
  EXPECT_EQ(reason(wide, 1), FaultReason::kPasidNotPresent);
  EXPECT_EQ(reason(wide, 16), FaultReason::kPasidTooLarge);
  locked.destroy_device(&plain);
  locked.destroy_device(&wide);
}

// Pins outlive what the client does to its addresses: the device goes on with the page it has.
TEST_F(Dma, GoesOnWithThePageThatWasPinned) {
  *memory_.bytes_at(5) = 0x11;
  EXPECT_EQ(host::discard(memory_.address(), kPageSize, MADV_DONTNEED,
                          [](u64 start, u64 size) {
                            return madvise(reinterpret_cast<void*>(start), size, MADV_DONTNEED);
                          }),
            0);
  u8 found = 0;
  EXPECT_EQ(read(device_, 1, kApertureStart + 5, &found, 1).reason, FaultReason::kNone);
  EXPECT_EQ(found, 0x11);
  EXPECT_EQ(*memory_.bytes_at(5), 0);
}

}  // namespace
}  // namespace stagetwo::iommu

// SPDX-License-Identifier: Apache-2.0
#include <vector>

#include "tests/unit/abi/vfio/vfio_client.h"

namespace stagetwo {
namespace {

class Dirty : public VfioClient {
 protected:
  struct Get {
    u32 argsz, flags;  // vfio_iommu_type1_dirty_bitmap, which ends in what comes
    vfio_iommu_type1_dirty_bitmap_get range;
  };
  long start() {
    vfio_iommu_type1_dirty_bitmap cmd{.argsz = sizeof(cmd),
                                      .flags = VFIO_IOMMU_DIRTY_PAGES_FLAG_START};
    return ask(container_, VFIO_IOMMU_DIRTY_PAGES, &cmd);
  }
  Get request(u64 iova, u64 pages) {
    Get cmd{};
    cmd.argsz = sizeof(cmd);
    cmd.flags = VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP;
    cmd.range.iova = iova;
    cmd.range.size = pages * kPageSize;
    cmd.range.bitmap = {kPageSize, sizeof(bits_), reinterpret_cast<__u64*>(&bits_)};
    return cmd;
  }
  long get(Get& cmd) { return ask(container_, VFIO_IOMMU_DIRTY_PAGES, &cmd); }

  u64 bits_ = ~u64{0};
};

TEST_F(Dirty, WhatIsCleanIsWrittenAndWhatIsNotMappedIsLeft) {
  join();
  ASSERT_EQ(map(kIova + 3 * kPageSize, 4), 0);
  ASSERT_EQ(start(), 0);
  Get cmd = request(kIova, 64);
  ASSERT_EQ(get(cmd), 0);
  EXPECT_EQ(bits_, u64{7}) << "a word of a map's is written whole; what is in front of it stays";
}

TEST_F(Dirty, WithoutTrackingThereIsNothingToRead) {
  join();
  Get cmd = request(kIova, 64);
  EXPECT_EQ(get(cmd), -EINVAL);
}

TEST_F(Dirty, BadRequestsAreRefused) {
  join();
  ASSERT_EQ(start(), 0);
  const auto refused = [&](auto change) {
    Get cmd = request(kIova, 64);
    change(cmd);
    return get(cmd);
  };
  EXPECT_EQ(refused([](Get& cmd) { cmd.argsz -= 8; }), -EINVAL);
  EXPECT_EQ(refused([](Get& cmd) { cmd.range.bitmap.pgsize = 2 * kPageSize; }), -EINVAL);
  EXPECT_EQ(refused([](Get& cmd) { cmd.range.bitmap.size = 7; }), -EINVAL);
  EXPECT_EQ(refused([](Get& cmd) { cmd.range.size += kPageSize; }), -EINVAL) << "a 65th bit";
  EXPECT_EQ(refused([](Get& cmd) { cmd.range.iova += 1; }), -EINVAL);
  EXPECT_EQ(refused([](Get& cmd) { cmd.range.iova = 0 - kPageSize; }), -EINVAL);
  EXPECT_EQ(refused([](Get& cmd) { cmd.range.size = 0; }), -EINVAL);
}

TEST_F(Dirty, ABitmapThatCannotBeWrittenIsAFault) {
  join();
  ASSERT_EQ(map(kIova, 4), 0);
  ASSERT_EQ(start(), 0);
  Get cmd = request(kIova, 64);
  cmd.range.bitmap.data = reinterpret_cast<__u64*>(8);
  EXPECT_EQ(get(cmd), -EFAULT);
}

}  // namespace
}  // namespace stagetwo

// SPDX-License-Identifier: Apache-2.0
#include "iommu/file_map.h"

#include <sys/mman.h>
#include <unistd.h>

#include "base/failpoint.h"
#include "tests/unit/iommu/device_world.h"

namespace stagetwo::iommu {
namespace {

class FileMapTest : public DeviceWorld {
 protected:
  void SetUp() override {
    DeviceWorld::SetUp();
    file_ = memfd_create("file-map", MFD_CLOEXEC);
    ASSERT_EQ(ftruncate(file_, 3 * kPageSize), 0);
    for (off_t i = 0; i < 3; ++i) {
      const char byte = static_cast<char>('a' + i);
      ASSERT_EQ(pwrite(file_, &byte, 1, i * off_t{kPageSize}), 1);
    }
    ioas_ = make_ioas();
    device_ = make_vtd(0x70);
    table_ = make_hwpt(ioas_, device_);
    ASSERT_EQ(attach(device_, table_, 1), 0);
  }
  void TearDown() override {
    EXPECT_EQ(unmap_all(ioas_), 0);
    detach(device_, 1);
    for (const u32 id : {table_, ioas_, device_}) EXPECT_EQ(destroy(id), 0);
    close(file_);
    DeviceWorld::TearDown();
  }
  int map_file(u64 start, u64 length, u64 iova) {
    Locked locked(*context_);
    MapRequest request{true, iova, length, kReadWrite};
    return error_of(map_file_range(locked, **locked.find<Ioas>(ioas_), file_, start, &request));
  }
  char at(u64 iova) {
    char byte = 0;
    return read(device_, 1, iova, &byte, 1).done == 1 ? byte : '-';
  }
  int file_ = -1;
  u32 ioas_ = 0, device_ = 0, table_ = 0;
};

TEST_F(FileMapTest, ADeviceReachesTheFilesBytesAlsoWhenNobodyHasItOpen) {
  ASSERT_EQ(map_file(kPageSize, 2 * kPageSize, kApertureStart), 0);
  close(std::exchange(file_, -1));
  EXPECT_EQ(at(kApertureStart), 'b');
  EXPECT_EQ(at(kApertureStart + kPageSize), 'c');
  Locked locked(*context_);
  EXPECT_EQ(error_of(take_over_files(locked)), 0) << "it is this process's";
}

TEST_F(FileMapTest, WhatIsRefusedLeavesNothingMapped) {
  EXPECT_EQ(map_file(2 * kPageSize, 2 * kPageSize, kApertureStart), EINVAL);
  failpoint::sweep([&] {
    if (map_file(0, kPageSize, kApertureStart) == 0) {
      EXPECT_EQ(unmap(ioas_, kApertureStart, kPageSize), 0);
    }
    EXPECT_EQ(host::pin_use().pages, 0u);
  });
}

}  // namespace
}  // namespace stagetwo::iommu

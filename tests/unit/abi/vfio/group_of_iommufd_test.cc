// SPDX-License-Identifier: Apache-2.0
// An iommufd in the place of a group's container: kernel files drivers/vfio/group.c, iommufd.c.
#include "abi/iommufd/iommufd.h"
#include "abi/iommufd/uapi.h"
#include "tests/unit/abi/vfio/register_device.h"
#include "tests/unit/abi/vfio/vfio_client.h"

namespace stagetwo {
namespace {

class GroupOfIommufd : public VfioClient {
 protected:
  GroupOfIommufd() {
    test::register_devices();
    type_ = "isolated-a";
  }
  void SetUp() override {
    VfioClient::SetUp();
    iommufd_ = *abi_iommufd::open_device(O_RDWR | O_CLOEXEC);
  }
  void TearDown() override {
    close_fd(iommufd_);
    VfioClient::TearDown();
  }
  // One page of the memory at kIova.
  u32 make_ioas(u64 page) {
    iommu_ioas_alloc alloc{sizeof(alloc), 0, 0};
    EXPECT_EQ(ask(iommufd_, IOMMU_IOAS_ALLOC, &alloc), 0);
    iommu_ioas_map cmd{};
    cmd.size = sizeof(cmd);
    cmd.flags = IOMMU_IOAS_MAP_FIXED_IOVA | IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE;
    cmd.ioas_id = alloc.out_ioas_id;
    cmd.user_va = memory_.address() + page * kPageSize;
    cmd.length = kPageSize;
    cmd.iova = kIova;
    EXPECT_EQ(ask(iommufd_, IOMMU_IOAS_MAP, &cmd), 0);
    return alloc.out_ioas_id;
  }
  void choose(u32 ioas) {
    iommu_vfio_ioas cmd{sizeof(cmd), ioas, IOMMU_VFIO_IOAS_SET, 0};
    ASSERT_EQ(ask(iommufd_, IOMMU_VFIO_IOAS, &cmd), 0);
  }
  int open_once() { return static_cast<int>(ask(group_, VFIO_GROUP_GET_DEVICE_FD, kName)); }
  static unsigned write(u8 value) {
    return static_cast<unsigned>(test::RegisterDevice::dma->write(kIova, &value, 1).reason);
  }
  int iommufd_ = -1;
};

// What was chosen since is for the next first open.
TEST_F(GroupOfIommufd, ASecondDescriptorLeavesTheDeviceWhereItIs) {
  const u32 first = make_ioas(0), second = make_ioas(1);
  choose(first);
  ASSERT_EQ(ask(group_, VFIO_GROUP_SET_CONTAINER, &iommufd_), 0);
  device_ = open_once();
  ASSERT_GE(device_, 0);
  EXPECT_EQ(write(0xa1), 0u);
  EXPECT_EQ(*memory_.bytes_at(0), 0xa1);
  choose(second);
  const int again = open_once();
  ASSERT_GE(again, 0);
  EXPECT_EQ(write(0xa2), 0u);
  EXPECT_EQ(*memory_.bytes_at(0), 0xa2);
  EXPECT_EQ(*memory_.bytes_at(kPageSize), 0);
  close_fd(again);
  close_fd(std::exchange(device_, -1));
  device_ = open_once();
  ASSERT_GE(device_, 0);
  EXPECT_EQ(write(0xa3), 0u);
  EXPECT_EQ(*memory_.bytes_at(kPageSize), 0xa3);
}

}  // namespace
}  // namespace stagetwo

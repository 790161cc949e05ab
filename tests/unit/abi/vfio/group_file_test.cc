// SPDX-License-Identifier: Apache-2.0
#include "tests/unit/abi/vfio/vfio_client.h"

namespace stagetwo {
namespace {

class GroupFile : public VfioClient {
 protected:
  u32 flags() {
    vfio_group_status status{.argsz = sizeof(status), .flags = 0};
    EXPECT_EQ(ask(group_, VFIO_GROUP_GET_STATUS, &status), 0);
    return status.flags;
  }
};

TEST_F(GroupFile, HasOneOpener) {
  const auto again = abi_vfio::open_group(0, O_RDWR);
  ASSERT_FALSE(again);
  EXPECT_EQ(to_int(again.error()), EBUSY);
  EXPECT_FALSE(abi_vfio::has_group(1));
}

TEST_F(GroupFile, IsViableAndSaysWhetherItHasAContainer) {
  EXPECT_EQ(flags(), u32{VFIO_GROUP_FLAGS_VIABLE});
  join();
  EXPECT_EQ(flags(), u32{VFIO_GROUP_FLAGS_VIABLE | VFIO_GROUP_FLAGS_CONTAINER_SET});
  EXPECT_EQ(ask(group_, VFIO_GROUP_UNSET_CONTAINER), 0);
  EXPECT_EQ(flags(), u32{VFIO_GROUP_FLAGS_VIABLE});
}

TEST_F(GroupFile, ItsContainerLosesItsTypeWithIt) {
  join();
  ASSERT_EQ(map(kIova, 1), 0);
  ASSERT_EQ(ask(group_, VFIO_GROUP_UNSET_CONTAINER), 0);
  EXPECT_EQ(map(kIova, 1), -EINVAL);
}

TEST_F(GroupFile, ClosedBeforeItsDeviceItStaysInItsContainer) {
  open_device();
  close_fd(std::exchange(group_, -1));
  EXPECT_EQ(map(kIova, 1), 0);
  EXPECT_FALSE(abi_vfio::open_group(0, O_RDWR)) << "its device is open";
  close_fd(std::exchange(device_, -1));
  EXPECT_EQ(map(kIova, 1), -EINVAL);
  group_ = *abi_vfio::open_group(0, O_RDWR);
}

TEST_F(GroupFile, ADeviceOutlivesItsContainersDescriptor) {
  open_device();
  close_fd(std::exchange(container_, -1));
  EXPECT_EQ(ask(device_, VFIO_DEVICE_RESET), 0);
}

TEST_F(GroupFile, NamesAreWhole) {
  join();
  EXPECT_EQ(ask(group_, VFIO_GROUP_GET_DEVICE_FD, "83b8f4f2-509f-382f-3c1e-e6bfe0fa100"), -ENODEV);
  EXPECT_EQ(ask(group_, VFIO_GROUP_GET_DEVICE_FD, "83B8F4F2-509F-382F-3C1E-E6BFE0FA1001"), -ENODEV);
  EXPECT_EQ(ask(group_, VFIO_GROUP_GET_DEVICE_FD, nullptr), -EFAULT);
}

}  // namespace
}  // namespace stagetwo

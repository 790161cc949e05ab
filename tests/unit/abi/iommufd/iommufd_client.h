// SPDX-License-Identifier: Apache-2.0
#pragma once

// A client of /dev/iommu: the ioctls as a program makes them, answers as the kernel gives them.

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include "abi/iommufd/iommufd.h"
#include "abi/iommufd/test_uapi.h"
#include "host/backstop.h"
#include "host/descriptor.h"
#include "host/pin.h"
#include "tests/support/pages.h"

namespace stagetwo {

inline constexpr u64 kAperture = u64{1} << 24;
inline constexpr u32 kMapFlags =
    IOMMU_IOAS_MAP_FIXED_IOVA | IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE;

class IommufdClient : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(host::backstop::install());
    abi_iommufd::set_test_commands(true);
    fd_ = *abi_iommufd::open_device(O_RDWR | O_CLOEXEC);
  }
  void TearDown() override {
    if (fd_ >= 0) close_fd(fd_);
    EXPECT_EQ(host::pin_use().pages, 0u) << "a closed iommufd holds nothing";
  }
  static void close_fd(int fd) {
    host::CloseWatch watch(fd);
    ::close(fd);
    watch.closed();
  }
  static long ask(int fd, unsigned long request, void* arg) {
    const auto ref = host::find(fd);
    return ref->ioctl(fd, request, reinterpret_cast<unsigned long>(arg));
  }
  template <typename T>
  long call(unsigned long request, T* cmd) {
    if (cmd->size == 0) cmd->size = sizeof(*cmd);
    return ask(fd_, request, cmd);
  }
  u32 ioas_alloc() {
    iommu_ioas_alloc cmd{};
    EXPECT_EQ(call(IOMMU_IOAS_ALLOC, &cmd), 0);
    return cmd.out_ioas_id;
  }
  long destroy(u32 id) {
    iommu_destroy cmd{.size = sizeof(cmd), .id = id};
    return call(IOMMU_DESTROY, &cmd);
  }
  long map(u32 ioas, u64 va, u64 length, u64 iova, u32 flags = kMapFlags) {
    iommu_ioas_map cmd{.size = sizeof(cmd),
                       .flags = flags,
                       .ioas_id = ioas,
                       .__reserved = 0,
                       .user_va = va,
                       .length = length,
                       .iova = iova};
    return call(IOMMU_IOAS_MAP, &cmd);
  }
  long unmap(u32 ioas, u64 iova, u64 length) {
    iommu_ioas_unmap cmd{.size = sizeof(cmd), .ioas_id = ioas, .iova = iova, .length = length};
    const long answer = call(IOMMU_IOAS_UNMAP, &cmd);
    return answer != 0 ? answer : static_cast<long>(cmd.length);
  }
  static iommu_test_cmd test_cmd(u32 op, u32 id) {
    iommu_test_cmd cmd{};
    cmd.size = sizeof(cmd);
    cmd.op = op;
    cmd.id = id;
    return cmd;
  }
  struct MockDevice {
    long error;
    u32 test_device, hwpt, device;
  };
  MockDevice mock_device(u32 pt, u32 flags = 0) {
    auto cmd = test_cmd(IOMMU_TEST_OP_MOCK_DOMAIN_FLAGS, pt);
    cmd.mock_domain_flags.dev_flags = flags;
    const long error = call(IOMMU_TEST_CMD, &cmd);
    return {error, cmd.mock_domain_flags.out_stdev_id, cmd.mock_domain_flags.out_hwpt_id,
            cmd.mock_domain_flags.out_idev_id};
  }
  iommu_hwpt_alloc hwpt_cmd(u32 device, u32 pt, u32 flags = 0) {
    iommu_hwpt_alloc cmd{};
    cmd.size = sizeof(cmd);
    cmd.flags = flags;
    cmd.dev_id = device;
    cmd.pt_id = pt;
    return cmd;
  }

  int fd_ = -1;
};

}  // namespace stagetwo

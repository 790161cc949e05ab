// SPDX-License-Identifier: Apache-2.0
#pragma once

// A client of /dev/vfio with one serial device: the requests as a program makes them. What a whole
// program meets is tested by tests/shim/programs/vfio_serial.c.

#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/vfio.h>
#include <unistd.h>

#include "abi/vfio/vfio.h"
#include "host/backstop.h"
#include "host/descriptor.h"
#include "host/session.h"
#include "tests/support/pages.h"
#include "vfio/bus.h"
#include "vfio/registry.h"

namespace stagetwo {

class VfioClient : public testing::Test {
 protected:
  static constexpr u64 kIova = 0x100000;

  void SetUp() override {
    ASSERT_TRUE(host::backstop::install());
    ASSERT_TRUE(host::join_session({}));  // a registry of this process's own
    ASSERT_TRUE(vfio::create_device(vfio::find_type(type_), uuid()));
    container_ = *abi_vfio::open_container(O_RDWR | O_CLOEXEC);
    group_ = *abi_vfio::open_group(0, O_RDWR | O_CLOEXEC);
  }
  void TearDown() override {
    for (const int fd : {device_, group_, container_}) {
      if (fd >= 0) close_fd(fd);
    }
    auto removal = vfio::begin_removal(uuid());
    if (removal) vfio::finish_removal(std::move(*removal));
    vfio::debug_leave_registry();
    host::debug_leave_session();
  }
  static vfio::Uuid uuid() { return *vfio::parse_uuid(kName); }
  static void close_fd(int fd) {
    host::CloseWatch watch(fd);
    ::close(fd);
    watch.closed();
  }
  static long ask(int fd, unsigned long request, const void* arg = nullptr) {
    return host::find(fd)->ioctl(fd, request, reinterpret_cast<unsigned long>(arg));
  }
  // In the container, with a type.
  void join(unsigned long type = VFIO_TYPE1v2_IOMMU) {
    ASSERT_EQ(ask(group_, VFIO_GROUP_SET_CONTAINER, &container_), 0);
    ASSERT_EQ(host::find(container_)->ioctl(container_, VFIO_SET_IOMMU, type), 0);
  }
  void open_device() {
    join();
    device_ = static_cast<int>(ask(group_, VFIO_GROUP_GET_DEVICE_FD, kName));
    ASSERT_GE(device_, 0);
  }
  long map(u64 iova, u64 pages) {
    vfio_iommu_type1_dma_map cmd{.argsz = sizeof(cmd),
                                 .flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
                                 .vaddr = memory_.address(),
                                 .iova = iova,
                                 .size = pages * kPageSize};
    return ask(container_, VFIO_IOMMU_MAP_DMA, &cmd);
  }

  static constexpr const char* kName = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001";
  test::GuardedPages memory_{4};
  const char* type_ = "serial-1";
  int container_ = -1, group_ = -1, device_ = -1;
};

}  // namespace stagetwo

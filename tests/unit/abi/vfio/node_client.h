// SPDX-License-Identifier: Apache-2.0
#pragma once

// A client of a device's own node and of an iommufd.

#include "abi/iommufd/iommufd.h"
#include "abi/iommufd/uapi.h"
#include "abi/vfio/uapi.h"
#include "host/placed_io.h"
#include "iommu/iommufd.h"
#include "iommu/locked.h"
#include "tests/unit/abi/vfio/register_device.h"
#include "tests/unit/abi/vfio/vfio_client.h"

namespace stagetwo {

class Node : public VfioClient {
 protected:
  Node() {
    test::register_devices();
    type_ = "isolated-a";
  }
  void SetUp() override {
    VfioClient::SetUp();
    close_fd(group_);
    group_ = -1;
    device_ = *abi_vfio::open_node(0, O_RDWR | O_CLOEXEC);
    iommufd_ = *abi_iommufd::open_device(O_RDWR | O_CLOEXEC);
  }
  void TearDown() override {
    if (device_ >= 0) close_fd(device_);
    device_ = -1;
    close_fd(iommufd_);
    abi_vfio::set_newer_requests(false);
    VfioClient::TearDown();
  }
  long bind(int fd, int iommufd) {
    vfio_device_bind_iommufd cmd{sizeof(cmd), 0, iommufd, 0};
    const long done = ask(fd, VFIO_DEVICE_BIND_IOMMUFD, &cmd);
    id_ = cmd.out_devid;
    return done;
  }
  u32 make_ioas() {
    iommu_ioas_alloc cmd{sizeof(cmd), 0, 0};
    EXPECT_EQ(ask(iommufd_, IOMMU_IOAS_ALLOC, &cmd), 0);
    return cmd.out_ioas_id;
  }
  long map(u32 ioas, u64 iova, u64 page) {
    iommu_ioas_map cmd{};
    cmd.size = sizeof(cmd);
    cmd.flags = IOMMU_IOAS_MAP_FIXED_IOVA | IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE;
    cmd.ioas_id = ioas;
    cmd.user_va = memory_.address() + page * kPageSize;
    cmd.length = kPageSize;
    cmd.iova = iova;
    return ask(iommufd_, IOMMU_IOAS_MAP, &cmd);
  }
  // A page table that PASIDs may mean.
  u32 make_table(u32 ioas) {
    const auto iommufd = iommu::find_iommufd(iommufd_);
    iommu::Locked locked(iommufd->context());
    const auto made = locked.make_hwpt(**locked.find<iommu::Ioas>(ioas),
                                       **locked.find<iommu::Device>(id_), {.pasid = true});
    EXPECT_TRUE(made);
    return made ? (*made)->object.id.get() : 0;
  }
  long attach(u32 pt_id, u32 flags = 0, u32 pasid = 0) {
    vfio_device_attach_iommufd_pt_pasid cmd{sizeof(cmd), flags, pt_id, pasid};
    const long done = ask(device_, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &cmd);
    attached_ = cmd.pt_id;
    return done;
  }
  long detach(u32 flags = 0, u32 pasid = 0) {
    vfio_device_detach_iommufd_pt_pasid cmd{sizeof(cmd), flags, pasid};
    return ask(device_, VFIO_DEVICE_DETACH_IOMMUFD_PT, &cmd);
  }
  // What a write of the device meets: 0, or the reason.
  static unsigned write(u64 iova, u8 value, vfio::DmaHow how = {}) {
    return static_cast<unsigned>(test::RegisterDevice::dma->write(iova, &value, 1, how).reason);
  }
  u8 byte(u64 page) const {
    return *reinterpret_cast<volatile u8*>(memory_.address() + page * kPageSize);
  }

  int iommufd_ = -1;
  u32 id_ = 0, attached_ = 0;
};

}  // namespace stagetwo

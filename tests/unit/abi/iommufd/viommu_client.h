// SPDX-License-Identifier: Apache-2.0
#pragma once

// A client of the requests after 6.12: a test device, a nesting parent, a virtual IOMMU on it and a
// guest's page table on that.

#include "tests/unit/abi/iommufd/iommufd_client.h"

namespace stagetwo {

class NewerClient : public IommufdClient {
 protected:
  void SetUp() override {
    IommufdClient::SetUp();
    abi_iommufd::set_newer_requests(true);
  }
  void TearDown() override {
    IommufdClient::TearDown();
    abi_iommufd::set_newer_requests(false);
  }
  // Of IOMMU_HWPT_ALLOC, what it answers; the number in *id. Nested ones have the driver's data.
  long hwpt_alloc(u32 device, u32 pt, u32 flags, u32* id, u32 fault = 0) {
    auto cmd = hwpt_cmd(device, pt, flags);
    cmd.fault_id = fault;
    const long answer = call(IOMMU_HWPT_ALLOC, &cmd);
    *id = cmd.out_hwpt_id;
    return answer;
  }
  long nested_alloc(u32 device, u32 pt, u32 flags, u32* id, u32 fault = 0) {
    iommu_hwpt_selftest data{.iotlb = kFreshWord};
    auto cmd = hwpt_cmd(device, pt, flags);
    cmd.fault_id = fault;
    cmd.data_type = IOMMU_HWPT_DATA_SELFTEST;
    cmd.data_len = sizeof(data);
    cmd.data_uptr = reinterpret_cast<u64>(&data);
    const long answer = call(IOMMU_HWPT_ALLOC, &cmd);
    *id = cmd.out_hwpt_id;
    return answer;
  }
  long replace(u32 test_device, u32 pt) {
    auto cmd = test_cmd(IOMMU_TEST_OP_MOCK_DOMAIN_REPLACE, test_device);
    cmd.mock_domain_replace.pt_id = pt;
    return call(IOMMU_TEST_CMD, &cmd);
  }
  long viommu_alloc(u32 device, u32 hwpt, u32* id, u32 type = IOMMU_VIOMMU_TYPE_SELFTEST,
                    iommu_viommu_selftest* data = nullptr, u32 bytes = 0) {
    iommu_viommu_alloc cmd{};
    cmd.type = type;
    cmd.dev_id = device;
    cmd.hwpt_id = hwpt;
    cmd.data_uptr = reinterpret_cast<u64>(data);
    cmd.data_len = bytes;
    const long answer = call(IOMMU_VIOMMU_ALLOC, &cmd);
    *id = cmd.out_viommu_id;
    return answer;
  }
  long vdevice_alloc(u32 viommu, u32 device, u64 virtual_id, u32* id) {
    iommu_vdevice_alloc cmd{.size = sizeof(cmd),
                            .viommu_id = viommu,
                            .dev_id = device,
                            .out_vdevice_id = 0,
                            .virt_id = virtual_id};
    const long answer = call(IOMMU_VDEVICE_ALLOC, &cmd);
    *id = cmd.out_vdevice_id;
    return answer;
  }
  long trigger_page_request(u32 device, u32 pasid) {
    auto cmd = test_cmd(IOMMU_TEST_OP_TRIGGER_IOPF, 0);
    cmd.trigger_iopf = {device, pasid, 2, 3, 0xdead000};
    return call(IOMMU_TEST_CMD, &cmd);
  }
  static long read_fd(int fd, void* to, size_t size) {
    const auto done = host::find(fd)->read_bytes(reinterpret_cast<u64>(to), size);
    return done ? *done : -static_cast<long>(to_int(done.error()));
  }
  static constexpr u32 kFreshWord = 0xbadbeef;
};

class ViommuClient : public NewerClient {
 protected:
  void SetUp() override {
    NewerClient::SetUp();
    ioas_ = ioas_alloc();
    mock_ = mock_device(ioas_);
    ASSERT_EQ(hwpt_alloc(mock_.device, ioas_, IOMMU_HWPT_ALLOC_NEST_PARENT, &parent_), 0);
    ASSERT_EQ(viommu_alloc(mock_.device, parent_, &viommu_), 0);
    ASSERT_EQ(nested_alloc(mock_.device, viommu_, 0, &nested_), 0);
  }
  u32 ioas_ = 0, parent_ = 0, viommu_ = 0, nested_ = 0;
  MockDevice mock_{};
};

}  // namespace stagetwo

// SPDX-License-Identifier: Apache-2.0
// PASIDs of a test device by the test command, and page tables made for them.
#include <string>

#include "base/failpoint.h"
#include "tests/unit/abi/iommufd/viommu_client.h"

namespace stagetwo {
namespace {

class TestPasids : public NewerClient {
 protected:
  void SetUp() override {
    NewerClient::SetUp();
    ioas_ = ioas_alloc();
    mock_ = mock_device(ioas_, MOCK_FLAGS_DEVICE_PASID);
    ASSERT_EQ(hwpt_alloc(mock_.device, ioas_, IOMMU_HWPT_ALLOC_NEST_PARENT, &parent_), 0);
    ASSERT_EQ(hwpt_alloc(mock_.device, ioas_, IOMMU_HWPT_ALLOC_PASID, &table_), 0);
    for (u32& one : nested_) {
      ASSERT_EQ(nested_alloc(mock_.device, parent_, IOMMU_HWPT_ALLOC_PASID, &one), 0);
    }
    ASSERT_EQ(replace(mock_.test_device, table_), 0);
  }
  long ask(u32 op, u32 pasid, u32 pt, u32 test_device) {
    auto cmd = test_cmd(op, test_device);
    cmd.pasid_attach = {pasid, pt};
    return call(IOMMU_TEST_CMD, &cmd);
  }
  long attach(u32 pasid, u32 pt) {
    return ask(IOMMU_TEST_OP_PASID_ATTACH, pasid, pt, mock_.test_device);
  }
  long replace_pasid(u32 pasid, u32 pt) {
    return ask(IOMMU_TEST_OP_PASID_REPLACE, pasid, pt, mock_.test_device);
  }
  long detach(u32 pasid) { return ask(IOMMU_TEST_OP_PASID_DETACH, pasid, 0, mock_.test_device); }
  long check(u32 pasid, u32 hwpt) {
    return ask(IOMMU_TEST_OP_PASID_CHECK_HWPT, pasid, hwpt, mock_.test_device);
  }
  u32 ioas_ = 0, parent_ = 0, table_ = 0;
  u32 nested_[2] = {};
  MockDevice mock_{};
};

TEST_F(TestPasids, AreNotThereBefore) {
  abi_iommufd::set_newer_requests(false);
  for (u32 op = IOMMU_TEST_OP_DEV_CHECK_CACHE; op <= IOMMU_TEST_OP_PASID_CHECK_HWPT; ++op) {
    EXPECT_EQ(ask(op, 1, table_, mock_.test_device), -EOPNOTSUPP) << op;
  }
  u32 id = 0;
  EXPECT_EQ(hwpt_alloc(mock_.device, ioas_, IOMMU_HWPT_ALLOC_PASID, &id), -EOPNOTSUPP);
  EXPECT_EQ(nested_alloc(mock_.device, parent_, IOMMU_HWPT_ALLOC_PASID, &id), -EOPNOTSUPP);
  EXPECT_EQ(hwpt_alloc(mock_.device, ioas_, IOMMU_HWPT_FAULT_ID_VALID, &id), -EOPNOTSUPP);
}

TEST_F(TestPasids, AreOfATestDevice) {
  for (u32 op = IOMMU_TEST_OP_PASID_ATTACH; op <= IOMMU_TEST_OP_PASID_CHECK_HWPT; ++op) {
    EXPECT_EQ(ask(op, 1, table_, mock_.device), -ENOENT) << op;
  }
  EXPECT_EQ(detach(100), 0) << "nothing is attached, and nothing is done";
}

TEST_F(TestPasids, OneMeansWhatWasAttachedToIt) {
  EXPECT_EQ(check(100, 0), 0);
  ASSERT_EQ(attach(100, table_), 0);
  EXPECT_EQ(check(100, table_), 0);
  EXPECT_EQ(check(100, 0), -EINVAL);
  EXPECT_EQ(check(100, nested_[0]), -EINVAL);
  EXPECT_EQ(check(100, ioas_), -EINVAL);
  EXPECT_EQ(check(100, 999), -ENOENT);
  EXPECT_EQ(attach(100, nested_[0]), -EBUSY) << "that is a replacement";
  EXPECT_EQ(attach(100, table_), -EBUSY);
  ASSERT_EQ(detach(100), 0);
  EXPECT_EQ(check(100, 0), 0);
  ASSERT_EQ(attach(100, nested_[0]), 0);
  EXPECT_EQ(check(100, nested_[0]), 0);
  EXPECT_EQ(destroy(nested_[0]), -EBUSY);
  ASSERT_EQ(detach(100), 0);
  EXPECT_EQ(destroy(nested_[0]), 0);
}

TEST_F(TestPasids, OnlyTablesMadeForThemAreTaken) {
  EXPECT_EQ(attach(100, parent_), -EINVAL);
  EXPECT_EQ(attach(100, ioas_), -EINVAL);
  EXPECT_EQ(attach(100, 999), -ENOENT);
  EXPECT_EQ(attach(1u << MOCK_PASID_WIDTH, table_), -EINVAL);
  EXPECT_EQ(check(100, 0), 0);
}

TEST_F(TestPasids, TheDevicesOwnTableIsOfTheSameKind) {
  ASSERT_EQ(replace(mock_.test_device, parent_), 0);
  EXPECT_EQ(attach(100, table_), -EINVAL);
  ASSERT_EQ(replace(mock_.test_device, table_), 0);
  ASSERT_EQ(attach(100, nested_[0]), 0);
  EXPECT_EQ(replace(mock_.test_device, parent_), -EINVAL);
  EXPECT_EQ(replace(mock_.test_device, ioas_), -EINVAL) << "its automatic table is of the other";
  ASSERT_EQ(detach(100), 0);
  EXPECT_EQ(replace(mock_.test_device, parent_), 0);
}

TEST_F(TestPasids, AReplacementWantsSomethingToReplace) {
  EXPECT_EQ(replace_pasid(200, table_), -EINVAL);
  ASSERT_EQ(attach(200, table_), 0);
  EXPECT_EQ(replace_pasid(200, ioas_), -EINVAL);
  EXPECT_EQ(check(200, table_), 0);
  for (const u32 one : nested_) {
    EXPECT_EQ(replace_pasid(200, one), 0);
    EXPECT_EQ(check(200, one), 0);
  }
  EXPECT_EQ(replace_pasid(200, nested_[1]), 0) << "the same again";
  EXPECT_EQ(destroy(nested_[0]), 0);
}

// The driver fails the second table it is given for this PASID: nothing has changed.
TEST_F(TestPasids, ADriverMayRefuseAReplacement) {
  constexpr u32 kRefused = IOMMU_TEST_PASID_RESERVED;
  ASSERT_EQ(attach(kRefused, table_), 0);
  EXPECT_EQ(replace_pasid(kRefused, nested_[0]), -ENOMEM);
  EXPECT_EQ(check(kRefused, table_), 0);
  EXPECT_EQ(destroy(nested_[0]), 0) << "nobody uses it";
  EXPECT_EQ(replace_pasid(kRefused, nested_[1]), 0) << "once";
  ASSERT_EQ(detach(kRefused), 0);
  ASSERT_EQ(attach(kRefused, table_), 0) << "a detached one begins anew";
}

TEST_F(TestPasids, PageRequestsOfOneGoToItsTablesQueue) {
  iommu_fault_alloc faults{};
  ASSERT_EQ(call(IOMMU_FAULT_QUEUE_ALLOC, &faults), 0);
  const int fd = static_cast<int>(faults.out_fault_fd);
  u32 asks = 0, refused = 0;
  constexpr u32 kFlags = IOMMU_HWPT_FAULT_ID_VALID | IOMMU_HWPT_ALLOC_PASID;
  EXPECT_EQ(hwpt_alloc(mock_.device, ioas_, kFlags | IOMMU_HWPT_ALLOC_NEST_PARENT, &refused,
                       faults.out_fault_id),
            -EOPNOTSUPP);
  ASSERT_EQ(hwpt_alloc(mock_.device, ioas_, kFlags, &asks, faults.out_fault_id), 0);
  ASSERT_EQ(attach(2048, asks), 0);
  ASSERT_EQ(trigger_page_request(mock_.device, 2048), 0);
  iommu_hwpt_pgfault fault{};
  ASSERT_EQ(read_fd(fd, &fault, sizeof(fault)), static_cast<long>(sizeof(fault)));
  EXPECT_EQ(fault.pasid, 2048u);
  EXPECT_EQ(fault.dev_id, mock_.device);
  ASSERT_EQ(replace_pasid(2048, table_), 0);
  EXPECT_EQ(check(2048, table_), 0);
  EXPECT_EQ(destroy(asks), 0);
  close_fd(fd);
  EXPECT_EQ(destroy(faults.out_fault_id), 0);
}

TEST_F(TestPasids, ADeviceWithoutThemTakesTheirTables) {
  const MockDevice plain = mock_device(ioas_);
  EXPECT_EQ(replace(plain.test_device, nested_[0]), 0);
  EXPECT_EQ(replace(plain.test_device, ioas_), 0);
  EXPECT_EQ(ask(IOMMU_TEST_OP_PASID_ATTACH, 100, parent_, plain.test_device), -EINVAL);
  EXPECT_EQ(ask(IOMMU_TEST_OP_PASID_ATTACH, 100, table_, plain.test_device), -EINVAL)
      << "its own table is of the other kind";
  EXPECT_EQ(replace(plain.test_device, table_), 0);
  EXPECT_EQ(ask(IOMMU_TEST_OP_PASID_ATTACH, 1u << 30, table_, plain.test_device), 0)
      << "it will never send it";
}

TEST_F(TestPasids, GoWithTheDevice) {
  ASSERT_EQ(attach(7, nested_[0]), 0);
  ASSERT_EQ(attach(8, table_), 0);
  EXPECT_EQ(destroy(mock_.test_device), 0);
  EXPECT_EQ(destroy(nested_[0]), 0);
  EXPECT_EQ(destroy(table_), 0);
}

TEST_F(TestPasids, WhatTheClientIsNotToldOfIsUndone) {
  failpoint::sweep([&] {
    const long answer = attach(9, table_);
    failpoint::disarm();
    EXPECT_EQ(check(9, answer == 0 ? table_ : 0), 0);
    EXPECT_EQ(detach(9), 0);
  });
}

}  // namespace
}  // namespace stagetwo

// SPDX-License-Identifier: Apache-2.0
// The descriptor of a fault queue.
#include "tests/unit/abi/iommufd/iommufd_client.h"

namespace stagetwo {
namespace {

class FaultFile : public IommufdClient {
 protected:
  void SetUp() override {
    IommufdClient::SetUp();
    ioas_ = ioas_alloc();
    mock_ = mock_device(ioas_);
    iommu_fault_alloc cmd{};
    ASSERT_EQ(call(IOMMU_FAULT_QUEUE_ALLOC, &cmd), 0);
    queue_ = cmd.out_fault_id;
    queue_fd_ = static_cast<int>(cmd.out_fault_fd);
    auto parent = hwpt_cmd(mock_.device, ioas_, IOMMU_HWPT_ALLOC_NEST_PARENT);
    ASSERT_EQ(call(IOMMU_HWPT_ALLOC, &parent), 0);
    u32 data = 0;
    auto nest = hwpt_cmd(mock_.device, parent.out_hwpt_id, IOMMU_HWPT_FAULT_ID_VALID);
    nest.data_type = IOMMU_HWPT_DATA_SELFTEST;
    nest.data_len = sizeof(data);
    nest.data_uptr = reinterpret_cast<u64>(&data);
    nest.fault_id = 9999;
    EXPECT_EQ(call(IOMMU_HWPT_ALLOC, &nest), -ENOENT);
    nest.fault_id = queue_;
    ASSERT_EQ(call(IOMMU_HWPT_ALLOC, &nest), 0);
    auto replace = test_cmd(IOMMU_TEST_OP_MOCK_DOMAIN_REPLACE, mock_.test_device);
    replace.mock_domain_replace.pt_id = nest.out_hwpt_id;
    ASSERT_EQ(call(IOMMU_TEST_CMD, &replace), 0);
  }
  void TearDown() override {
    if (queue_fd_ >= 0) close_fd(queue_fd_);
    IommufdClient::TearDown();
  }
  void request(u64 address) {
    auto cmd = test_cmd(IOMMU_TEST_OP_TRIGGER_IOPF, 0);
    cmd.trigger_iopf = {mock_.device, 1, 2, 3, address};
    ASSERT_EQ(call(IOMMU_TEST_CMD, &cmd), 0);
  }
  long read(void* to, size_t size) {
    const auto done = host::find(queue_fd_)->read_bytes(reinterpret_cast<u64>(to), size);
    return done ? *done : -static_cast<long>(to_int(done.error()));
  }
  long write(const void* from, size_t size) {
    const auto done = host::find(queue_fd_)->write_bytes(reinterpret_cast<u64>(from), size);
    return done ? *done : -static_cast<long>(to_int(done.error()));
  }

  u32 ioas_ = 0, queue_ = 0;
  int queue_fd_ = -1;
  MockDevice mock_{};
};

TEST_F(FaultFile, IsReadInWholeRequests) {
  iommu_hwpt_pgfault faults[2] = {};
  EXPECT_EQ(read(faults, sizeof(faults)), 0) << "never waits";
  EXPECT_EQ(read(faults, 39), -ESPIPE);
  request(0x1000);
  request(0x2000);
  EXPECT_EQ(read(faults, 0), -EINVAL) << "no room for the first";
  EXPECT_EQ(read(faults, 40), 40);
  EXPECT_EQ(faults[0].addr, 0x1000u);
  EXPECT_EQ(faults[0].pasid, 1u);
  EXPECT_EQ(faults[0].grpid, 2u);
  EXPECT_EQ(faults[0].perm, 3u);
  EXPECT_EQ(faults[0].dev_id, mock_.device);
  EXPECT_EQ(faults[0].flags, u32{IOMMU_PGFAULT_FLAGS_PASID_VALID | IOMMU_PGFAULT_FLAGS_LAST_PAGE});
  EXPECT_EQ(read(nullptr, 40), -EFAULT);
  EXPECT_EQ(read(faults, sizeof(faults)), 40);
  EXPECT_EQ(faults[0].addr, 0x2000u) << "what could not be told is not lost";
}

TEST_F(FaultFile, TakesAnswersToWhatWasRead) {
  request(0x1000);
  iommu_hwpt_pgfault fault{};
  ASSERT_EQ(read(&fault, sizeof(fault)), 40);
  iommu_hwpt_page_response answers[2] = {{fault.cookie, 2}, {77, 0}};
  EXPECT_EQ(write(answers, 7), -ESPIPE);
  EXPECT_EQ(write(answers, 8), -EINVAL) << "no such answer";
  answers[0].code = IOMMUFD_PAGE_RESP_INVALID;
  EXPECT_EQ(write(answers, 16), 8) << "the second is nobody's";
  EXPECT_EQ(write(answers, 8), -EINVAL) << "answered";
}

TEST_F(FaultFile, ItsDescriptorHoldsTheQueue) {
  EXPECT_EQ(destroy(queue_), -EBUSY);
  auto replace = test_cmd(IOMMU_TEST_OP_MOCK_DOMAIN_REPLACE, mock_.test_device);
  replace.mock_domain_replace.pt_id = ioas_;
  ASSERT_EQ(call(IOMMU_TEST_CMD, &replace), 0);
  EXPECT_EQ(destroy(queue_), -EBUSY);
  close_fd(queue_fd_);
  queue_fd_ = -1;
  EXPECT_EQ(destroy(queue_), -EBUSY) << "a page table names it";
}

TEST_F(FaultFile, LivesOnWithoutTheIommufd) {
  request(0x1000);
  close_fd(fd_);
  fd_ = -1;
  iommu_hwpt_pgfault fault{};
  EXPECT_EQ(read(&fault, sizeof(fault)), 40);
}

}  // namespace
}  // namespace stagetwo

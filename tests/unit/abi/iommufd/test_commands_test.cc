// SPDX-License-Identifier: Apache-2.0
// Devices of the test command, and what it can look at.
#include "abi/iommufd/test_uapi.h"
#include "tests/unit/abi/iommufd/iommufd_client.h"

namespace stagetwo {
namespace {

class TestCommands : public IommufdClient {
 protected:
  void SetUp() override {
    IommufdClient::SetUp();
    ioas_ = ioas_alloc();
  }
  long check_map(u32 hwpt, u64 iova, u64 uptr, u64 length) {
    auto cmd = test_cmd(IOMMU_TEST_OP_MD_CHECK_MAP, hwpt);
    cmd.check_map = {iova, length, uptr};
    return call(IOMMU_TEST_CMD, &cmd);
  }
  long check_refs(u64 uptr, u64 length, u32 refs) {
    auto cmd = test_cmd(IOMMU_TEST_OP_MD_CHECK_REFS, 0);
    cmd.check_refs = {length, uptr, refs};
    return call(IOMMU_TEST_CMD, &cmd);
  }
  u32 ioas_ = 0;
  test::GuardedPages memory_{4};
};

TEST_F(TestCommands, UnknownOnesAreNotSupported) {
  for (const u32 op : {0u, 16u, 99u}) {
    auto cmd = test_cmd(op, 0);
    EXPECT_EQ(call(IOMMU_TEST_CMD, &cmd), -EOPNOTSUPP) << op;
  }
}

TEST_F(TestCommands, ADeviceThatCannotBeMadeLeavesNothing) {
  EXPECT_EQ(mock_device(9999).error, -ENOENT);
  EXPECT_EQ(mock_device(ioas_, 8).error, -EINVAL);
  EXPECT_EQ(destroy(ioas_ + 1), -ENOENT);
  EXPECT_EQ(mock_device(ioas_).test_device, ioas_ + 1);
}

TEST_F(TestCommands, SeesFramesAndPins) {
  const auto mock = mock_device(ioas_);
  ASSERT_EQ(map(ioas_, memory_.address(), memory_.bytes(), kAperture), 0);
  EXPECT_EQ(check_map(mock.hwpt, kAperture, memory_.address(), memory_.bytes()), 0);
  EXPECT_EQ(check_map(mock.hwpt, kAperture, memory_.address() + 4096, 4096), -EINVAL);
  EXPECT_EQ(check_map(mock.hwpt, kAperture + 1, memory_.address(), 4096), -EINVAL);
  EXPECT_EQ(check_map(mock.hwpt, kAperture, memory_.address() + memory_.bytes(), 4096), -EFAULT);
  EXPECT_EQ(check_map(ioas_, kAperture, memory_.address(), 4096), -ENOENT);
  EXPECT_EQ(check_refs(memory_.address(), memory_.bytes(), 1), 0);
  EXPECT_EQ(check_refs(memory_.address(), memory_.bytes(), 0), -EIO);
  EXPECT_EQ(check_refs(memory_.address() + 1, 4096, 0), -EINVAL);
  EXPECT_EQ(check_refs(memory_.address() + memory_.bytes(), 4096, 0), -EFAULT);
}

TEST_F(TestCommands, FewPagesAtATimeAreTheSamePages) {
  auto limit = test_cmd(IOMMU_TEST_OP_SET_TEMP_MEMORY_LIMIT, 0);
  limit.memory_limit.limit = 11;
  EXPECT_EQ(call(IOMMU_TEST_CMD, &limit), -EINVAL);
  limit.memory_limit.limit = 16;
  ASSERT_EQ(call(IOMMU_TEST_CMD, &limit), 0);
  const auto mock = mock_device(ioas_);
  ASSERT_EQ(map(ioas_, memory_.address(), memory_.bytes(), kAperture), 0);
  EXPECT_EQ(check_map(mock.hwpt, kAperture, memory_.address(), memory_.bytes()), 0);
  limit.memory_limit.limit = 65536;
  ASSERT_EQ(call(IOMMU_TEST_CMD, &limit), 0);
}

TEST_F(TestCommands, ReservedRangesAreChecked) {
  auto cmd = test_cmd(IOMMU_TEST_OP_ADD_RESERVED, ioas_);
  EXPECT_EQ(call(IOMMU_TEST_CMD, &cmd), -EINVAL);
  cmd.add_reserved = {~u64{0}, 2};
  EXPECT_EQ(call(IOMMU_TEST_CMD, &cmd), -EOVERFLOW);
}

}  // namespace
}  // namespace stagetwo

// SPDX-License-Identifier: Apache-2.0
// The descriptor of an access.
#include <cstring>

#include "tests/unit/abi/iommufd/iommufd_client.h"

namespace stagetwo {
namespace {

class TestAccess : public IommufdClient {
 protected:
  void SetUp() override {
    IommufdClient::SetUp();
    ioas_ = ioas_alloc();
    ASSERT_EQ(map(ioas_, memory_.address(), memory_.bytes(), 0), 0);
  }
  void TearDown() override {
    if (access_ >= 0) close_fd(access_);
    IommufdClient::TearDown();
  }
  long create(u32 flags) {
    auto cmd = test_cmd(IOMMU_TEST_OP_CREATE_ACCESS, ioas_);
    cmd.create_access.flags = flags;
    const long answer = call(IOMMU_TEST_CMD, &cmd);
    if (answer == 0) access_ = static_cast<int>(cmd.create_access.out_access_fd);
    return answer;
  }
  long pin(u64 iova, u64 length, u64 uptr, u32* item = nullptr) {
    auto cmd = test_cmd(IOMMU_TEST_OP_ACCESS_PAGES, static_cast<u32>(access_));
    cmd.access_pages.iova = iova;
    cmd.access_pages.length = length;
    cmd.access_pages.uptr = uptr;
    const long answer = call(IOMMU_TEST_CMD, &cmd);
    if (item != nullptr) *item = cmd.access_pages.out_access_pages_id;
    return answer;
  }
  long unpin(u32 item) {
    auto cmd = test_cmd(IOMMU_TEST_OP_DESTROY_ACCESS_PAGES, static_cast<u32>(access_));
    cmd.destroy_access_pages.access_pages_id = item;
    return call(IOMMU_TEST_CMD, &cmd);
  }
  long transfer(u64 iova, void* buffer, u64 length, u32 flags) {
    auto cmd = test_cmd(IOMMU_TEST_OP_ACCESS_RW, static_cast<u32>(access_));
    cmd.access_rw.iova = iova;
    cmd.access_rw.length = length;
    cmd.access_rw.uptr = reinterpret_cast<u64>(buffer);
    cmd.access_rw.flags = flags;
    return call(IOMMU_TEST_CMD, &cmd);
  }

  u32 ioas_ = 0;
  int access_ = -1;
  test::GuardedPages memory_{4};
};

TEST_F(TestAccess, PinsOnlyIfMadeForIt) {
  EXPECT_EQ(create(2), -EOPNOTSUPP);
  ASSERT_EQ(create(0), 0);
  EXPECT_EQ(pin(0, 4096, memory_.address()), -EOPNOTSUPP);
  access_ = std::exchange(fd_, access_);
  std::swap(access_, fd_);
  auto cmd = test_cmd(IOMMU_TEST_OP_ACCESS_PAGES, static_cast<u32>(fd_));
  EXPECT_EQ(call(IOMMU_TEST_CMD, &cmd), -EBADFD) << "not an access";
  cmd.access_pages.length = (16 << 20) + 1;
  EXPECT_EQ(call(IOMMU_TEST_CMD, &cmd), -ENOMEM);
}

TEST_F(TestAccess, PinsTheVeryPages) {
  ASSERT_EQ(create(MOCK_FLAGS_ACCESS_CREATE_NEEDS_PIN_PAGES), 0);
  u32 first = 0, second = 0;
  EXPECT_EQ(pin(0, 4096, memory_.address() + 4096), -EBADE) << "another page";
  EXPECT_EQ(host::pin_use().pages, 0u);
  ASSERT_EQ(pin(0, 8192, memory_.address(), &first), 0);
  ASSERT_EQ(pin(4096, 4096, memory_.address() + 4096, &second), 0);
  EXPECT_EQ(host::pin_use().pages, 2u);
  EXPECT_EQ(unpin(first), 0);
  EXPECT_EQ(unpin(first), -ENOENT);
  EXPECT_EQ(host::pin_use().pages, 1u);
  EXPECT_EQ(unmap(ioas_, 0, memory_.bytes()), static_cast<long>(memory_.bytes()));
  EXPECT_EQ(unpin(second), -ENOENT) << "the unmap took it";
}

TEST_F(TestAccess, ReadsAndWrites) {
  ASSERT_EQ(create(0), 0);
  u8 bytes[100];
  std::memset(memory_.bytes_at(4090), 3, 100);
  EXPECT_EQ(transfer(4090, bytes, 100, 0), 0);
  EXPECT_EQ(std::memcmp(bytes, memory_.bytes_at(4090), 100), 0);
  std::memset(bytes, 9, sizeof(bytes));
  EXPECT_EQ(transfer(4090, bytes, 100, MOCK_ACCESS_RW_WRITE | MOCK_ACCESS_RW_SLOW_PATH), 0);
  EXPECT_EQ(*memory_.bytes_at(4100), 9);
  EXPECT_EQ(transfer(0, nullptr, 4, 0), -EFAULT);
  EXPECT_EQ(transfer(0, bytes, 4, 8), -EOPNOTSUPP);
  EXPECT_EQ(transfer(memory_.bytes(), bytes, 4, 0), -ENOENT);
}

// The low half is how many areas stand before, the high one how far into the area.
TEST_F(TestAccess, AnAreaIsMeantByItsPlaceInTheOrder) {
  ASSERT_EQ(map(ioas_, memory_.address() + 4096, 8192, 0x100000), 0);
  ASSERT_EQ(create(MOCK_FLAGS_ACCESS_CREATE_NEEDS_PIN_PAGES), 0);
  const auto nth = [](u64 area, u64 offset) { return area | offset << 32; };
  u32 byte = 0;
  *memory_.bytes_at(4096 + 77) = 42;
  EXPECT_EQ(transfer(nth(1, 77), &byte, 1, MOCK_FLAGS_ACCESS_SYZ), 0);
  EXPECT_EQ(byte, 42u);
  EXPECT_EQ(transfer(nth(1, 77), &byte, 1, 0), -ENOENT) << "an IOVA that nobody has";
  *memory_.bytes_at(0) = 7;
  EXPECT_EQ(transfer(nth(2, 77), &byte, 1, MOCK_FLAGS_ACCESS_SYZ), 0) << "no such area: 0";
  EXPECT_EQ(byte, 7u);
  EXPECT_EQ(transfer(nth(1, 77), &byte, 1, MOCK_FLAGS_ACCESS_SYZ << 1), -EOPNOTSUPP);
  auto cmd = test_cmd(IOMMU_TEST_OP_ACCESS_PAGES, static_cast<u32>(access_));
  cmd.access_pages.iova = nth(1, 4096);
  cmd.access_pages.length = 4096;
  cmd.access_pages.uptr = memory_.address() + 8192;
  cmd.access_pages.flags = MOCK_FLAGS_ACCESS_SYZ | MOCK_FLAGS_ACCESS_WRITE;
  EXPECT_EQ(call(IOMMU_TEST_CMD, &cmd), 0) << "the very page";
  EXPECT_EQ(cmd.access_pages.iova, nth(1, 4096)) << "left as it was";
  EXPECT_EQ(unpin(cmd.access_pages.out_access_pages_id), 0);
}

// IOMMU_IOAS_COPY has the same flag, while the test command is there.
TEST_F(TestAccess, TheSourceOfACopyIsMeantByItsPlaceInTheOrder) {
  iommu_ioas_copy cmd{};
  cmd.size = sizeof(cmd);
  cmd.flags = kMapFlags | MOCK_FLAGS_ACCESS_SYZ;
  cmd.dst_ioas_id = cmd.src_ioas_id = ioas_;
  cmd.length = 4096;
  cmd.dst_iova = 0x200000;
  cmd.src_iova = u64{4096} << 32;  // area 0
  EXPECT_EQ(call(IOMMU_IOAS_COPY, &cmd), 0);
  ASSERT_EQ(create(0), 0);
  u8 byte = 0;
  *memory_.bytes_at(4096) = 9;
  EXPECT_EQ(transfer(0x200000, &byte, 1, 0), 0);
  EXPECT_EQ(byte, 9);
  EXPECT_EQ(cmd.flags, kMapFlags) << "the flag is taken off";
  cmd.dst_iova = 0x300000;
  cmd.flags = kMapFlags | MOCK_FLAGS_ACCESS_SYZ;
  abi_iommufd::set_test_commands(false);
  EXPECT_EQ(call(IOMMU_IOAS_COPY, &cmd), -EOPNOTSUPP);
  abi_iommufd::set_test_commands(true);
  cmd.src_ioas_id = 9999;
  EXPECT_EQ(call(IOMMU_IOAS_COPY, &cmd), -ENOENT);
}

TEST_F(TestAccess, KeepsTheIommufdAlive) {
  ASSERT_EQ(create(MOCK_FLAGS_ACCESS_CREATE_NEEDS_PIN_PAGES), 0);
  ASSERT_EQ(pin(0, 4096, memory_.address()), 0);
  close_fd(fd_);
  fd_ = -1;
  EXPECT_EQ(host::pin_use().pages, 1u);
  close_fd(std::exchange(access_, -1));
  EXPECT_EQ(host::pin_use().pages, 0u);
}

}  // namespace
}  // namespace stagetwo

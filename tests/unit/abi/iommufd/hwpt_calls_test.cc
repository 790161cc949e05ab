// SPDX-License-Identifier: Apache-2.0
// Requests on page tables: order of the checks, payloads, the dirty bitmap.
#include <cstring>

#include "tests/unit/abi/iommufd/iommufd_client.h"

namespace stagetwo {
namespace {

class HwptCalls : public IommufdClient {
 protected:
  void SetUp() override {
    IommufdClient::SetUp();
    ioas_ = ioas_alloc();
    mock_ = mock_device(ioas_);
    ASSERT_EQ(mock_.error, 0);
  }
  u32 alloc(u32 pt, u32 flags) {
    auto cmd = hwpt_cmd(mock_.device, pt, flags);
    EXPECT_EQ(call(IOMMU_HWPT_ALLOC, &cmd), 0);
    return cmd.out_hwpt_id;
  }
  u32 ioas_ = 0;
  MockDevice mock_{};
  test::GuardedPages memory_{8};
};

TEST_F(HwptCalls, ChecksInTheKernelsOrder) {
  auto cmd = hwpt_cmd(9999, 9999);
  cmd.data_len = 4;
  EXPECT_EQ(call(IOMMU_HWPT_ALLOC, &cmd), -EINVAL) << "a payload of no type";
  cmd = hwpt_cmd(9999, 9999);
  EXPECT_EQ(call(IOMMU_HWPT_ALLOC, &cmd), -ENOENT);
  cmd = hwpt_cmd(mock_.device, 9999);
  EXPECT_EQ(call(IOMMU_HWPT_ALLOC, &cmd), -EINVAL);
  cmd = hwpt_cmd(mock_.device, mock_.device);
  EXPECT_EQ(call(IOMMU_HWPT_ALLOC, &cmd), -EINVAL);
  cmd = hwpt_cmd(mock_.device, ioas_, IOMMU_HWPT_FAULT_ID_VALID);
  EXPECT_EQ(call(IOMMU_HWPT_ALLOC, &cmd), -EOPNOTSUPP);
  cmd = hwpt_cmd(mock_.device, mock_.hwpt);
  EXPECT_EQ(call(IOMMU_HWPT_ALLOC, &cmd), -EOPNOTSUPP) << "nesting wants a payload";
}

TEST_F(HwptCalls, TellsTheBitmapByteForByte) {
  const u32 hwpt = alloc(ioas_, IOMMU_HWPT_ALLOC_DIRTY_TRACKING);
  ASSERT_EQ(map(ioas_, memory_.address(), memory_.bytes(), kAperture), 0);
  iommu_hwpt_set_dirty_tracking on{sizeof(on), IOMMU_HWPT_DIRTY_TRACKING_ENABLE, hwpt, 0};
  ASSERT_EQ(call(IOMMU_HWPT_SET_DIRTY_TRACKING, &on), 0);
  u8 wrote[2] = {0x81, 0x40};  // pages 0, 7 and 14 of 2 KiB
  auto dirty = test_cmd(IOMMU_TEST_OP_DIRTY, hwpt);
  dirty.dirty.iova = kAperture;
  dirty.dirty.length = memory_.bytes();
  dirty.dirty.page_size = 2048;
  dirty.dirty.uptr = reinterpret_cast<u64>(wrote);
  ASSERT_EQ(call(IOMMU_TEST_CMD, &dirty), 0);
  EXPECT_EQ(dirty.dirty.out_nr_dirty, 3u);
  u8 bits[4] = {0, 0x01, 0, 0xff};
  iommu_hwpt_get_dirty_bitmap get{};
  get.size = sizeof(get);
  get.hwpt_id = hwpt;
  get.flags = IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR;
  get.iova = kAperture;
  get.length = memory_.bytes();
  get.page_size = 2048;
  get.data = reinterpret_cast<u64>(bits);
  for (const u32 flags : {u32{IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR}, 0u}) {
    get.flags = flags;
    EXPECT_EQ(call(IOMMU_HWPT_GET_DIRTY_BITMAP, &get), 0);
    EXPECT_EQ(bits[0], 0x81);
    EXPECT_EQ(bits[1], 0x41) << "other bits stay";
    EXPECT_EQ(bits[3], 0xff) << "beyond the range";
    std::memset(bits, 0, 2);
    bits[1] = 1;
  }
  EXPECT_EQ(call(IOMMU_HWPT_GET_DIRTY_BITMAP, &get), 0);
  EXPECT_EQ(bits[0], 0) << "read once";
  get.page_size = 4096;
  get.iova += 2048;
  EXPECT_EQ(call(IOMMU_HWPT_GET_DIRTY_BITMAP, &get), -EINVAL);
  get.length = 0;
  EXPECT_EQ(call(IOMMU_HWPT_GET_DIRTY_BITMAP, &get), -EINVAL);
  get.hwpt_id = mock_.hwpt;
  get.iova = kAperture;
  get.length = 4096;
  EXPECT_EQ(call(IOMMU_HWPT_GET_DIRTY_BITMAP, &get), -EOPNOTSUPP);
}

TEST_F(HwptCalls, HardwareInformationIsCutOrFilledUp) {
  u8 bytes[16];
  std::memset(bytes, 0xee, sizeof(bytes));
  iommu_hw_info cmd{};
  cmd.size = sizeof(cmd);
  cmd.dev_id = mock_.device;
  cmd.data_uptr = reinterpret_cast<u64>(bytes);
  cmd.data_len = 12;
  EXPECT_EQ(call(IOMMU_GET_HW_INFO, &cmd), 0);
  EXPECT_EQ(cmd.data_len, 8u);
  EXPECT_EQ(cmd.out_data_type, IOMMU_HW_INFO_TYPE_SELFTEST);
  EXPECT_EQ(cmd.out_capabilities, u64{IOMMU_HW_CAP_DIRTY_TRACKING});
  u32 words[4];
  std::memcpy(words, bytes, sizeof(words));
  EXPECT_EQ(words[1], IOMMU_HW_INFO_SELFTEST_REGVAL);
  EXPECT_EQ(words[2], 0u);
  EXPECT_EQ(words[3], 0xeeeeeeeeu);
  cmd.flags = 2;
  EXPECT_EQ(call(IOMMU_GET_HW_INFO, &cmd), -EOPNOTSUPP);
}

// docs/decisions/0050: the suite of 6.12.117 asks for it of test devices, the kernel refuses it.
TEST_F(HwptCalls, WhichInformationIsAskedForByLaterKernelsAndTheSuite) {
  const auto asks = [&](u32 device, u32 type, u32 flags = IOMMU_HW_INFO_FLAG_INPUT_TYPE) {
    iommu_hw_info cmd{};
    cmd.size = sizeof(cmd);
    cmd.flags = flags;
    cmd.dev_id = device;
    cmd.in_data_type = type;
    return call(IOMMU_GET_HW_INFO, &cmd);
  };
  constexpr u32 kOwn = IOMMU_HW_INFO_TYPE_SELFTEST, kOther = IOMMU_HW_INFO_TYPE_INTEL_VTD;
  EXPECT_EQ(asks(mock_.device, kOwn), 0);
  abi_iommufd::set_test_commands(false);
  EXPECT_EQ(asks(mock_.device, kOwn), -EOPNOTSUPP);
  EXPECT_EQ(asks(9999, kOwn), -EOPNOTSUPP) << "before the device";
  EXPECT_EQ(asks(mock_.device, kOther, 0), 0) << "the type is then an answer";
  abi_iommufd::set_newer_requests(true);
  EXPECT_EQ(asks(mock_.device, kOwn), 0);
  EXPECT_EQ(asks(mock_.device, kOther), -EOPNOTSUPP) << "of another unit";
  abi_iommufd::set_newer_requests(false);
  abi_iommufd::set_test_commands(true);
}

// The test device's driver looks at the nested table alone, which tells nothing of what is written.
TEST_F(HwptCalls, ADeviceThatCannotTellTakesATableOnAParentThatDoes) {
  const MockDevice blunt = mock_device(ioas_, MOCK_FLAGS_DEVICE_NO_DIRTY);
  const u32 parent = alloc(ioas_, IOMMU_HWPT_ALLOC_NEST_PARENT | IOMMU_HWPT_ALLOC_DIRTY_TRACKING);
  iommu_hwpt_selftest data{1};
  auto nest = hwpt_cmd(mock_.device, parent);
  nest.data_type = IOMMU_HWPT_DATA_SELFTEST;
  nest.data_len = sizeof(data);
  nest.data_uptr = reinterpret_cast<u64>(&data);
  ASSERT_EQ(call(IOMMU_HWPT_ALLOC, &nest), 0);
  auto replace = test_cmd(IOMMU_TEST_OP_MOCK_DOMAIN_REPLACE, blunt.test_device);
  replace.mock_domain_replace.pt_id = parent;
  EXPECT_EQ(call(IOMMU_TEST_CMD, &replace), -EINVAL);
  replace.mock_domain_replace.pt_id = nest.out_hwpt_id;
  EXPECT_EQ(call(IOMMU_TEST_CMD, &replace), 0);
}

TEST_F(HwptCalls, InvalidationSaysHowFarItCame) {
  const u32 parent = alloc(ioas_, IOMMU_HWPT_ALLOC_NEST_PARENT);
  iommu_hwpt_selftest data{0xbadbeef};
  auto nest = hwpt_cmd(mock_.device, parent);
  nest.data_type = IOMMU_HWPT_DATA_SELFTEST;
  nest.data_len = sizeof(data);
  nest.data_uptr = reinterpret_cast<u64>(&data);
  ASSERT_EQ(call(IOMMU_HWPT_ALLOC, &nest), 0);
  iommu_hwpt_invalidate_selftest entries[2] = {{0, 1}, {0, 4}};
  iommu_hwpt_invalidate cmd{};
  cmd.size = sizeof(cmd);
  cmd.hwpt_id = nest.out_hwpt_id;
  cmd.data_uptr = reinterpret_cast<u64>(entries);
  cmd.data_type = IOMMU_HWPT_INVALIDATE_DATA_SELFTEST;
  cmd.entry_len = sizeof(entries[0]);
  cmd.entry_num = 2;
  EXPECT_EQ(call(IOMMU_HWPT_INVALIDATE, &cmd), -EINVAL);
  EXPECT_EQ(cmd.entry_num, 1u);
  auto check = test_cmd(IOMMU_TEST_OP_MD_CHECK_IOTLB, nest.out_hwpt_id);
  check.check_iotlb = {1, 0};
  EXPECT_EQ(call(IOMMU_TEST_CMD, &check), 0);
  check.check_iotlb = {0, 0xbadbeef};
  EXPECT_EQ(call(IOMMU_TEST_CMD, &check), 0);
  cmd.hwpt_id = parent;
  cmd.entry_num = 1;
  EXPECT_EQ(call(IOMMU_HWPT_INVALIDATE, &cmd), -ENOENT);
  EXPECT_EQ(cmd.entry_num, 0u);
}

}  // namespace
}  // namespace stagetwo

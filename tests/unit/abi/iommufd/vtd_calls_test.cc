// SPDX-License-Identifier: Apache-2.0
// A device in VT-d's tables by the ioctls: what its unit says it is, and a guest's first level that
// is nested, changed and invalidated.
#include <cstring>

#include "base/bits.h"
#include "iommu/dma_engine.h"
#include "iommu/iommufd.h"
#include "iommu/locked.h"
#include "tests/unit/abi/iommufd/iommufd_client.h"

namespace stagetwo {
namespace {

class VtdCalls : public IommufdClient {
 protected:
  void SetUp() override {
    IommufdClient::SetUp();
    iommufd_ = iommu::find_iommufd(fd_);
    ASSERT_TRUE(iommufd_);
    ioas_ = ioas_alloc();
    iommu::Locked locked(iommufd_->context());
    device_ =
        (*locked.make_vtd_device({.source = SourceId{0x80}, .max_pasid_lg2 = 10, .levels = 4}))
            ->object.id;
  }
  void TearDown() override {
    {
      iommu::Locked locked(iommufd_->context());
      locked.detach_all(**locked.find<iommu::Device>(device_));
    }
    iommufd_.reset();
    IommufdClient::TearDown();
  }
  u32 alloc(u32 flags) {
    auto cmd = hwpt_cmd(device_, ioas_, flags);
    EXPECT_EQ(call(IOMMU_HWPT_ALLOC, &cmd), 0);
    return cmd.out_hwpt_id;
  }
  long nest(u32 parent, iommu_hwpt_vtd_s1* guest, u32* out = nullptr, u32 flags = 0) {
    auto cmd = hwpt_cmd(device_, parent, flags);
    cmd.data_type = IOMMU_HWPT_DATA_VTD_S1;
    cmd.data_len = sizeof(*guest);
    cmd.data_uptr = reinterpret_cast<u64>(guest);
    const long answer = call(IOMMU_HWPT_ALLOC, &cmd);
    if (out != nullptr) *out = cmd.out_hwpt_id;
    return answer;
  }
  long invalidate(u32 hwpt, iommu_hwpt_vtd_s1_invalidate* entries, u32* count) {
    iommu_hwpt_invalidate cmd{};
    cmd.size = sizeof(cmd);
    cmd.hwpt_id = hwpt;
    cmd.data_uptr = reinterpret_cast<u64>(entries);
    cmd.data_type = IOMMU_HWPT_INVALIDATE_DATA_VTD_S1;
    cmd.entry_len = sizeof(*entries);
    cmd.entry_num = *count;
    const long answer = call(IOMMU_HWPT_INVALIDATE, &cmd);
    *count = cmd.entry_num;
    return answer;
  }
  void put(u64 page, u64 index, u64 word) {
    std::memcpy(memory_.bytes_at(page * kPageSize + index * 8), &word, 8);
  }

  sync::Ref<iommu::Iommufd> iommufd_;
  u32 ioas_ = 0, device_ = 0;
  test::GuardedPages memory_{8};
};

TEST_F(VtdCalls, TheUnitTellsWhatItHas) {
  iommu_hw_info_vtd info{};
  iommu_hw_info cmd{};
  cmd.size = sizeof(cmd);
  cmd.dev_id = device_;
  cmd.data_uptr = reinterpret_cast<u64>(&info);
  cmd.data_len = sizeof(info);
  ASSERT_EQ(call(IOMMU_GET_HW_INFO, &cmd), 0);
  EXPECT_EQ(cmd.out_data_type, IOMMU_HW_INFO_TYPE_INTEL_VTD);
  EXPECT_EQ(cmd.data_len, sizeof(info));
  EXPECT_EQ(cmd.out_max_pasid_log2, 10);
  EXPECT_EQ(get_field(info.cap_reg, 12, 8), 6u) << "39 and 48 bits of addresses";
  EXPECT_EQ(get_field(info.cap_reg, 37, 34), 3u) << "2 MiB and 1 GiB";
  for (const unsigned has : {1u, 26u, 29u, 40u, 43u, 45u, 46u, 47u}) {
    EXPECT_NE(info.ecap_reg & bit(has), 0u) << has;
  }
  EXPECT_EQ(get_field(info.ecap_reg, 39, 35), 9u) << "10 bits of PASIDs";
  cmd.flags = IOMMU_HW_INFO_FLAG_INPUT_TYPE;
  cmd.in_data_type = IOMMU_HW_INFO_TYPE_SELFTEST;
  EXPECT_EQ(call(IOMMU_GET_HW_INFO, &cmd), -EOPNOTSUPP);
}

// A bit for each 2^49 bytes and more: all of them are one part of the walk, which then ends.
TEST_F(VtdCalls, ABitmapMayBeAsCoarseAsAnIovaIsLong) {
  constexpr u64 kFar = u64{1} << 50;
  u32 hwpt = 0;
  {
    iommu::Locked locked(iommufd_->context());
    auto* const wide = *locked.make_vtd_device({.source = SourceId{0x81}, .levels = 5});
    auto* const table =
        *locked.make_hwpt(**locked.find<iommu::Ioas>(ioas_), *wide, {.dirty = true});
    hwpt = table->object.id;
    ASSERT_TRUE(locked.set_dirty_tracking(*table, true));
  }
  ASSERT_EQ(map(ioas_, memory_.address(), 4096, kFar), 0);
  for (const unsigned shift : {48u, 49u, 50u}) {
    {
      iommu::Locked locked(iommufd_->context());
      ASSERT_TRUE(
          iommu::set_dirty(locked.arena(), (*locked.find<iommu::Hwpt>(hwpt))->domain, kFar));
    }
    u8 bits = 0;
    iommu_hwpt_get_dirty_bitmap get{};
    get.size = sizeof(get);
    get.hwpt_id = hwpt;
    get.iova = kFar;
    get.length = get.page_size = u64{1} << shift;
    get.data = reinterpret_cast<u64>(&bits);
    EXPECT_EQ(call(IOMMU_HWPT_GET_DIRTY_BITMAP, &get), 0) << shift;
    EXPECT_EQ(bits, 1) << shift;
  }
}

TEST_F(VtdCalls, NestingIsCheckedInTheKernelsOrder) {
  iommu_hwpt_vtd_s1 guest{};
  guest.addr_width = 48;
  const u32 plain = alloc(0), parent = alloc(IOMMU_HWPT_ALLOC_NEST_PARENT);
  EXPECT_EQ(nest(9999, &guest), -EINVAL);
  EXPECT_EQ(nest(ioas_, &guest), -EOPNOTSUPP);
  EXPECT_EQ(nest(plain, &guest, nullptr, IOMMU_HWPT_ALLOC_DIRTY_TRACKING), -EOPNOTSUPP);
  EXPECT_EQ(nest(plain, &guest), -EINVAL) << "not made to be nested on";
  // What the guest says is taken, and judged when the device is to walk it.
  struct Row {
    u64 flags;
    u32 width;
    int error;
  };
  for (const Row& row : {Row{IOMMU_VTD_S1_SRE, 48, EINVAL}, Row{IOMMU_VTD_S1_EAFE, 48, EINVAL},
                         Row{0, 39, EINVAL}, Row{0, 57, EINVAL}, Row{IOMMU_VTD_S1_WPE, 48, 0}}) {
    u32 id = 0;
    guest.flags = row.flags;
    guest.addr_width = row.width;
    ASSERT_EQ(nest(parent, &guest, &id), 0);
    {
      iommu::Locked locked(iommufd_->context());
      auto& device = **locked.find<iommu::Device>(device_);
      const auto attached = locked.attach(device, &id);
      EXPECT_EQ(attached ? 0 : to_int(attached.error()), row.error)
          << row.flags << ", " << row.width;
      locked.detach_all(device);
    }
    EXPECT_EQ(destroy(id), 0);
  }
  guest = {.flags = 0, .pgtbl_addr = 0, .addr_width = 48, .__reserved = 0};
  const MockDevice mock = mock_device(ioas_alloc());
  auto foreign = hwpt_cmd(mock.device, parent);
  foreign.data_type = IOMMU_HWPT_DATA_VTD_S1;
  foreign.data_len = sizeof(guest);
  foreign.data_uptr = reinterpret_cast<u64>(&guest);
  EXPECT_EQ(call(IOMMU_HWPT_ALLOC, &foreign), -EINVAL) << "a parent of another unit";
  foreign.data_type = IOMMU_HWPT_DATA_SELFTEST;
  EXPECT_EQ(call(IOMMU_HWPT_ALLOC, &foreign), -EINVAL);
  EXPECT_EQ(destroy(mock.test_device), 0);
  EXPECT_EQ(nest(parent, &guest, nullptr, IOMMU_HWPT_FAULT_ID_VALID), -ENOENT);
  EXPECT_EQ(nest(parent, reinterpret_cast<iommu_hwpt_vtd_s1*>(16)), -EFAULT);
  auto cmd = hwpt_cmd(device_, parent);
  cmd.data_type = IOMMU_HWPT_DATA_SELFTEST;
  cmd.data_len = 4;
  cmd.data_uptr = reinterpret_cast<u64>(&guest);
  EXPECT_EQ(call(IOMMU_HWPT_ALLOC, &cmd), -EOPNOTSUPP);
  cmd.data_type = IOMMU_HWPT_DATA_VTD_S1;
  EXPECT_EQ(call(IOMMU_HWPT_ALLOC, &cmd), -EINVAL) << "too short";
  u32 nested = 0;
  ASSERT_EQ(nest(parent, &guest, &nested), 0);
  EXPECT_EQ(destroy(parent), -EBUSY);
  EXPECT_EQ(nest(nested, &guest), -EINVAL);
  for (const u32 id : {nested, parent, plain}) EXPECT_EQ(destroy(id), 0);
}

// What a test device's own driver answers (get_md_pagetable() and its like: EINVAL where the
// operations are another's), each with arguments that would be right for one.
TEST_F(VtdCalls, WhatATestDevicesDriverAnswersIsRefused) {
  const u32 plain = alloc(IOMMU_HWPT_ALLOC_DIRTY_TRACKING);
  const u32 parent = alloc(IOMMU_HWPT_ALLOC_NEST_PARENT);
  ASSERT_EQ(map(ioas_, memory_.address(), kPageSize, 0), 0);
  iommu_hwpt_set_dirty_tracking tracking{};
  tracking.hwpt_id = plain;
  tracking.flags = IOMMU_HWPT_DIRTY_TRACKING_ENABLE;
  ASSERT_EQ(call(IOMMU_HWPT_SET_DIRTY_TRACKING, &tracking), 0);
  iommu_hwpt_vtd_s1 guest{.flags = 0, .pgtbl_addr = 0, .addr_width = 48, .__reserved = 0};
  u32 nested = 0;
  ASSERT_EQ(nest(parent, &guest, &nested), 0);

  auto map_check = test_cmd(IOMMU_TEST_OP_MD_CHECK_MAP, plain);
  map_check.check_map.length = kPageSize;
  map_check.check_map.uptr = memory_.address();
  EXPECT_EQ(call(IOMMU_TEST_CMD, &map_check), -EINVAL);
  map_check.id = nested;
  EXPECT_EQ(call(IOMMU_TEST_CMD, &map_check), -ENOENT) << "looked for by its kind first";

  u64 bitmap = 1;
  auto dirty = test_cmd(IOMMU_TEST_OP_DIRTY, plain);
  dirty.dirty.length = dirty.dirty.page_size = kPageSize;
  dirty.dirty.uptr = reinterpret_cast<u64>(&bitmap);
  EXPECT_EQ(call(IOMMU_TEST_CMD, &dirty), -EINVAL);

  auto iotlb = test_cmd(IOMMU_TEST_OP_MD_CHECK_IOTLB, nested);
  EXPECT_EQ(call(IOMMU_TEST_CMD, &iotlb), -EINVAL);
  iotlb.id = plain;
  EXPECT_EQ(call(IOMMU_TEST_CMD, &iotlb), -ENOENT);

  auto fault = test_cmd(IOMMU_TEST_OP_TRIGGER_IOPF, 0);
  fault.trigger_iopf.dev_id = device_;
  EXPECT_EQ(call(IOMMU_TEST_CMD, &fault), -EINVAL);
  for (const u32 id : {nested, parent, plain}) EXPECT_EQ(destroy(id), 0);
}

// What the device has cached of a guest's table goes when the guest says so, and not before.
TEST_F(VtdCalls, AGuestInvalidatesWhatItHasChanged) {
  constexpr u64 kAll = 7, kAt = 3 * kPageSize;  // present, writable, user
  const u32 parent = alloc(IOMMU_HWPT_ALLOC_NEST_PARENT);
  ASSERT_EQ(map(ioas_, memory_.address(), memory_.bytes(), 0), 0);
  for (const u64 level : {u64{0}, u64{1}, u64{2}}) put(level, 0, (level + 1) * kPageSize | kAll);
  put(3, 3, 5 * kPageSize | kAll);
  *memory_.bytes_at(5 * kPageSize) = 0x55;
  *memory_.bytes_at(6 * kPageSize) = 0x66;
  iommu_hwpt_vtd_s1 guest{.flags = 0, .pgtbl_addr = 0, .addr_width = 48, .__reserved = 0};
  u32 nested = 0;
  ASSERT_EQ(nest(parent, &guest, &nested), 0);
  {
    iommu::Locked locked(iommufd_->context());
    u32 pt = nested;
    ASSERT_TRUE(locked.attach(**locked.find<iommu::Device>(device_), &pt));
  }
  {
    const auto engine = *iommu::DmaEngine::make(iommufd_->context(), device_);
    const auto seen = [&] {
      u8 value = 0;
      static_cast<void>(engine->access(iommu::kNoPasid, kAt, 1, &value, nullptr));
      return value;
    };
    EXPECT_EQ(seen(), 0x55);
    put(3, 3, 6 * kPageSize | kAll);
    EXPECT_EQ(seen(), 0x55) << "known";
    iommu_hwpt_vtd_s1_invalidate entries[3] = {
        {.addr = 0, .npages = 2, .flags = 0, .__reserved = 0},
        {.addr = kAt, .npages = 1, .flags = IOMMU_VTD_INV_FLAGS_LEAF, .__reserved = 0},
        {.addr = kAt + 1, .npages = 1, .flags = 0, .__reserved = 0}};
    u32 count = 1;
    EXPECT_EQ(invalidate(nested, entries, &count), 0);
    EXPECT_EQ(seen(), 0x55) << "others were meant";
    count = 3;
    EXPECT_EQ(invalidate(nested, entries, &count), -EINVAL);
    EXPECT_EQ(count, 2u);
    EXPECT_EQ(seen(), 0x66);
    entries[0] = {.addr = 0, .npages = ~u64{0}, .flags = 0, .__reserved = 0};
    put(3, 3, 0);
    count = 1;
    EXPECT_EQ(invalidate(nested, entries, &count), 0);
    EXPECT_EQ(seen(), 0) << "everything";
    entries[0].addr = kPageSize;
    EXPECT_EQ(invalidate(nested, entries, &count), -EINVAL);
    entries[0] = {.addr = 0, .npages = 1, .flags = 2, .__reserved = 0};
    count = 1;
    EXPECT_EQ(invalidate(nested, entries, &count), -EOPNOTSUPP);
    EXPECT_EQ(invalidate(parent, entries, &count), -ENOENT);
  }
}

}  // namespace
}  // namespace stagetwo

// SPDX-License-Identifier: Apache-2.0
// VFIO's own requests on an iommufd.
#include <linux/vfio.h>

#include <vector>

#include "tests/unit/abi/iommufd/iommufd_client.h"

namespace stagetwo {
namespace {

class VfioCompat : public IommufdClient {
 protected:
  void SetUp() override {
    IommufdClient::SetUp();
    ioas_ = ioas_alloc();
  }
  void use_ioas() {
    iommu_vfio_ioas cmd{sizeof(cmd), ioas_, IOMMU_VFIO_IOAS_SET, 0};
    ASSERT_EQ(call(IOMMU_VFIO_IOAS, &cmd), 0);
  }
  long number(unsigned long request, u64 arg) { return host::find(fd_)->ioctl(fd_, request, arg); }
  long map_dma(u64 iova, u64 size) {
    vfio_iommu_type1_dma_map cmd{sizeof(cmd), VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
                                 memory_.address(), iova, size};
    return ask(fd_, VFIO_IOMMU_MAP_DMA, &cmd);
  }
  long unmap_dma(u64 iova, u64 size, u32 flags = 0) {
    vfio_iommu_type1_dma_unmap cmd{};
    cmd.argsz = sizeof(cmd);
    cmd.flags = flags;
    cmd.iova = iova;
    cmd.size = size;
    const long answer = ask(fd_, VFIO_IOMMU_UNMAP_DMA, &cmd);
    unmapped_ = cmd.size;
    return answer;
  }
  u32 ioas_ = 0;
  u64 unmapped_ = 0;
  test::GuardedPages memory_{4};
};

TEST_F(VfioCompat, WantsAnIoasAfterTheArguments) {
  EXPECT_EQ(number(VFIO_GET_API_VERSION, 0), 0);
  EXPECT_EQ(number(VFIO_CHECK_EXTENSION, VFIO_TYPE1v2_IOMMU), 1);
  EXPECT_EQ(number(VFIO_CHECK_EXTENSION, VFIO_TYPE1_NESTING_IOMMU), 0);
  EXPECT_EQ(number(VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU), -ENODEV);
  EXPECT_EQ(number(VFIO_SET_IOMMU, 77), -EINVAL);
  EXPECT_EQ(map_dma(0, 4096), -ENODEV);
  EXPECT_EQ(unmap_dma(0, 4096), -ENODEV);
  EXPECT_EQ(unmap_dma(0, 4096, 0x80), -EINVAL);
  iommu_vfio_ioas get{sizeof(get), 0, IOMMU_VFIO_IOAS_GET, 0};
  EXPECT_EQ(call(IOMMU_VFIO_IOAS, &get), -ENODEV);
  use_ioas();
  EXPECT_EQ(call(IOMMU_VFIO_IOAS, &get), 0);
  EXPECT_EQ(get.ioas_id, ioas_);
  EXPECT_EQ(destroy(ioas_), 0);
  EXPECT_EQ(call(IOMMU_VFIO_IOAS, &get), -ENODEV) << "it goes with the IOAS";
}

TEST_F(VfioCompat, TypeOneCutsAndTypeOneV2DoesNot) {
  use_ioas();
  ASSERT_EQ(number(VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU), 0);
  ASSERT_EQ(map_dma(0, 4 * 4096), 0);
  EXPECT_EQ(unmap_dma(4096, 4096), -ENOENT);
  EXPECT_EQ(unmapped_, 0u);
  EXPECT_EQ(unmap_dma(0x100000, 4096), 0) << "nothing is no error";
  EXPECT_EQ(unmapped_, 0u);
  EXPECT_EQ(unmap_dma(0, 1, VFIO_DMA_UNMAP_FLAG_ALL), -EINVAL);
  EXPECT_EQ(unmap_dma(0, 0, VFIO_DMA_UNMAP_FLAG_ALL), 0);
  EXPECT_EQ(unmapped_, 4u * 4096);
  ASSERT_EQ(number(VFIO_SET_IOMMU, VFIO_TYPE1_IOMMU), 0);
  ASSERT_EQ(map_dma(0, 4 * 4096), 0);
  EXPECT_EQ(unmap_dma(4096, 4096), 0);
  EXPECT_EQ(unmapped_, 4096u);
  EXPECT_EQ(map_dma(4096, 4096), 0);
  EXPECT_EQ(unmap_dma(0, 4 * 4096), 0);
}

TEST_F(VfioCompat, InformationNeverPassesTheRoom) {
  use_ioas();
  ASSERT_EQ(mock_device(ioas_).error, 0);
  std::vector<u8> bytes(256, 0xee);
  auto* const info = reinterpret_cast<vfio_iommu_type1_info*>(bytes.data());
  info->argsz = sizeof(*info);
  ASSERT_EQ(ask(fd_, VFIO_IOMMU_GET_INFO, info), 0);
  const u32 whole = info->argsz;
  EXPECT_GT(whole, sizeof(*info));
  EXPECT_EQ(info->cap_offset, 0u);
  EXPECT_EQ(info->iova_pgsizes, 4096u);
  for (u32 room = 16; room <= whole; ++room) {
    std::fill(bytes.begin(), bytes.end(), u8{0xee});
    info->argsz = room;
    ASSERT_EQ(ask(fd_, VFIO_IOMMU_GET_INFO, info), 0);
    EXPECT_EQ(info->argsz, whole);
    for (size_t i = room; i < bytes.size(); ++i) ASSERT_EQ(bytes[i], 0xee) << room << " " << i;
  }
  EXPECT_EQ(info->cap_offset, sizeof(*info));
  auto* const avail =
      reinterpret_cast<vfio_iommu_type1_info_dma_avail*>(bytes.data() + info->cap_offset);
  EXPECT_EQ(avail->header.id, VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL);
  auto* const ranges =
      reinterpret_cast<vfio_iommu_type1_info_cap_iova_range*>(bytes.data() + avail->header.next);
  ASSERT_EQ(ranges->nr_iovas, 1u);
  EXPECT_EQ(ranges->iova_ranges[0].start, kAperture);
  EXPECT_EQ(ranges->iova_ranges[0].end, (u64{1} << 31) - 1);
  info->argsz = 15;
  EXPECT_EQ(ask(fd_, VFIO_IOMMU_GET_INFO, info), -EINVAL);
}

}  // namespace
}  // namespace stagetwo

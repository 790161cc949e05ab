// SPDX-License-Identifier: Apache-2.0
#include "tests/unit/abi/vfio/vfio_client.h"

namespace stagetwo {
namespace {

using ContainerFile = VfioClient;

TEST_F(ContainerFile, SaysWhatItCan) {
  EXPECT_EQ(ask(container_, VFIO_GET_API_VERSION), VFIO_API_VERSION);
  const auto can = [&](unsigned long what) {
    return host::find(container_)->ioctl(container_, VFIO_CHECK_EXTENSION, what);
  };
  for (const u64 there : {u64{VFIO_TYPE1_IOMMU}, u64{VFIO_TYPE1v2_IOMMU}, u64{VFIO_UNMAP_ALL}}) {
    EXPECT_EQ(can(there), 1) << there;
  }
  for (const u64 missing :
       {u64{VFIO_SPAPR_TCE_IOMMU}, u64{VFIO_UPDATE_VADDR}, u64{VFIO_NOIOMMU_IOMMU}}) {
    EXPECT_EQ(can(missing), 0) << missing;
  }
}

TEST_F(ContainerFile, TellsHowManyMapsAreLeft) {
  join();
  ASSERT_EQ(map(kIova, 1), 0);
  struct {
    vfio_iommu_type1_info info;
    u8 room[128];
  } answer{};
  answer.info.argsz = sizeof(answer.info);
  ASSERT_EQ(ask(container_, VFIO_IOMMU_GET_INFO, &answer), 0);
  EXPECT_EQ(answer.info.cap_offset, 0u) << "there was no room";
  ASSERT_EQ(ask(container_, VFIO_IOMMU_GET_INFO, &answer), 0);
  const u8* const base = reinterpret_cast<const u8*>(&answer);
  auto* cap = reinterpret_cast<const vfio_info_cap_header*>(base + answer.info.cap_offset);
  EXPECT_EQ(cap->id, VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION);
  cap = reinterpret_cast<const vfio_info_cap_header*>(base + cap->next);
  EXPECT_EQ(cap->id, VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL);
  EXPECT_EQ(reinterpret_cast<const vfio_iommu_type1_info_dma_avail*>(cap)->avail, 65534u);
  EXPECT_EQ(cap->next, 0u) << "no domain, no ranges";
}

TEST_F(ContainerFile, AnUnmapOfNothingIsZeroBytes) {
  join();
  vfio_iommu_type1_dma_unmap cmd{
      .argsz = sizeof(cmd), .flags = 0, .iova = kIova, .size = 8 * kPageSize};
  EXPECT_EQ(ask(container_, VFIO_IOMMU_UNMAP_DMA, &cmd), 0);
  EXPECT_EQ(cmd.size, 0u);
  ASSERT_EQ(map(kIova, 4), 0);
  cmd.size = kPageSize;
  EXPECT_EQ(ask(container_, VFIO_IOMMU_UNMAP_DMA, &cmd), -EINVAL);
  EXPECT_EQ(cmd.size, kPageSize) << "what is refused answers nothing";
}

TEST_F(ContainerFile, Version1TracksNothing) {
  join(VFIO_TYPE1_IOMMU);
  EXPECT_EQ(ask(container_, VFIO_IOMMU_DIRTY_PAGES, nullptr), -EACCES);
}

}  // namespace
}  // namespace stagetwo

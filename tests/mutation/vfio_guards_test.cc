// SPDX-License-Identifier: Apache-2.0
// I7 of the isolation matrix: where an invalidation is dropped, I5 and I6 see it. An address that
// is taken away and given again leads to the old page, and a device that has its caches goes on
// writing to what was unmapped.
#include "tests/mutation/broken_without.h"
#include "tests/unit/vfio/container_world.h"
#include "vfio/dma.h"

namespace stagetwo::vfio {
namespace {

// Made in the child that looks.
struct Scene : ContainerWorld {
  Scene() {
    SetUp();
    start(4);
  }
  void TestBody() override {}

  // I6: is a write to what is mapped now lost, or in another page?
  bool writes_an_old_page() {
    Dma dma;
    if (!dma.connect(container_.clone(), group(4))) return false;
    const u8 value = 0x40;
    for (unsigned round = 0; round < 100; ++round) {
      const u64 page = round % 2;
      u8& here = *memory_.bytes_at(page * kPageSize);
      if (map(kIova, 1, page) != 0) return false;
      if (dma.write(kIova, &value, 1).done != 1) return true;
      if (here != value || *memory_.bytes_at((1 - page) * kPageSize) != 0) return true;
      here = 0;
      if (unmap(kIova, 1) != s64{kPageSize}) return false;
    }
    return false;
  }
  // I5: does a write land behind the unmap?
  bool writes_behind_the_unmap() {
    Dma dma;
    if (!dma.connect(container_.clone(), group(4))) return false;
    const u8 value = 0x40;
    if (map(kIova) != 0 || dma.write(kIova, &value, 1).done != 1) return false;
    if (unmap(kIova, 1) != s64{kPageSize}) return false;
    return dma.write(kIova, &value, 1).done != 0;
  }
};

bool an_old_page_is_written() {
  Scene scene;
  return scene.writes_an_old_page();
}
bool a_write_lands_behind_the_unmap() {
  Scene scene;
  return scene.writes_behind_the_unmap();
}

TEST(VfioGuards, I7WithoutTheDeviceTlbsInvalidationI5AndI6Fail) {
  EXPECT_FALSE(test::broken_without({}, an_old_page_is_written));
  EXPECT_FALSE(test::broken_without({}, a_write_lands_behind_the_unmap));
  EXPECT_TRUE(test::broken_without({"iommu_device_tlb"}, an_old_page_is_written));
  EXPECT_TRUE(test::broken_without({"iommu_device_tlb"}, a_write_lands_behind_the_unmap));
}

TEST(VfioGuards, I7WithoutTheIotlbsInvalidationI6Fails) {
  EXPECT_TRUE(test::broken_without({"iommu_iotlb"}, an_old_page_is_written));
}

}  // namespace
}  // namespace stagetwo::vfio

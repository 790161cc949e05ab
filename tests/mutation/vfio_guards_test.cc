// SPDX-License-Identifier: Apache-2.0
// I7 of the isolation matrix: where an invalidation is dropped, I5 and I6 see it. An address that
// is taken away and given again leads to the old page, and a device that has its caches goes on
// writing to what was unmapped.
#include "tests/mutation/broken_without.h"
#include "tests/unit/vfio/container_world.h"
#include "vfio/dma.h"

namespace stagetwo::vfio {
namespace {

struct Client : ContainerWorld {
  Client() { SetUp(); }
  void TestBody() override {}
  u8& byte(u64 page) { return *memory_.bytes_at(page * kPageSize); }
};

// I6: does a write land in another page than the one that is mapped now?
bool an_old_page_is_written() {
  Client client;
  client.start(4);
  Dma dma;
  if (!dma.connect(client.container_.clone(), Client::group(4))) return false;
  const u8 value = 0x40;
  for (unsigned round = 0; round < 100; ++round) {
    const u64 page = round % 2;
    if (client.map(Client::kIova, 1, page) != 0) return false;
    if (dma.write(Client::kIova, &value, 1).done != 1) return false;
    if (client.byte(page) != value || client.byte(1 - page) != 0) return true;
    client.byte(page) = 0;
    if (client.unmap(Client::kIova, 1) != s64{kPageSize}) return false;
  }
  return false;
}

// I5: does a write land behind the unmap?
bool a_write_lands_behind_the_unmap() {
  Client client;
  client.start(4);
  Dma dma;
  if (!dma.connect(client.container_.clone(), Client::group(4))) return false;
  const u8 value = 0x40;
  if (client.map(Client::kIova) != 0 || dma.write(Client::kIova, &value, 1).done != 1) return false;
  if (client.unmap(Client::kIova, 1) != s64{kPageSize}) return false;
  return dma.write(Client::kIova, &value, 1).done != 0;
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

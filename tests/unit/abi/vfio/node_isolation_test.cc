// SPDX-License-Identifier: Apache-2.0
// Isolation of a device that is bound to an iommufd, by requests as a program makes them. The
// numbers are those of the matrix in docs/support-matrix-vfio.md.
#include <cstring>
#include <thread>
#include <vector>

#include "tests/unit/abi/vfio/node_client.h"

namespace stagetwo {
namespace {

class NodeIsolation : public Node {
 protected:
  void SetUp() override {
    Node::SetUp();
    abi_vfio::set_newer_requests(true);
    ASSERT_EQ(bind(device_, iommufd_), 0);
  }
  // Pages of a test's own, mapped from kIova on.
  u32 make_ioas_of(const test::GuardedPages& memory, u64 pages) {
    const u32 ioas = make_ioas();
    iommu_ioas_map cmd{};
    cmd.size = sizeof(cmd);
    cmd.flags = IOMMU_IOAS_MAP_FIXED_IOVA | IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE;
    cmd.ioas_id = ioas;
    cmd.user_va = memory.address();
    cmd.length = pages * kPageSize;
    cmd.iova = kIova;
    EXPECT_EQ(ask(iommufd_, IOMMU_IOAS_MAP, &cmd), 0);
    return ioas;
  }
};

TEST_F(NodeIsolation, I8ADetachUnderDmaEndsItAndSaysWhy) {
  const u32 ioas = make_ioas();
  ASSERT_EQ(map(ioas, kIova, 0), 0);
  const u32 table = make_table(ioas);
  for (unsigned round = 0; round < 20; ++round) {
    ASSERT_EQ(attach(table, VFIO_DEVICE_ATTACH_PASID, 5), 0);
    sync::Atomic<u32> writes{0}, stop{0}, reason{0};
    std::thread device([&] {
      while (stop.load(sync::kRelaxed) == 0) {
        const unsigned now = write(kIova, 0x11, {5, false});
        if (now == 0) writes.fetch_add(1, sync::kRelaxed);
        if (now != 0) reason.store(now, sync::kRelaxed);
      }
    });
    while (writes.load(sync::kRelaxed) == 0) std::this_thread::yield();
    ASSERT_EQ(detach(VFIO_DEVICE_DETACH_PASID, 5), 0);
    *reinterpret_cast<volatile u8*>(memory_.address()) = 0x22;  // a canary from here on
    while (reason.load(sync::kRelaxed) == 0) std::this_thread::yield();
    stop.store(1, sync::kRelaxed);
    device.join();
    EXPECT_EQ(byte(0), 0x22) << round;
    EXPECT_EQ(reason.load(sync::kRelaxed), 0x59u);
  }
}

TEST_F(NodeIsolation, I9APasidGivenToAnotherAtOnceIsTheOthers) {
  test::GuardedPages a(1), c(1);
  const u32 of_a = make_table(make_ioas_of(a, 1)), of_c = make_table(make_ioas_of(c, 1));
  for (unsigned round = 0; round < 1000; ++round) {
    const bool odd = round % 2 != 0;
    u8& mine = *(odd ? c : a).bytes_at(0);
    const u8& others = *(odd ? a : c).bytes_at(0);
    ASSERT_EQ(attach(odd ? of_c : of_a, VFIO_DEVICE_ATTACH_PASID, 7), 0);
    ASSERT_EQ(write(kIova, 0x40, {7, false}), 0u);
    ASSERT_EQ(mine, 0x40) << round;
    ASSERT_EQ(others, 0) << round;
    mine = 0;
    ASSERT_EQ(detach(VFIO_DEVICE_DETACH_PASID, 7), 0);
  }
}

TEST_F(NodeIsolation, I11RequestsWithoutAPasidAreTheDevicesOwn) {
  test::GuardedPages of_pasid(1), own(1);
  const u32 table = make_table(make_ioas_of(of_pasid, 1));
  ASSERT_EQ(attach(table, VFIO_DEVICE_ATTACH_PASID, 7), 0);
  EXPECT_EQ(write(kIova, 1), 0x59u) << "only a PASID is attached";
  EXPECT_EQ(*of_pasid.bytes_at(0), 0);
  ASSERT_EQ(attach(make_table(make_ioas_of(own, 1))), 0);
  EXPECT_EQ(write(kIova, 2), 0u);
  EXPECT_EQ(*own.bytes_at(0), 2);
  EXPECT_EQ(*of_pasid.bytes_at(0), 0);
  ASSERT_EQ(detach(), 0);
  EXPECT_EQ(write(kIova, 3), 0x59u);
  EXPECT_EQ(write(kIova, 4, {7, false}), 0u);
}

// Exactly the pages that the device wrote, once. A first level tells nobody.
TEST_F(NodeIsolation, S4_15_I17_TheBitmapIsWhatTheDeviceWrote) {
  constexpr u64 kPages = 1000;
  test::GuardedPages memory(kPages);
  const u32 ioas = make_ioas_of(memory, kPages);
  iommu_hwpt_alloc alloc{};
  alloc.size = sizeof(alloc);
  alloc.flags = IOMMU_HWPT_ALLOC_DIRTY_TRACKING;
  alloc.dev_id = id_;
  alloc.pt_id = ioas;
  ASSERT_EQ(ask(iommufd_, IOMMU_HWPT_ALLOC, &alloc), 0);
  ASSERT_EQ(attach(alloc.out_hwpt_id), 0);
  iommu_hwpt_set_dirty_tracking set{};
  set.size = sizeof(set);
  set.flags = IOMMU_HWPT_DIRTY_TRACKING_ENABLE;
  set.hwpt_id = alloc.out_hwpt_id;
  ASSERT_EQ(ask(iommufd_, IOMMU_HWPT_SET_DIRTY_TRACKING, &set), 0);
  const auto dirty = [&] {
    std::vector<u64> bits((kPages + 63) / 64);
    iommu_hwpt_get_dirty_bitmap get{};
    get.size = sizeof(get);
    get.hwpt_id = alloc.out_hwpt_id;
    get.iova = kIova;
    get.length = kPages * kPageSize;
    get.page_size = kPageSize;
    get.data = reinterpret_cast<u64>(bits.data());
    EXPECT_EQ(ask(iommufd_, IOMMU_HWPT_GET_DIRTY_BITMAP, &get), 0);
    std::vector<u64> pages;
    for (u64 page = 0; page < kPages; ++page) {
      if ((bits[page / 64] >> (page % 64) & 1) != 0) pages.push_back(page);
    }
    return pages;
  };
  EXPECT_EQ(dirty(), std::vector<u64>{});
  u8 seen = 0;
  EXPECT_EQ(test::RegisterDevice::dma->read(kIova + 5 * kPageSize, &seen, 1).done, 1u);
  for (const u64 page : {3u, 500u, 999u}) EXPECT_EQ(write(kIova + page * kPageSize + 17, 1), 0u);
  EXPECT_EQ(dirty(), (std::vector<u64>{3, 500, 999}));
  EXPECT_EQ(dirty(), std::vector<u64>{}) << "nothing was written since";
  EXPECT_EQ(write(kIova + 3 * kPageSize, 2), 0u);
  EXPECT_EQ(dirty(), std::vector<u64>{3});
  // A table that was not made for it.
  set.hwpt_id = make_table(ioas);
  EXPECT_EQ(ask(iommufd_, IOMMU_HWPT_SET_DIRTY_TRACKING, &set), -EOPNOTSUPP);
}

}  // namespace
}  // namespace stagetwo

// SPDX-License-Identifier: Apache-2.0
// VFIO_UPDATE_VADDR: maps whose addresses are taken away and given anew, in a container without
// mediated devices. kernel file: vfio_iommu_type1.c. How a device copies meanwhile:
// tests/shim/programs/pci_function.c.
#include "abi/vfio/files.h"
#include "tests/unit/abi/vfio/errno_world.h"
#include "vfio/dma.h"

namespace stagetwo {
namespace {

class MovedMaps : public ErrnoWorld {
 protected:
  void SetUp() override { build(State::kMapped, true); }
  // Answers the bytes, or the error.
  long lose(u64 iova, u64 size, u32 flags = 0) {
    vfio_iommu_type1_dma_unmap cmd{.argsz = sizeof(cmd),
                                   .flags = VFIO_DMA_UNMAP_FLAG_VADDR | flags,
                                   .iova = iova,
                                   .size = size};
    const long done = ask(container_, VFIO_IOMMU_UNMAP_DMA, &cmd);
    return done == 0 ? static_cast<long>(cmd.size) : done;
  }
  long unmap(u64 iova, u64 size) {
    vfio_iommu_type1_dma_unmap cmd{.argsz = sizeof(cmd), .flags = 0, .iova = iova, .size = size};
    const long done = ask(container_, VFIO_IOMMU_UNMAP_DMA, &cmd);
    return done == 0 ? static_cast<long>(cmd.size) : done;
  }
  long move(u64 iova, u64 size, u64 address) {
    vfio_iommu_type1_dma_map cmd{.argsz = sizeof(cmd),
                                 .flags = VFIO_DMA_MAP_FLAG_VADDR,
                                 .vaddr = address,
                                 .iova = iova,
                                 .size = size};
    return ask(container_, VFIO_IOMMU_MAP_DMA, &cmd);
  }
  long map(u64 iova, u64 pages) {
    auto cmd = good_map();
    cmd.iova = iova;
    cmd.size = pages * kPageSize;
    return ask(container_, VFIO_IOMMU_MAP_DMA, &cmd);
  }
  long can_move() { return number(container_, VFIO_CHECK_EXTENSION, VFIO_UPDATE_VADDR); }
  static constexpr u64 kSize = 4 * kPageSize;
};

TEST_F(MovedMaps, AreAnExtensionWhereNoDeviceIsMediated) {
  EXPECT_EQ(can_move(), 1);
  ASSERT_EQ(number(group_, VFIO_GROUP_UNSET_CONTAINER, 0), 0);
  EXPECT_EQ(can_move(), 0) << "without a type nothing can be said";
}

TEST_F(MovedMaps, WaitForAnAddressOnce) {
  test::GuardedPages elsewhere(4);
  EXPECT_EQ(move(kIova, kSize, memory_.address()), -EINVAL) << "it has one";
  EXPECT_EQ(lose(kIova, kSize), static_cast<long>(kSize));
  EXPECT_EQ(move(kIova, kSize / 2, memory_.address()), -EINVAL) << "half of it";
  EXPECT_EQ(move(kIova - kPageSize, kSize + kPageSize, memory_.address()), -EINVAL) << "too much";
  EXPECT_EQ(move(2 * kIova, kSize, memory_.address()), -ENOENT);
  EXPECT_EQ(move(kIova, kSize, elsewhere.address()), 0);
  EXPECT_EQ(move(kIova, kSize, elsewhere.address()), -EINVAL) << "it has one again";
}

// Of several either all wait or none does.
TEST_F(MovedMaps, AreTakenTogetherOrNotAtAll) {
  ASSERT_EQ(map(kIova + 8 * kPageSize, 2), 0);
  ASSERT_EQ(map(kIova + 10 * kPageSize, 1), 0);
  EXPECT_EQ(lose(kIova + 8 * kPageSize, kPageSize), -EINVAL) << "half of one";
  EXPECT_EQ(lose(kIova + 8 * kPageSize, 2 * kPageSize), 2 * static_cast<long>(kPageSize));
  EXPECT_EQ(lose(kIova, 16 * kPageSize), -EINVAL) << "one of them waits already";
  EXPECT_EQ(move(kIova, kSize, memory_.address()), -EINVAL) << "the others do not wait";
  EXPECT_EQ(move(kIova + 10 * kPageSize, kPageSize, memory_.address()), -EINVAL);
  EXPECT_EQ(move(kIova + 8 * kPageSize, 2 * kPageSize, memory_.address()), 0);
  EXPECT_EQ(lose(0, 0, VFIO_DMA_UNMAP_FLAG_ALL), 7 * static_cast<long>(kPageSize));
  EXPECT_EQ(lose(0, 0, VFIO_DMA_UNMAP_FLAG_ALL), -EINVAL);
  EXPECT_EQ(lose(64 * kIova, kSize), 0) << "there is nothing";
}

TEST_F(MovedMaps, AreUnmappedAsOthers) {
  EXPECT_EQ(lose(kIova, kSize), static_cast<long>(kSize));
  EXPECT_EQ(map(kIova, 1), -EEXIST);
  EXPECT_EQ(unmap(kIova, kSize), static_cast<long>(kSize));
  EXPECT_EQ(move(kIova, kSize, memory_.address()), -ENOENT);
  EXPECT_EQ(map(kIova, 4), 0);
  EXPECT_EQ(lose(kIova, kSize), static_cast<long>(kSize)) << "nothing is left of what waited";
}

// What joins might have to pin what has no address.
TEST_F(MovedMaps, KeepOtherGroupsOut) {
  const vfio::Uuid uuid = *vfio::parse_uuid(kMdev);
  ASSERT_TRUE(vfio::create_device(vfio::find_type("serial-1"), uuid));
  int other = *abi_vfio::open_group(1, O_RDWR | O_CLOEXEC);
  ASSERT_EQ(lose(kIova, kSize), static_cast<long>(kSize));
  expect_refusal(other, VFIO_GROUP_SET_CONTAINER, bytes_of(container_), EBUSY);
  ASSERT_EQ(move(kIova, kSize, memory_.address()), 0);
  ASSERT_EQ(ask(other, VFIO_GROUP_SET_CONTAINER, &container_), 0);
  EXPECT_EQ(can_move(), 0);
  EXPECT_EQ(lose(kIova, kSize), -EBUSY);
  EXPECT_EQ(lose(1, kSize), -EBUSY) << "before the range is looked at";
  close_fd(other);
  EXPECT_EQ(lose(kIova, kSize), static_cast<long>(kSize)) << "it has left";
  auto removal = vfio::begin_removal(uuid);
  ASSERT_TRUE(removal);
  vfio::finish_removal(std::move(*removal));
}

// Who pins later pins what is there now.
TEST_F(MovedMaps, AreAtTheirNewAddress) {
  test::GuardedPages elsewhere(4);
  ASSERT_EQ(lose(kIova, kSize), static_cast<long>(kSize));
  ASSERT_EQ(move(kIova, kSize, elsewhere.address()), 0);
  const vfio::Uuid uuid = *vfio::parse_uuid(kMdev);
  ASSERT_TRUE(vfio::create_device(vfio::find_type("serial-1"), uuid));
  int other = *abi_vfio::open_group(1, O_RDWR | O_CLOEXEC);
  ASSERT_EQ(ask(other, VFIO_GROUP_SET_CONTAINER, &container_), 0);
  ASSERT_EQ(number(group_, VFIO_GROUP_UNSET_CONTAINER, 0), 0);  // and with it the domain's pins
  vfio::Dma dma;
  const auto file = host::find(container_);
  const auto* const container = dynamic_cast<const abi_vfio::ContainerFile*>(file.get());
  ASSERT_TRUE(dma.connect(container->container(), *vfio::find_device(uuid)));
  const char word = 'x';
  EXPECT_EQ(dma.write(kIova + 5, &word, 1).done, 1u);
  EXPECT_EQ(*elsewhere.bytes_at(5), 'x');
  EXPECT_EQ(*memory_.bytes_at(5), 0);
  dma.disconnect();
  close_fd(other);
  auto removal = vfio::begin_removal(uuid);
  ASSERT_TRUE(removal);
  vfio::finish_removal(std::move(*removal));
}

}  // namespace
}  // namespace stagetwo

// SPDX-License-Identifier: Apache-2.0
#include "host/placed_io.h"
#include "tests/unit/abi/vfio/vfio_client.h"

namespace stagetwo {
namespace {

class DeviceFile : public VfioClient {
 protected:
  void SetUp() override {
    VfioClient::SetUp();
    open_device();
  }
  long read_at(void* to, u64 bytes, off_t at) {
    const auto ref = host::find(device_);
    const auto done =
        dynamic_cast<host::PlacedIo*>(ref.get())->read_at(reinterpret_cast<u64>(to), bytes, at);
    return done ? *done : -to_int(done.error());
  }
  long write_at(const void* from, u64 bytes, off_t at) {
    const auto ref = host::find(device_);
    const auto done =
        dynamic_cast<host::PlacedIo*>(ref.get())->write_at(reinterpret_cast<u64>(from), bytes, at);
    return done ? *done : -to_int(done.error());
  }
  static constexpr off_t kConfig = off_t{VFIO_PCI_CONFIG_REGION_INDEX} << 40;
};

TEST_F(DeviceFile, RegionsStandAtTheirPlaces) {
  for (u32 index = 0; index < VFIO_PCI_NUM_REGIONS; ++index) {
    vfio_region_info info{};
    info.argsz = sizeof(info);
    info.index = index;
    ASSERT_EQ(ask(device_, VFIO_DEVICE_GET_REGION_INFO, &info), 0);
    EXPECT_EQ(info.offset, u64{index} << 40);
    EXPECT_EQ(info.size, index == 0 ? 8u : index == VFIO_PCI_CONFIG_REGION_INDEX ? 256u : 0u);
    EXPECT_EQ(info.flags, 3u);
  }
}

TEST_F(DeviceFile, AnAccessEndsWithItsRegion) {
  u8 bytes[300];
  EXPECT_EQ(read_at(bytes, 300, kConfig), 256);
  EXPECT_EQ(bytes[0], 0x48);
  EXPECT_EQ(bytes[0x3d], 1);
  EXPECT_EQ(read_at(bytes, 2, kConfig + 255), 1);
  EXPECT_EQ(read_at(bytes, 1, kConfig + 256), -EINVAL);
  EXPECT_EQ(read_at(bytes, 1, off_t{1} << 40), -EINVAL) << "there is no second port";
  EXPECT_EQ(read_at(bytes, 0, off_t{1} << 40), 0);
}

TEST_F(DeviceFile, AnOddAccessIsMadeOfAlignedOnes) {
  const u32 size = ~u32{0};
  EXPECT_EQ(write_at(&size, 4, kConfig + 0x10), 4);
  u8 bytes[7] = {};
  EXPECT_EQ(read_at(bytes, 7, kConfig + 0x0d), 7);
  EXPECT_EQ(bytes[3], 0xf9);
  EXPECT_EQ(bytes[6], 0xff);
}

TEST_F(DeviceFile, WithoutAnOffsetItIsAtItsOwnPlace) {
  const u8 byte = 0x21;
  const auto ref = host::find(device_);
  EXPECT_EQ(*ref->write_bytes(reinterpret_cast<u64>(&byte), 1), 1);
  u8 seen = 0;
  EXPECT_EQ(read_at(&seen, 1, 0), 1);
  EXPECT_EQ(seen, 0x21);
  EXPECT_EQ(*ref->read_bytes(reinterpret_cast<u64>(&seen), 1), 1);  // the next register
  EXPECT_EQ(seen, 0);
}

TEST_F(DeviceFile, VectorsThatAreNotThereAreRefused) {
  vfio_irq_set set{};
  set.argsz = sizeof(set);
  set.flags = VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER;
  vfio_irq_set* const request = &set;  // clang captures no struct with an array at its end
  const auto answer = [this, request](u32 index, u32 start, u32 count) {
    request->index = index;
    request->start = start;
    request->count = count;
    return ask(device_, VFIO_DEVICE_SET_IRQS, request);
  };
  EXPECT_EQ(answer(VFIO_PCI_MSI_IRQ_INDEX, 1, 1), -EINVAL);
  EXPECT_EQ(answer(VFIO_PCI_MSI_IRQ_INDEX, 0, 2), -EINVAL);
  EXPECT_EQ(answer(VFIO_PCI_MSI_IRQ_INDEX, 2, ~0u - 2), -EINVAL);
  EXPECT_EQ(answer(VFIO_PCI_NUM_IRQS, 0, 1), -EINVAL);
  EXPECT_EQ(answer(VFIO_PCI_MSIX_IRQ_INDEX, 0, 1), -ENOTTY);
  set.flags = 0;
  EXPECT_EQ(answer(VFIO_PCI_MSI_IRQ_INDEX, 0, 1), -EINVAL);
}

}  // namespace
}  // namespace stagetwo

// SPDX-License-Identifier: Apache-2.0
#include "vfio/pci_config.h"

#include <gtest/gtest.h>

#include <cstring>

namespace stagetwo::vfio {
namespace {

class PciConfigTest : public testing::Test {
 protected:
  static constexpr PciIdentity kCard{.vendor = 0x1234,
                                     .device = 0x5678,
                                     .sub_vendor = 0x9abc,
                                     .sub_device = 0xdef0,
                                     .class_code = 0x070002,
                                     .revision = 3,
                                     .interrupt_pin = 1,
                                     .bars = {{8, true}, {}, {4096, false}}};
  void SetUp() override { config_.start(kCard); }
  u32 get(u64 at, unsigned bytes = 4) {
    u8 raw[4] = {};
    config_.read(at, {raw, bytes});
    u32 value = 0;
    std::memcpy(&value, raw, sizeof(value));
    return value;
  }
  void put(u64 at, u32 value, unsigned bytes = 4) {
    u8 raw[4];
    std::memcpy(raw, &value, sizeof(raw));
    config_.write(kCard, at, {raw, bytes});
  }
  PciConfig config_;
};

TEST_F(PciConfigTest, SaysWhatTheCardIs) {
  EXPECT_EQ(get(0), 0x56781234u);
  EXPECT_EQ(get(8), 0x07000203u);
  EXPECT_EQ(get(0x2c), 0xdef09abcu);
  EXPECT_EQ(get(0x3d, 1), 1u);
  EXPECT_EQ(get(4, 2), PciConfig::kCommandIo | PciConfig::kCommandMemory);
}

TEST_F(PciConfigTest, OnesWrittenToABaseAddressReadBackItsSize) {
  put(0x10, ~0u);
  put(0x14, ~0u);
  put(0x18, ~0u);
  EXPECT_EQ(get(0x10), 0xfffffff9u);
  EXPECT_EQ(get(0x14), 0u);
  EXPECT_EQ(get(0x18), 0xfffff000u);
  put(0x10, 0xc000);
  EXPECT_EQ(get(0x10), 0xc001u);
}

TEST_F(PciConfigTest, OnlyWhatAClientOwnsIsWritten) {
  for (u64 at = 0; at < PciConfig::kBytes; at += 4) put(at, 0);
  EXPECT_EQ(get(0), 0x56781234u);
  EXPECT_EQ(get(4, 2), 0u);
  put(4, 0xffff, 2);
  EXPECT_EQ(get(4, 2), 0x0547u);
  put(0x3c, 0xab, 1);
  put(0x3d, 0xab, 1);
  EXPECT_EQ(get(0x3c, 2), 0x01abu);
}

}  // namespace
}  // namespace stagetwo::vfio

// SPDX-License-Identifier: Apache-2.0
#include "abi/kvm/io_zones.h"

#include <gtest/gtest.h>

#include <cstring>

#include "addr/addr.h"

namespace stagetwo::abi_kvm {
namespace {

constexpr u32 kEntries = (kPageSize - sizeof(kvm_coalesced_mmio_ring)) / sizeof(kvm_coalesced_mmio);

kvm_coalesced_mmio_zone zone(u64 address, u32 size, u32 pio = 0) {
  kvm_coalesced_mmio_zone z{};
  z.addr = address;
  z.size = size;
  z.pio = pio;
  return z;
}

class Zones : public testing::Test {
 protected:
  bool write(u64 address, u32 size = 8, bool pio = false) {
    return zones_.write(ring_, pio, address, "abcdefgh", size);
  }
  alignas(4096) unsigned char page_[4096] = {};
  kvm_coalesced_mmio_ring* ring_ = reinterpret_cast<kvm_coalesced_mmio_ring*>(page_);
  IoZones zones_;
};

TEST_F(Zones, WriteOutsideEveryZoneIsAnExit) {
  EXPECT_FALSE(write(0x1000));
  ASSERT_TRUE(zones_.add(zone(0x1000, 16)));
  EXPECT_TRUE(write(0x1008));
  EXPECT_FALSE(write(0x1009)) << "reaches beyond the zone";
  EXPECT_FALSE(write(0xff8));
  EXPECT_FALSE(write(~u64{0} - 3)) << "wraps";
}

TEST_F(Zones, EntrySaysAddressLengthBusAndData) {
  ASSERT_TRUE(zones_.add(zone(0x60, 4, 1)));
  ASSERT_TRUE(write(0x60, 4, true));
  EXPECT_EQ(ring_->last, 1U);
  EXPECT_EQ(ring_->coalesced_mmio[0].phys_addr, 0x60U);
  EXPECT_EQ(ring_->coalesced_mmio[0].len, 4U);
  EXPECT_EQ(ring_->coalesced_mmio[0].pio, 1U);
  EXPECT_EQ(std::memcmp(ring_->coalesced_mmio[0].data, "abcd\0\0\0\0", 8), 0);
}

TEST_F(Zones, BusesAreApart) {
  ASSERT_TRUE(zones_.add(zone(0x60, 8, 1)));
  EXPECT_FALSE(write(0x60, 4, false));
}

TEST_F(Zones, FullRingIsAnExit) {
  ASSERT_TRUE(zones_.add(zone(0x1000, 8)));
  for (u32 i = 0; i + 1 < kEntries; ++i) ASSERT_TRUE(write(0x1000)) << i;
  EXPECT_FALSE(write(0x1000));
  ring_->first = 1;
  EXPECT_TRUE(write(0x1000));
  EXPECT_EQ(ring_->last, 0U) << "wrapped";
}

TEST_F(Zones, ClientsNonsenseInTheRingIsAnExit) {
  ASSERT_TRUE(zones_.add(zone(0x1000, 8)));
  ring_->last = kEntries;
  EXPECT_FALSE(write(0x1000));
  ring_->last = ~0U;
  EXPECT_FALSE(write(0x1000));
}

TEST_F(Zones, RemoveTakesEveryZoneThatContainsTheRange) {
  ASSERT_TRUE(zones_.add(zone(0x1000, 0x100)));
  ASSERT_TRUE(zones_.add(zone(0x1000, 0x10)));
  ASSERT_TRUE(zones_.remove(zone(0x1000, 8)));
  EXPECT_FALSE(write(0x1000));
  EXPECT_TRUE(zones_.remove(zone(0x1000, 8))) << "absent zones are no error";
}

TEST_F(Zones, UnknownBusIsEinval) {
  EXPECT_EQ(to_int(zones_.add(zone(0, 8, 2)).error()), EINVAL);
  EXPECT_EQ(to_int(zones_.remove(zone(0, 8, 2)).error()), EINVAL);
}

TEST_F(Zones, BusTakesAThousandDevices) {
  for (u32 i = 0; i < 1000; ++i) ASSERT_TRUE(zones_.add(zone(i * 8, 8)));
  EXPECT_EQ(to_int(zones_.add(zone(0, 8)).error()), ENOSPC);
  EXPECT_TRUE(zones_.add(zone(0, 8, 1)));
}

}  // namespace
}  // namespace stagetwo::abi_kvm

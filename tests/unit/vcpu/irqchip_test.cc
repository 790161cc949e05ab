// SPDX-License-Identifier: Apache-2.0
// The interrupt controllers of a PC, alone.
#include <gtest/gtest.h>

#include <cstring>
#include <memory>

#include "vcpu/ioapic.h"
#include "vcpu/pic.h"

namespace stagetwo::vcpu {
namespace {

class PicTest : public ::testing::Test {
 protected:
  PicTest() {
    for (u16 base : {u16{0x20}, u16{0xa0}}) {
      out(base, 0x11);
      out(static_cast<u16>(base + 1), base == 0x20 ? 0x30 : 0x38);
      out(static_cast<u16>(base + 1), base == 0x20 ? 4 : 2);
      out(static_cast<u16>(base + 1), 1);
    }
  }
  void out(u16 port, u8 value) { EXPECT_TRUE(pic_.write_port(port, &value, 1)); }
  u8 in(u16 port) {
    u8 value = 0xee;
    EXPECT_TRUE(pic_.read_port(port, &value, 1));
    return value;
  }
  Pic pic_;
};

TEST_F(PicTest, EdgeIsRememberedUntilAcknowledged) {
  EXPECT_EQ(pic_.set_line(4, true), 1);
  EXPECT_EQ(pic_.set_line(4, false), 1);
  ASSERT_TRUE(pic_.output());
  EXPECT_EQ(pic_.acknowledge(), 0x34);
  EXPECT_FALSE(pic_.output());
}

TEST_F(PicTest, ServedLineHoldsBackLessUrgentOnesUntilEoi) {
  pic_.set_line(3, true);
  EXPECT_EQ(pic_.acknowledge(), 0x33);
  pic_.set_line(5, true);
  EXPECT_FALSE(pic_.output());
  pic_.set_line(1, true);
  EXPECT_TRUE(pic_.output());
  EXPECT_EQ(pic_.acknowledge(), 0x31);
  out(0x20, 0x20);
  out(0x20, 0x20);
  EXPECT_EQ(pic_.acknowledge(), 0x35);
}

TEST_F(PicTest, SlaveComesThroughTheCascade) {
  pic_.set_line(12, true);
  ASSERT_TRUE(pic_.output());
  EXPECT_EQ(pic_.acknowledge(), 0x38 + 4);
}

TEST_F(PicTest, NothingPendingGivesTheSpuriousVector) {
  EXPECT_EQ(pic_.acknowledge(), 0x37);
}

TEST_F(PicTest, MaskedLineAnswersMinusOneAndStaysPending) {
  out(0x21, 0x10);
  EXPECT_EQ(pic_.set_line(4, true), -1);
  EXPECT_FALSE(pic_.output());
  EXPECT_EQ(in(0x20), 0x10) << "IRR";
  out(0x21, 0);
  EXPECT_TRUE(pic_.output());
}

TEST_F(PicTest, SecondEdgeBeforeServiceIsCoalesced) {
  pic_.set_line(4, true);
  pic_.set_line(4, false);
  EXPECT_EQ(pic_.set_line(4, true), 0);
}

TEST_F(PicTest, LevelTriggeredLineFallsWithItsDevice) {
  out(0x4d0, 0xff);
  EXPECT_EQ(in(0x4d0), 0xf8) << "lines 0 to 2 stay edge triggered";
  pic_.set_line(5, true);
  EXPECT_TRUE(pic_.output());
  pic_.set_line(5, false);
  EXPECT_EQ(in(0x20), 0);
}

TEST_F(PicTest, ForeignPortIsNotClaimed) {
  u8 value = 0;
  EXPECT_FALSE(pic_.read_port(0x22, &value, 1));
  EXPECT_FALSE(pic_.write_port(0x60, &value, 1));
}

class IoApicTest : public ::testing::Test {
 protected:
  IoApicTest()
      : bus_(std::make_unique<ApicBus>()),
        cpu_(std::make_unique<Lapic>(Lapic::Config{.id = 0, .boot_cpu = true, .bus = bus_.get()})),
        ioapic_(bus_.get()) {
    bus_->attach(cpu_.get());
    bus_->eoi_observer = [](void* self, u8 vector) {
      static_cast<IoApic*>(self)->end_of_interrupt(vector);
    };
    bus_->eoi_context = &ioapic_;
    const u8 enable[4] = {0xff, 1, 0, 0};
    cpu_->mmio_write(0xf0, enable, 4, 0);
  }
  void write(u32 index, u32 value) {
    u8 data[4];
    std::memcpy(data, &index, 4);
    ioapic_.mmio_write(0xfec00000, data, 4);
    std::memcpy(data, &value, 4);
    ioapic_.mmio_write(0xfec00010, data, 4);
  }
  u32 read(u32 index) {
    u8 data[4];
    std::memcpy(data, &index, 4);
    ioapic_.mmio_write(0xfec00000, data, 4);
    ioapic_.mmio_read(0xfec00010, data, 4);
    u32 value = 0;
    std::memcpy(&value, data, 4);
    return value;
  }
  void eoi() {
    const u8 zero[4] = {};
    cpu_->mmio_write(0xb0, zero, 4, 0);
  }
  std::unique_ptr<ApicBus> bus_;
  std::unique_ptr<Lapic> cpu_;
  IoApic ioapic_;
};

TEST_F(IoApicTest, ResetMasksEveryPinAndReportsTwentyFour) {
  EXPECT_EQ(read(1), 0x170011u);
  EXPECT_EQ(read(0x10), 0x10000u);
  EXPECT_EQ(ioapic_.set_pin(4, true), -1);
}

TEST_F(IoApicTest, EdgePinSendsOneMessageAnEdge) {
  write(0x18, 0x44);
  EXPECT_EQ(ioapic_.set_pin(4, true), 1);
  EXPECT_EQ(ioapic_.set_pin(4, true), 0) << "no new edge";
  EXPECT_EQ(cpu_->acknowledge(), 0x44);
}

TEST_F(IoApicTest, LevelPinIsSentAgainAfterEoiWhileItStaysUp) {
  write(0x18, 0x8044);
  EXPECT_EQ(ioapic_.set_pin(4, true), 1);
  EXPECT_EQ(read(0x18), 0xc044u) << "remote IRR";
  EXPECT_EQ(cpu_->acknowledge(), 0x44);
  EXPECT_FALSE(cpu_->pending_vector());
  eoi();
  EXPECT_EQ(cpu_->pending_vector(), 0x44);
  ioapic_.set_pin(4, false);
  cpu_->acknowledge();
  eoi();
  EXPECT_FALSE(cpu_->pending_vector());
  EXPECT_EQ(read(0x18), 0x8044u);
}

TEST_F(IoApicTest, UnmaskingALevelPinThatIsUpDelivers) {
  write(0x18, 0x18044);
  ioapic_.set_pin(4, true);
  EXPECT_FALSE(cpu_->pending_vector());
  write(0x18, 0x8044);
  EXPECT_EQ(cpu_->pending_vector(), 0x44);
}

TEST_F(IoApicTest, StatusBitsCannotBeWritten) {
  write(0x18, 0xffffffff);
  EXPECT_EQ(read(0x18) & 0x5000u, 0u);
}

}  // namespace
}  // namespace stagetwo::vcpu

// SPDX-License-Identifier: Apache-2.0
// The serial ports through an open device, as a client has them.
#include "vfio/serial.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <cstring>

#include "tests/unit/vfio/bus_world.h"

namespace stagetwo::vfio {
namespace {

constexpr u64 kData = 0, kIer = 1, kIir = 2, kFcr = 2, kLcr = 3, kMcr = 4, kLsr = 5, kMsr = 6;
constexpr u8 kFifoOn = 0x01, kTrigger14 = 0xc1;
constexpr u32 kStream = 1u << 18;
constexpr u8 kOnData = 1, kOnEmpty = 2, kOnOverrun = 4;

class SerialPort : public BusWorld {
 protected:
  void SetUp() override {
    BusWorld::SetUp();
    ASSERT_EQ(create("serial-2", 0), 0);
    device_ = open(0);
    bell_ = eventfd(0, EFD_NONBLOCK);
  }
  void TearDown() override {
    close(bell_);
    device_.reset();
    BusWorld::TearDown();
  }
  u8 in(u64 at, unsigned port = 0) {
    u8 value = 0;
    device_->read(port, at, {&value, 1});
    return value;
  }
  void out(u64 at, u8 value, unsigned port = 0) { device_->write(port, at, {&value, 1}); }
  void listen(u32 index) {
    const auto* const data = reinterpret_cast<const u8*>(&bell_);
    ASSERT_TRUE(device_->set_irqs({IrqSet::kEventfds | IrqSet::kTrigger, index, 0, 1, {data, 4}}));
  }
  u64 rings() {
    u64 count = 0;
    return read(bell_, &count, sizeof(count)) == sizeof(count) ? count : 0;
  }

  sync::Ref<Device> device_;
  int bell_ = -1;
};

TEST_F(SerialPort, ReceivesWhatItSent) {
  EXPECT_EQ(in(kLsr), 0x60);
  out(kData, 'a');
  EXPECT_EQ(in(kLsr), 0x01);
  EXPECT_EQ(in(kData), 'a');
  EXPECT_EQ(in(kLsr), 0x60);
}

TEST_F(SerialPort, SixteenBytesFitAndTheNextIsLost) {
  out(kFcr, kFifoOn);
  for (u8 i = 0; i < 17; ++i) out(kData, i);
  EXPECT_EQ(in(kLsr), 0x03);  // data, and an overrun
  EXPECT_EQ(in(kLsr), 0x01);  // that was told
  for (u8 i = 0; i < 16; ++i) EXPECT_EQ(in(kData), i);
  EXPECT_EQ(in(kLsr), 0x60);
}

TEST_F(SerialPort, WithoutAFifoOneByteFits) {
  out(kData, 1);
  out(kData, 2);
  EXPECT_EQ(in(kLsr), 0x03);
  EXPECT_EQ(in(kData), 1);
}

TEST_F(SerialPort, PortsAreApart) {
  out(kData, 'a', 0);
  EXPECT_EQ(in(kLsr, 1), 0x60);
  out(kData, 'b', 1);
  EXPECT_EQ(in(kData, 0), 'a');
  EXPECT_EQ(in(kData, 1), 'b');
}

TEST_F(SerialPort, TheDivisorStandsBehindItsBit) {
  out(kLcr, 0x83);
  out(kData, 0x34);
  out(kIer, 0x12);
  EXPECT_EQ(in(kData), 0x34);
  EXPECT_EQ(in(kIer), 0x12);
  out(kLcr, 0x03);
  EXPECT_EQ(in(kIer), 0);
  EXPECT_EQ(in(kLsr), 0x60);  // nothing was sent
}

TEST_F(SerialPort, CausesAreToldByPriority) {
  EXPECT_EQ(in(kIir), 0x01);
  out(kFcr, kTrigger14);
  out(kIer, kOnData | kOnEmpty | kOnOverrun);
  EXPECT_EQ(in(kIir), 0xc2);  // empty: told once
  EXPECT_EQ(in(kIir), 0xc1);
  for (u8 i = 0; i < 13; ++i) out(kData, i);
  EXPECT_EQ(in(kIir), 0xcc);  // fewer than the trigger level
  out(kData, 13);
  EXPECT_EQ(in(kIir), 0xc4);
  for (u8 i = 14; i < 17; ++i) out(kData, i);
  EXPECT_EQ(in(kIir), 0xc6);
  in(kLsr);
  for (u8 i = 0; i < 16; ++i) in(kData);
  EXPECT_EQ(in(kIir), 0xc2);
}

TEST_F(SerialPort, InItsLoopTheModemLinesAreItsOwnOutputs) {
  EXPECT_EQ(in(kMsr), 0xb0);
  out(kMcr, 0x1a);  // loop, RTS, OUT2
  EXPECT_EQ(in(kMsr) & 0xf0, 0x90);
  out(kMcr, 0x15);  // loop, DTR, OUT1
  EXPECT_EQ(in(kMsr) & 0xf0, 0x60);
  EXPECT_EQ(in(kMsr) & 0x0f, 0) << "changes are told once";
}

TEST_F(SerialPort, AMessageComesForEachCauseThatArises) {
  listen(kMsiIndex);
  out(kFcr, kFifoOn);
  out(kIer, kOnData);
  EXPECT_EQ(rings(), 0u);
  out(kData, 'a');
  EXPECT_EQ(rings(), 1u);
  in(kData);
  out(kData, 'b');
  EXPECT_EQ(rings(), 1u);
}

TEST_F(SerialPort, AQuarterOfAMegabyteGoesThroughTheLineInterrupt) {
  listen(kIntxIndex);
  out(kFcr, kTrigger14);
  out(kIer, kOnData | kOnEmpty);
  const u8 unmask = 1;
  u32 sent = 0, received = 0, wrong = 0;
  while (received < kStream) {
    ASSERT_EQ(rings(), 1u) << "after " << received << " bytes";
    u8 cause = 0;
    while (((cause = in(kIir)) & 1) == 0) {
      if ((cause & 0x0f) == 0x02) {
        for (int i = 0; i < 16 && sent < kStream; ++i) out(kData, static_cast<u8>(sent++ * 7));
      } else {
        while ((in(kLsr) & 1) != 0) wrong += in(kData) != static_cast<u8>(received++ * 7);
      }
    }
    if (received == kStream) break;
    ASSERT_TRUE(
        device_->set_irqs({IrqSet::kBools | IrqSet::kUnmask, kIntxIndex, 0, 1, {&unmask, 1}}));
    if (sent == received) out(kIer, kOnData);
    if (sent == received) out(kIer, kOnData | kOnEmpty);
  }
  EXPECT_EQ(wrong, 0u);
}

TEST_F(SerialPort, AResetForgetsEverything) {
  out(kData, 'a');
  out(kIer, kOnData);
  out(kLcr, 3);
  device_->reset();
  EXPECT_EQ(in(kLsr), 0x60);
  EXPECT_EQ(in(kIer), 0);
  EXPECT_EQ(in(kLcr), 0);
}

TEST_F(SerialPort, ItsConfigurationIsTheSampleCards) {
  u8 head[4];
  device_->read(kConfigRegion, 0, head);
  EXPECT_EQ(std::memcmp(head, "\x48\x43\x53\x32", 4), 0);
  device_->read(kConfigRegion, 8, head);
  EXPECT_EQ(std::memcmp(head, "\x10\x02\x00\x07", 4), 0);
}

}  // namespace
}  // namespace stagetwo::vfio

// SPDX-License-Identifier: Apache-2.0
// The local APIC as a guest and KVM_GET_LAPIC see it.
#include "vcpu/lapic.h"

#include <gtest/gtest.h>

#include <cstring>
#include <memory>

namespace stagetwo::vcpu {
namespace {

constexpr u32 kId = 0x20, kVersion = 0x30, kTpr = 0x80, kEoi = 0xb0, kLdr = 0xd0, kSvr = 0xf0,
              kIcr = 0x300, kIcrHigh = 0x310, kLvtTimer = 0x320, kLint0 = 0x350, kTmict = 0x380,
              kTmcct = 0x390, kTdcr = 0x3e0;

class LapicTest : public ::testing::Test {
 protected:
  LapicTest() : bus_(std::make_unique<ApicBus>()) {
    for (u32 i = 0; i < 3; ++i) {
      cpu_[i] = std::make_unique<Lapic>(Lapic::Config{.id = i,
                                                      .boot_cpu = i == 0,
                                                      .bus = bus_.get(),
                                                      .wake_context = &wakes_[i],
                                                      .wake = count});
      bus_->attach(cpu_[i].get());
      write(i, kSvr, 0x1ff);
    }
  }
  static void count(void* counter) { ++*static_cast<int*>(counter); }
  u32 read(u32 cpu, u32 offset, u64 now = 0) {
    u8 data[4];
    cpu_[cpu]->mmio_read(offset, data, 4, now);
    u32 value = 0;
    std::memcpy(&value, data, 4);
    return value;
  }
  void write(u32 cpu, u32 offset, u32 value, u64 now = 0) {
    u8 data[4];
    std::memcpy(data, &value, 4);
    cpu_[cpu]->mmio_write(offset, data, 4, now);
  }
  void send_fixed(u32 from, u8 vector, u32 to) {
    write(from, kIcrHigh, to << 24);
    write(from, kIcr, 0x4000u | vector);
  }

  std::unique_ptr<ApicBus> bus_;
  std::unique_ptr<Lapic> cpu_[3];
  int wakes_[3] = {0, 0, 0};
};

TEST_F(LapicTest, ResetShowsTheRegistersKvmShows) {
  u8 page[Lapic::kRegisterBytes];
  Lapic fresh({.id = 5, .boot_cpu = true});
  fresh.get_state(page, 0);
  const auto at = [&](u32 offset) {
    u32 value = 0;
    std::memcpy(&value, page + offset, 4);
    return value;
  };
  EXPECT_EQ(at(kId), 5u << 24);
  EXPECT_EQ(at(kVersion), 0x50014u);
  EXPECT_EQ(at(0xe0), 0xffffffffu);
  EXPECT_EQ(at(kSvr), 0xffu);
  EXPECT_EQ(at(kLvtTimer), 0x10000u);
  EXPECT_EQ(at(kLint0), 0x700u);
  EXPECT_EQ(fresh.base(), 0xfee00900u);
}

TEST_F(LapicTest, FixedInterruptReachesItsTargetAloneAndWakesIt) {
  send_fixed(0, 0x41, 1);
  EXPECT_EQ(cpu_[1]->pending_vector(), 0x41);
  EXPECT_FALSE(cpu_[0]->pending_vector());
  EXPECT_FALSE(cpu_[2]->pending_vector());
  EXPECT_EQ(wakes_[1], 1);
}

TEST_F(LapicTest, VectorInServiceHoldsBackItsPriorityClassUntilEoi) {
  send_fixed(0, 0x45, 1);
  EXPECT_EQ(cpu_[1]->acknowledge(), 0x45);
  send_fixed(0, 0x4f, 1);
  EXPECT_FALSE(cpu_[1]->pending_vector()) << "same class";
  send_fixed(0, 0x51, 1);
  EXPECT_EQ(cpu_[1]->pending_vector(), 0x51) << "higher class";
  EXPECT_EQ(cpu_[1]->acknowledge(), 0x51);
  write(1, kEoi, 0);
  write(1, kEoi, 0);
  EXPECT_EQ(cpu_[1]->pending_vector(), 0x4f);
}

TEST_F(LapicTest, TaskPriorityMasksAndCr8ShowsItsClass) {
  write(1, kTpr, 0x50);
  EXPECT_EQ(cpu_[1]->task_priority_class(), 5);
  send_fixed(0, 0x55, 1);
  EXPECT_FALSE(cpu_[1]->pending_vector());
  cpu_[1]->set_task_priority_class(4);
  EXPECT_EQ(cpu_[1]->pending_vector(), 0x55);
}

TEST_F(LapicTest, ShorthandsAndBroadcast) {
  write(0, kIcr, 3u << 18 | 0x4000u | 0x60);
  EXPECT_FALSE(cpu_[0]->pending_vector());
  EXPECT_EQ(cpu_[1]->pending_vector(), 0x60);
  EXPECT_EQ(cpu_[2]->pending_vector(), 0x60);
  write(0, kIcr, 1u << 18 | 0x4000u | 0x61);
  EXPECT_EQ(cpu_[0]->pending_vector(), 0x61);
  send_fixed(1, 0x71, 0xff);
  EXPECT_EQ(cpu_[0]->pending_vector(), 0x71);
  EXPECT_EQ(cpu_[2]->pending_vector(), 0x71);
}

TEST_F(LapicTest, FlatLogicalDestinationIsABitMask) {
  for (u32 i = 0; i < 3; ++i) write(i, kLdr, 1u << (24 + i));
  write(0, kIcrHigh, 0x06u << 24);
  write(0, kIcr, 0x4000u | 0x800u | 0x62);
  EXPECT_FALSE(cpu_[0]->pending_vector());
  EXPECT_EQ(cpu_[1]->pending_vector(), 0x62);
  EXPECT_EQ(cpu_[2]->pending_vector(), 0x62);
}

TEST_F(LapicTest, InitThenStartupAreSeenInOrder) {
  send_fixed(0, 0, 1);  // vector 0, delivered as fixed: leaves no start-up behind
  write(0, kIcrHigh, 1u << 24);
  write(0, kIcr, 0x4500);
  EXPECT_TRUE(cpu_[1]->take_init());
  EXPECT_FALSE(cpu_[1]->take_init());
  write(0, kIcr, 0x4600 | 0x9a);
  EXPECT_EQ(cpu_[1]->take_startup(), 0x9a);
  EXPECT_FALSE(cpu_[1]->take_startup());
}

TEST_F(LapicTest, SoftwareDisabledApicTakesNoFixedInterruptAndMasksItsLvt) {
  write(1, kSvr, 0xff);
  send_fixed(0, 0x41, 1);
  EXPECT_FALSE(cpu_[1]->pending_vector());
  EXPECT_EQ(read(1, kLint0) & 0x10000u, 0x10000u);
}

TEST_F(LapicTest, OneShotTimerCountsDownAndFiresOnce) {
  write(0, kLvtTimer, 0x40);
  write(0, kTdcr, 0xb);  // divide by 1
  write(0, kTmict, 1'000'000, 100);
  EXPECT_EQ(read(0, kTmcct, 400'100), 600'000u);
  cpu_[0]->poll_timer(999'000, 0);
  EXPECT_FALSE(cpu_[0]->pending_vector());
  cpu_[0]->poll_timer(1'000'100, 0);
  EXPECT_EQ(cpu_[0]->pending_vector(), 0x40);
  EXPECT_FALSE(cpu_[0]->timer_deadline_ns());
  EXPECT_EQ(read(0, kTmcct, 2'000'000), 0u);
}

TEST_F(LapicTest, PeriodicTimerKeepsItsPhase) {
  write(0, kLvtTimer, 0x20000 | 0x40);
  write(0, kTdcr, 0);  // divide by 2
  write(0, kTmict, 500'000, 0);
  cpu_[0]->poll_timer(3'200'000, 0);
  EXPECT_EQ(cpu_[0]->timer_deadline_ns(), 4'000'000u);
}

TEST_F(LapicTest, TscDeadlineFiresAndDisarms) {
  write(0, kLvtTimer, 0x40000 | 0x40);
  cpu_[0]->set_tsc_deadline(5000);
  cpu_[0]->poll_timer(0, 4999);
  EXPECT_EQ(cpu_[0]->tsc_deadline(), 5000u);
  cpu_[0]->poll_timer(0, 5000);
  EXPECT_EQ(cpu_[0]->tsc_deadline(), 0u);
  EXPECT_EQ(cpu_[0]->pending_vector(), 0x40);
}

TEST_F(LapicTest, DivideRegisterInTscDeadlineModeLeavesTheDeadlineAlone) {
  write(0, kLvtTimer, 0x40040);
  cpu_[0]->set_tsc_deadline(5000);
  const auto before = cpu_[0]->timer_deadline_ns();
  write(0, kTdcr, 0xb);
  EXPECT_EQ(cpu_[0]->timer_deadline_ns(), before);
  EXPECT_EQ(cpu_[0]->tsc_deadline(), 5000u);
}

TEST_F(LapicTest, X2apicRefusesReservedBitsAndReadsItsIdWhole) {
  ASSERT_TRUE(cpu_[2]->set_base(0xfee00c00, 0, false).has_value());
  EXPECT_EQ(*cpu_[2]->msr_read(0x802, 0), 2u);
  EXPECT_EQ(*cpu_[2]->msr_read(0x80d, 0), 4u);
  EXPECT_FALSE(cpu_[2]->msr_read(0x80e, 0)) << "there is no DFR";
  EXPECT_FALSE(cpu_[2]->msr_write(0x830, 1u << 13, 0));
  EXPECT_FALSE(cpu_[2]->msr_write(0x808, u64{1} << 32, 0));
  EXPECT_TRUE(cpu_[2]->msr_write(0x83f, 0x33, 0).has_value());
  EXPECT_EQ(cpu_[2]->pending_vector(), 0x33);
  EXPECT_FALSE(cpu_[2]->set_base(0xfee00800, 0, false)) << "x2APIC to xAPIC goes through disabled";
  EXPECT_FALSE(cpu_[1]->set_base(0xfee00400, 0, true)) << "x2APIC without enable";
}

TEST_F(LapicTest, NarrowAndMisalignedWritesAreDropped) {
  const u8 byte = 0x20;
  cpu_[0]->mmio_write(kTpr, &byte, 1, 0);
  EXPECT_EQ(read(0, kTpr), 0u);
  u8 word[4] = {0x20, 0, 0, 0};
  cpu_[0]->mmio_write(kTpr + 4, word, 4, 0);
  EXPECT_EQ(read(0, kTpr), 0u);
}

TEST_F(LapicTest, StateSurvivesGetAndSet) {
  write(1, kTpr, 0x20);
  send_fixed(0, 0x81, 1);
  u8 page[Lapic::kRegisterBytes];
  cpu_[1]->get_state(page, 0);
  cpu_[1]->reset(false);
  EXPECT_FALSE(cpu_[1]->pending_vector());
  ASSERT_TRUE(cpu_[1]->set_state(page, 0).has_value());
  EXPECT_EQ(cpu_[1]->pending_vector(), 0x81);
  EXPECT_EQ(read(1, kTpr), 0x20u);
}

}  // namespace
}  // namespace stagetwo::vcpu

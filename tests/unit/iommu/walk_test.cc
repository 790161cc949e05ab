// SPDX-License-Identifier: Apache-2.0
// Where an access goes, by each translation type, and why it goes nowhere.
#include "iommu/walk.h"

#include <cstring>
#include <vector>

#include "tests/unit/iommu/device_world.h"

namespace stagetwo::iommu {
namespace {

constexpr u64 kIova = 0x12'3456'7000;

class Walk : public DeviceWorld {
 protected:
  void SetUp() override {
    DeviceWorld::SetUp();
    ioas_ = make_ioas();
    device_ = make_vtd(0x30);
  }
  void TearDown() override {
    {
      Locked locked(*context_);
      locked.detach_all(**locked.find<Device>(device_));
    }
    EXPECT_EQ(unmap_all(ioas_), 0);
    for (const u32 table : tables_) EXPECT_EQ(destroy(table), 0);
    for (const u32 id : {device_, ioas_}) EXPECT_EQ(destroy(id), 0);
    DeviceWorld::TearDown();
  }
  u32 table(HwptHow how) {
    const u32 made = make_hwpt(ioas_, device_, how);
    tables_.insert(tables_.begin(), made);
    return made;
  }
  FaultReason look(u64 iova, Rights wanted = kMayRead, s64 pasid = kNoPasid) {
    Locked locked(*context_);
    return locked.look_up(**locked.find<Device>(device_), pasid, iova, wanted).reason;
  }
  u64 address_at(u64 iova) {
    Locked locked(*context_);
    return locked.look_up(**locked.find<Device>(device_), kNoPasid, iova, kMayRead).address;
  }

  test::GuardedPages memory_{8};
  u32 ioas_ = 0, device_ = 0;
  std::vector<u32> tables_;  // children first
};

TEST_F(Walk, SecondLevel) {
  ASSERT_EQ(attach(device_, table({.pasid = true})), 0);
  ASSERT_EQ(map_at(ioas_, memory_.address(), 2 * kPageSize, kIova), 0);
  ASSERT_EQ(map_at(ioas_, memory_.address(), kPageSize, 0, kMayRead), 0);
  EXPECT_EQ(address_at(kIova + 0x1234), frame_address(memory_.address() + 0x1234));
  EXPECT_EQ(look(kIova, kMayWrite), FaultReason::kNone);
  EXPECT_EQ(look(kIova + 2 * kPageSize), FaultReason::kSecondDenied);
  EXPECT_EQ(look(0, kMayRead), FaultReason::kNone);
  EXPECT_EQ(look(0, kMayWrite), FaultReason::kSecondDenied);
  EXPECT_EQ(look(bit(48)), FaultReason::kBeyondWidth);
  EXPECT_EQ(look(kInterruptStart), FaultReason::kInterruptRange);
  EXPECT_EQ(look(kInterruptLast), FaultReason::kInterruptRange);
  EXPECT_EQ(look(kInterruptLast + 1), FaultReason::kSecondDenied);
}

TEST_F(Walk, FirstLevel) {
  ASSERT_EQ(attach(device_, table({.first_level = true})), 0);
  ASSERT_EQ(map_at(ioas_, memory_.address(), kPageSize, kIova), 0);
  ASSERT_EQ(map_at(ioas_, memory_.address(), kPageSize, 0, kMayRead), 0);
  EXPECT_EQ(address_at(kIova + 5), frame_address(memory_.address() + 5));
  EXPECT_EQ(look(0, kMayWrite), FaultReason::kNoWrite);
  EXPECT_EQ(look(kIova + kPageSize), FaultReason::kFirstNotPresent);
  EXPECT_EQ(look(bit(47)), FaultReason::kNotCanonical);
  EXPECT_EQ(look(~u64{0}), FaultReason::kFirstNotPresent) << "canonical, and nothing there";
}

TEST_F(Walk, FindsLargePages) {
  constexpr u64 kLarge = u64{2} << 20;
  test::GuardedPages memory(2 * kLarge / kPageSize);
  const u64 start = (memory.address() + kLarge - 1) & ~(kLarge - 1);
  const u32 second = table({.pasid = true});
  ASSERT_EQ(attach(device_, second), 0);
  ASSERT_EQ(map_at(ioas_, start, kLarge, 5 * kLarge), 0);
  Locked locked(*context_);
  Device& device = **locked.find<Device>(device_);
  EXPECT_EQ(locked.look_up(device, kNoPasid, 5 * kLarge + 12345, kMayRead).page_bytes, kLarge);
  EXPECT_EQ(translate(locked.arena(), (*locked.find<Hwpt>(second))->domain, 5 * kLarge)->page_bytes,
            kLarge);
}

// A guest keeps first-level tables in its own memory, which the parent maps at 0.
TEST_F(Walk, NestedGoesThroughBoth) {
  const u32 parent = table({.nest_parent = true, .pasid = true});
  const u64 tables = memory_.address();
  const auto put = [&](u64 page, u64 index, u64 word) {
    std::memcpy(memory_.bytes_at(page * kPageSize + index * 8), &word, 8);
  };
  ASSERT_EQ(map_at(ioas_, tables, 8 * kPageSize, 0), 0);
  u32 nested = 0;
  {
    Locked locked(*context_);
    Hwpt& of = **locked.find<Hwpt>(parent);
    EXPECT_EQ(error_of(locked.make_nested(of, {.table = 0x123, .levels = 4})), EINVAL);
    EXPECT_EQ(error_of(locked.make_nested(of, {.table = 0, .levels = 3})), EINVAL);
    nested = (*locked.make_nested(of, {.table = 0, .levels = 4, .pasid = true}))->object.id;
  }
  tables_.insert(tables_.begin(), nested);
  ASSERT_EQ(attach(device_, nested, 6), 0);
  EXPECT_EQ(entry(device_, 6).entry.type(), TranslationType::kNested);
  constexpr u64 kAll = 7;  // present, writable, user
  put(0, 0, 1 * kPageSize | kAll);
  put(1, 0, 2 * kPageSize | kAll);
  put(2, 0, 3 * kPageSize | kAll);
  put(3, 1, 5 * kPageSize | kAll);    // page 1: the guest's page 5
  put(3, 2, 5 * kPageSize | 5);       // not writable
  put(3, 3, 5 * kPageSize | 3);       // a supervisor's
  put(3, 4, 100 * kPageSize | kAll);  // nothing of the parent's
  put(2, 7, u64{1} << 14 | kAll | 0x80);
  u8 value = 0x5a, found = 0;
  EXPECT_EQ(write(device_, 6, kPageSize + 3, &value, 1).reason, FaultReason::kNone);
  EXPECT_EQ(*memory_.bytes_at(5 * kPageSize + 3), 0x5a);
  EXPECT_EQ(read(device_, 6, 2 * kPageSize + 3, &found, 1).reason, FaultReason::kNone);
  EXPECT_EQ(found, 0x5a);
  EXPECT_EQ(look(2 * kPageSize, kMayWrite, 6), FaultReason::kNoWrite);
  EXPECT_EQ(look(3 * kPageSize, kMayRead, 6), FaultReason::kSupervisorPage);
  EXPECT_EQ(look(4 * kPageSize, kMayRead, 6), FaultReason::kSecondDenied);
  EXPECT_EQ(look(6 * kPageSize, kMayRead, 6), FaultReason::kFirstNotPresent);
  EXPECT_EQ(look(u64{7} << 21, kMayRead, 6), FaultReason::kFirstReserved);
  EXPECT_EQ(unmap_all(ioas_), 0);
  EXPECT_EQ(look(kPageSize, kMayRead, 6), FaultReason::kSecondDenied) << "its tables are gone";
}

TEST_F(Walk, PassThroughIsTheAddressItself) {
  const Locked locked(*context_);
  class Nothing final : public FrameReader {
    bool read(u64, u64*) override { return false; }
  } nothing;
  const auto entry = make_pasid_entry(TranslationType::kPassThrough, 1);
  EXPECT_EQ(iommu::walk(locked.arena(), entry, 0x1234567, kMayWrite, nothing).address, 0x1234567u);
  EXPECT_EQ(iommu::walk(locked.arena(), entry, kInterruptStart, kMayWrite, nothing).reason,
            FaultReason::kInterruptRange);
}

// What a device wrote is told for tables that were made to tell it, and only then.
TEST_F(Walk, WritesAreMarkedInTablesThatTrack) {
  const u32 tracking = table({.dirty = true, .pasid = true});
  ASSERT_EQ(attach(device_, tracking, 4), 0);
  ASSERT_EQ(map_at(ioas_, memory_.address(), 8 * kPageSize, kIova), 0);
  EXPECT_EQ(write_byte(device_, 4, kIova + 1 * kPageSize, 1), FaultReason::kNone);
  {
    Locked locked(*context_);
    ASSERT_TRUE(locked.set_dirty_tracking(**locked.find<Hwpt>(tracking), true));
  }
  EXPECT_EQ(write_byte(device_, 4, kIova + 3 * kPageSize, 1), FaultReason::kNone);
  u8 byte = 0;
  EXPECT_EQ(read(device_, 4, kIova + 5 * kPageSize, &byte, 1).reason, FaultReason::kNone);
  Locked locked(*context_);
  std::vector<u64> dirty;
  EXPECT_TRUE(locked.read_dirty(
      **locked.find<Hwpt>(tracking), kIova, kIova + 8 * kPageSize - 1, true,
      [](void* out, u64 first, u64) { static_cast<std::vector<u64>*>(out)->push_back(first); },
      &dirty));
  EXPECT_EQ(dirty, std::vector<u64>{kIova + 3 * kPageSize});
}

}  // namespace
}  // namespace stagetwo::iommu

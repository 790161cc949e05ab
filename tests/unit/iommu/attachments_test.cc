// SPDX-License-Identifier: Apache-2.0
// Which page table a PASID of a device means: attach, replace, detach, and who refuses. Table 4.2
// of the kernel suite's pasid_attach, for a device in VT-d's tables and for a test device.
#include "base/failpoint.h"
#include "tests/unit/iommu/device_world.h"

namespace stagetwo::iommu {
namespace {

class Attachments : public DeviceWorld, public testing::WithParamInterface<bool> {
 protected:
  void SetUp() override {
    DeviceWorld::SetUp();
    ioas_ = make_ioas();
    device_ = make_device(kPasidBits);
    plain_ = make_hwpt(ioas_, device_, {});
    s2_ = make_hwpt(ioas_, device_);
    other_ = make_hwpt(ioas_, device_);
  }
  void TearDown() override {
    {
      Locked locked(*context_);
      locked.detach_all(**locked.find<Device>(device_));
    }
    for (const u32 id : {plain_, s2_, other_, device_, ioas_}) EXPECT_EQ(destroy(id), 0);
    DeviceWorld::TearDown();
  }
  u32 make_device(u8 pasid_bits) {
    if (GetParam()) return make_vtd(++source_, pasid_bits);
    Locked locked(*context_);
    return (*locked.make_device(false, false, pasid_bits))->object.id;
  }

  u16 source_ = 0x10;
  u32 ioas_ = 0, device_ = 0, plain_ = 0, s2_ = 0, other_ = 0;
};

TEST_P(Attachments, S4_08_APasidIsAttachedOnce) {
  EXPECT_EQ(attach(device_, s2_, 100), 0);
  EXPECT_EQ(attach(device_, s2_, 100), EBUSY);
  EXPECT_EQ(attach(device_, other_, 100), EBUSY);
  EXPECT_EQ(attached(device_, 100), s2_);
  EXPECT_EQ(attached(device_, 101), 0u);
  detach(device_, 100);
  EXPECT_EQ(attached(device_, 100), 0u);
  detach(device_, 100);  // nothing to do
}

TEST_P(Attachments, APageTableIsForPasidsOnlyIfMadeForThem) {
  EXPECT_EQ(attach(device_, plain_, 100), EINVAL);
  EXPECT_EQ(attach(device_, ioas_, 100), EINVAL) << "an automatic one never is";
  EXPECT_EQ(attached(device_, 100), 0u);
}

TEST_P(Attachments, TheDevicesOwnPageTableHasToFitThem) {
  EXPECT_EQ(attach(device_, plain_), 0);
  EXPECT_EQ(attach(device_, s2_, 100), EINVAL);
  EXPECT_EQ(replace(device_, other_), 0);
  EXPECT_EQ(attach(device_, s2_, 100), 0);
  EXPECT_EQ(replace(device_, plain_), EINVAL);
  EXPECT_EQ(replace(device_, ioas_), EINVAL);
  EXPECT_EQ(attached(device_), other_);
  detach(device_, 100);
  EXPECT_EQ(replace(device_, plain_), 0);
}

TEST_P(Attachments, S4_08_APasidOutOfItsDevicesRangeIsRefused) {
  EXPECT_EQ(attach(device_, s2_, (1 << kPasidBits) - 1), 0);
  EXPECT_EQ(attach(device_, s2_, 1 << kPasidBits), EINVAL);
  EXPECT_EQ(attach(device_, s2_, 1 << 20), EINVAL);
  const u32 none = make_device(0);
  EXPECT_EQ(attach(none, s2_, 1), EINVAL);
  EXPECT_EQ(attach(none, s2_), 0);
  EXPECT_EQ(destroy(none), EBUSY);
  detach(none);
  EXPECT_EQ(destroy(none), 0);
}

TEST_P(Attachments, ReplacingNeedsSomethingToReplace) {
  EXPECT_EQ(replace(device_, s2_, 200), EINVAL);
  EXPECT_EQ(attach(device_, s2_, 200), 0);
  EXPECT_EQ(replace(device_, ioas_, 200), EINVAL);
  EXPECT_EQ(replace(device_, plain_, 200), EINVAL);
  EXPECT_EQ(replace(device_, 9999, 200), ENOENT);
  EXPECT_EQ(attached(device_, 200), s2_);
  EXPECT_EQ(replace(device_, other_, 200), 0);
  EXPECT_EQ(replace(device_, other_, 200), 0) << "by the same is nothing";
  EXPECT_EQ(attached(device_, 200), other_);
}

TEST_P(Attachments, HoldTheirPageTableAndDevice) {
  EXPECT_EQ(attach(device_, s2_, 7), 0);
  EXPECT_EQ(attach(device_, s2_, 8), 0) << "one page table may serve several";
  EXPECT_EQ(attach(device_, s2_), 0);
  EXPECT_EQ(destroy(s2_), EBUSY);
  EXPECT_EQ(destroy(device_), EBUSY);
  detach(device_, 7);
  detach(device_);
  EXPECT_EQ(destroy(s2_), EBUSY);
  EXPECT_EQ(attached(device_, 8), s2_);
}

TEST_P(Attachments, ATrackingTableIsNothingForWhoCannotTell) {
  Locked locked(*context_);
  const auto blunt =
      GetParam()
          ? locked.make_vtd_device({.source = SourceId{0x99}, .max_pasid_lg2 = 8, .no_dirty = true})
          : locked.make_device(true, false, 8);
  Hwpt* const tracking = *locked.make_hwpt(
      **locked.find<Ioas>(ioas_), **locked.find<Device>(device_), {.dirty = true, .pasid = true});
  u32 pt = tracking->object.id;
  EXPECT_EQ(error_of(locked.attach(**blunt, &pt, 5)), EINVAL);
  EXPECT_EQ(error_of(locked.attach(**locked.find<Device>(device_), &pt, 5)), 0);
  locked.detach(**locked.find<Device>(device_), 5);
  locked.destroy_hwpt(tracking);
  locked.destroy_device(*blunt);
}

TEST_P(Attachments, WhatIsRefusedMemoryChangesNothing) {
  const u64 runs = failpoint::sweep([&] {
    const int error = attach(device_, s2_, 0x42);
    EXPECT_TRUE(error == 0 || error == ENOMEM);
    EXPECT_EQ(attached(device_, 0x42), error == 0 ? s2_ : 0);
    if (error == 0) detach(device_, 0x42);
  });
  EXPECT_EQ(runs, GetParam() ? 2u : 1u);  // a PASID table is made, and stays
}

TEST_P(Attachments, ThousandPasidsAreThousandEntries) {
  const u32 wide = make_device(20);
  for (u32 i = 1; i <= 1000; ++i) ASSERT_EQ(attach(wide, i % 2 == 0 ? s2_ : other_, i * 1021), 0);
  for (u32 i = 1; i <= 1000; ++i) ASSERT_EQ(attached(wide, i * 1021), i % 2 == 0 ? s2_ : other_);
  for (u32 i = 1; i <= 1000; ++i) detach(wide, i * 1021);
  EXPECT_EQ(destroy(wide), 0);
}

INSTANTIATE_TEST_SUITE_P(OfEachKind, Attachments, testing::Values(false, true),
                         [](const auto& kind) { return kind.param ? "Vtd" : "TestDevice"; });

class VtdAttachments : public DeviceWorld {};

TEST_F(VtdAttachments, AreWhatTheTablesSay) {
  const u32 ioas = make_ioas(), device = make_vtd(0x21);
  const u32 second = make_hwpt(ioas, device),
            first = make_hwpt(ioas, device, {.pasid = true, .first_level = true});
  ASSERT_EQ(attach(device, second), 0);
  EXPECT_EQ(entry(device, kNoPasid).entry.type(), TranslationType::kSecondLevel);
  EXPECT_EQ(entry(device, kNoPasid).entry.second_levels(), 4u);
  ASSERT_EQ(attach(device, first, 9), 0);
  EXPECT_EQ(entry(device, 9).entry.type(), TranslationType::kFirstLevel);
  EXPECT_EQ(entry(device, 9).entry.domain_id(), 1u);
  EXPECT_EQ(entry(device, 9).entry.first_levels(), 4u);
  EXPECT_EQ(replace(device, second, 9), 0);
  EXPECT_EQ(entry(device, 9).entry.type(), TranslationType::kSecondLevel);
  EXPECT_EQ(entry(device, 9).entry.domain_id(), entry(device, kNoPasid).entry.domain_id());
  detach(device, 9);
  EXPECT_EQ(entry(device, 9).reason, FaultReason::kPasidNotPresent);
  detach(device);
  EXPECT_EQ(entry(device, kNoPasid).reason, FaultReason::kPasidNotPresent);
  for (const u32 id : {second, first, device, ioas}) EXPECT_EQ(destroy(id), 0);
}

TEST_F(VtdAttachments, ADevicesOwnReserveItsInterruptsWindowAndPasidsDoNot) {
  const u32 ioas = make_ioas(), device = make_vtd(0x21);
  const u32 table = make_hwpt(ioas, device);
  const test::GuardedPages memory(1);
  ASSERT_EQ(attach(device, table, 3), 0);
  EXPECT_EQ(map_at(ioas, memory.address(), kPageSize, kInterruptStart), 0);
  EXPECT_EQ(attach(device, table), EADDRINUSE);
  EXPECT_EQ(attached(device), 0u);
  EXPECT_EQ(unmap(ioas, kInterruptStart, kPageSize), 0);
  EXPECT_EQ(attach(device, table), 0);
  EXPECT_EQ(map_at(ioas, memory.address(), kPageSize, kInterruptStart), EINVAL);
  detach(device);
  EXPECT_EQ(map_at(ioas, memory.address(), kPageSize, kInterruptStart), 0);
  EXPECT_EQ(unmap_all(ioas), 0);
  detach(device, 3);
  for (const u32 id : {table, device, ioas}) EXPECT_EQ(destroy(id), 0);
}

// The order of the kernel: what the device must not use as memory, then what its driver says.
TEST_F(VtdAttachments, AWindowInUseIsToldBeforeATableThatCannotBeWalked) {
  const u32 ioas = make_ioas(), other = make_ioas();
  const u32 narrow = make_vtd(0x21, 8, 3), wide = make_vtd(0x22, 8, 5);
  const u32 deep = make_hwpt(ioas, wide), flat = make_hwpt(other, narrow);
  const test::GuardedPages memory(1);
  ASSERT_EQ(map_at(ioas, memory.address(), kPageSize, kInterruptStart), 0);
  EXPECT_EQ(attach(narrow, deep), EADDRINUSE);
  ASSERT_EQ(attach(narrow, flat), 0);
  EXPECT_EQ(replace(narrow, deep), EADDRINUSE);
  EXPECT_EQ(replace(narrow, ioas), EADDRINUSE) << "by a table made for it";
  EXPECT_EQ(unmap(ioas, kInterruptStart, kPageSize), 0);
  EXPECT_EQ(replace(narrow, deep), EINVAL);
  EXPECT_EQ(attached(narrow), flat);
  EXPECT_EQ(map_at(other, memory.address(), kPageSize, kInterruptStart), EINVAL) << "still its own";
  detach(narrow);
  EXPECT_EQ(attach(narrow, deep), EINVAL);
  // Nothing of what was refused is left.
  EXPECT_EQ(map_at(ioas, memory.address(), kPageSize, kInterruptStart), 0);
  EXPECT_EQ(map_at(other, memory.address(), kPageSize, kInterruptStart), 0);
  for (const u32 id : {ioas, other}) EXPECT_EQ(unmap_all(id), 0);
  for (const u32 id : {deep, flat, narrow, wide, ioas, other}) EXPECT_EQ(destroy(id), 0);
}

// What a guest says of its own tables is looked at when a device is to walk them.
TEST_F(VtdAttachments, AGuestsTablesAreJudgedByTheUnitThatWalksThem) {
  const u32 ioas = make_ioas(), device = make_vtd(0x21), wide = make_vtd(0x22, 8, 5);
  const u32 parent = make_hwpt(ioas, device, {.nest_parent = true}),
            deep = make_hwpt(ioas, wide, {.nest_parent = true});
  const auto nest = [&](u32 on, u32 levels) {
    Locked locked(*context_);
    return (*locked.make_nested(**locked.find<Hwpt>(on), {.levels = levels}))->object.id;
  };
  const u32 four = nest(parent, 4), five = nest(parent, 5), none = nest(parent, 0),
            on_deep = nest(deep, 4);
  EXPECT_EQ(attach(device, none), EINVAL);
  EXPECT_EQ(attach(device, five), EINVAL) << "more levels than the unit has";
  EXPECT_EQ(attach(device, on_deep), ENODEV) << "the parent has";
  EXPECT_EQ(attach(wide, five), 0);
  EXPECT_EQ(attach(device, four), 0);
  EXPECT_EQ(replace(device, five), EINVAL);
  EXPECT_EQ(attached(device), four);
  detach(device);
  detach(wide);
  for (const u32 id : {four, five, none, on_deep, parent, deep, device, wide, ioas})
    EXPECT_EQ(destroy(id), 0);
}

TEST_F(VtdAttachments, TakeTheTablesTheirDeviceCanWalk) {
  const u32 ioas = make_ioas(), narrow = make_vtd(0x21, 8, 3), wide = make_vtd(0x22, 8, 5);
  EXPECT_EQ(make_vtd(0x21), 0u) << "one device a source";
  EXPECT_EQ(make_vtd(0x23, 8, 6), 0u);
  EXPECT_EQ(make_vtd(0x23, 21), 0u);
  EXPECT_EQ(make_hwpt(ioas, narrow, {.first_level = true}), 0u);
  EXPECT_EQ(make_hwpt(ioas, wide, {.dirty = true, .first_level = true}), 0u);
  const u32 deep = make_hwpt(ioas, wide), flat = make_hwpt(ioas, narrow);
  EXPECT_EQ(attach(narrow, deep), EINVAL);
  EXPECT_EQ(attach(wide, flat), 0);
  const Attached mock = attach_device(deep);
  EXPECT_EQ(mock.error, EINVAL);
  detach(wide);
  for (const u32 id : {deep, flat, narrow, wide, ioas}) EXPECT_EQ(destroy(id), 0);
}

}  // namespace
}  // namespace stagetwo::iommu

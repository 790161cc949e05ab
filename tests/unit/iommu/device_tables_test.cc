// SPDX-License-Identifier: Apache-2.0
// The tables a device's requests are looked up in, read here word by word as the specification has
// them, without the engine's own accessors.
#include "iommu/device_tables.h"

#include <gtest/gtest.h>

#include "base/failpoint.h"
#include "iommu/requests.h"

namespace stagetwo::iommu {
namespace {

constexpr SourceId kSource{0x1283};  // bus 12, devfn 83
constexpr PasidEntry kEntry =
    make_pasid_entry(TranslationType::kSecondLevel, 77).with_second(0xabc000, 4, true);

class DeviceTables : public testing::Test {
 protected:
  void SetUp() override { ASSERT_TRUE(arena_.attach(backing_.fd())); }
  void TearDown() override {
    const Arena::Guard guard(arena_);
    EXPECT_EQ(arena_.blocks_in_use(), 0);
    EXPECT_EQ(root_, 0u);
  }
  u64 word(u64 table, u64 index) { return static_cast<const u64*>(arena_.at(table))[index]; }
  FaultReason reason(SourceId source, s64 pasid) {
    return find_pasid(arena_, root_, source, pasid).reason;
  }

  host::Backing backing_ = *Arena::make_file("test-devices");
  Arena arena_;
  Kept<u64> root_;
};

TEST_F(DeviceTables, S4_10_StandAsTheSpecificationHasThem) {
  const Arena::Guard guard(arena_);
  ASSERT_TRUE(add_context(arena_, &root_, kSource, 20));
  ASSERT_TRUE(set_pasid_entry(arena_, root_, kSource, 0xabcde, kEntry));
  // Root: 16 bytes a bus, the high half for devices 10 and up.
  EXPECT_EQ(word(root_, 0x12 * 2), 0u);
  const u64 half = word(root_, 0x12 * 2 + 1);
  EXPECT_EQ(half & 0xfff, 1u);
  // Context: 32 bytes; present, device TLB, PASIDs, page requests, 2^(7+7) directory entries.
  const u64 context = word(half & ~u64{0xfff}, 3 * 4);
  EXPECT_EQ(context & 0xfff, 0x1u | 0x4 | 0x8 | 0x10 | 7 << 9);
  EXPECT_EQ(word(half & ~u64{0xfff}, 3 * 4 + 1) & 0xfffff, 0u) << "requests without PASID use 0";
  const u64 in_directory = word(context & ~u64{0xfff}, 0xabcde >> 6);
  EXPECT_EQ(in_directory & 0xfff, 1u);
  const u64 entry = (in_directory & ~u64{0xfff}) + (0xabcde & 63) * 64;
  // Present, 4 levels (2 in bits 2-4), type 2 in bits 6-8, dirty bit 9, pointer; then the domain.
  EXPECT_EQ(word(entry, 0), 0xabc000u | 1 | 2 << 2 | 2 << 6 | 1 << 9);
  EXPECT_EQ(word(entry, 1) & 0xffff, 77u);
  for (unsigned i = 2; i < 8; ++i) EXPECT_EQ(word(entry, i), 0u);
  remove_context(arena_, &root_, kSource);
}

TEST_F(DeviceTables, I10SayWhyNothingIsFound) {
  const Arena::Guard guard(arena_);
  EXPECT_EQ(reason(kSource, kNoPasid), FaultReason::kRootNotPresent);
  ASSERT_TRUE(add_context(arena_, &root_, kSource, 13));
  EXPECT_EQ(reason(SourceId{0x1383}, kNoPasid), FaultReason::kRootNotPresent);
  EXPECT_EQ(reason(SourceId{0x1284}, kNoPasid), FaultReason::kContextNotPresent);
  EXPECT_EQ(reason(kSource, 1 << 13), FaultReason::kPasidTooLarge);
  EXPECT_EQ(reason(kSource, 5), FaultReason::kDirectoryNotPresent);
  ASSERT_TRUE(set_pasid_entry(arena_, root_, kSource, 5, kEntry));
  EXPECT_EQ(reason(kSource, 5), FaultReason::kNone);
  EXPECT_EQ(reason(kSource, 6), FaultReason::kPasidNotPresent);
  EXPECT_EQ(reason(kSource, kNoPasid), FaultReason::kPasidNotPresent);
  PasidEntry bad = kEntry;
  bad.word[5] = 1;
  replace_pasid_entry(arena_, root_, kSource, 5, bad);
  EXPECT_EQ(reason(kSource, 5), FaultReason::kPasidReserved);
  replace_pasid_entry(arena_, root_, kSource, 5, make_pasid_entry(TranslationType{6}, 1));
  EXPECT_EQ(reason(kSource, 5), FaultReason::kPasidInvalid);
  hide_pasid_entry(arena_, root_, kSource, 5);
  EXPECT_EQ(reason(kSource, 5), FaultReason::kPasidNotPresent);
  wipe_pasid_entry(arena_, root_, kSource, 5);
  ASSERT_TRUE(set_pasid_entry(arena_, root_, kSource, 5, kEntry));
  remove_context(arena_, &root_, kSource);
}

TEST_F(DeviceTables, I10ADeviceWithoutPasidsHasItsOwnEntryOnly) {
  const Arena::Guard guard(arena_);
  ASSERT_TRUE(add_context(arena_, &root_, kSource, 0));
  ASSERT_TRUE(set_pasid_entry(arena_, root_, kSource, 0, kEntry));
  EXPECT_EQ(reason(kSource, kNoPasid), FaultReason::kNone);
  EXPECT_EQ(reason(kSource, 0), FaultReason::kPasidNotEnabled);
  remove_context(arena_, &root_, kSource);
}

TEST_F(DeviceTables, RefuseWhatIsThereOrCannotBe) {
  const Arena::Guard guard(arena_);
  const auto set = [&](SourceId source, u32 pasid) {
    const auto done = set_pasid_entry(arena_, root_, source, pasid, kEntry);
    return done ? 0 : to_int(done.error());
  };
  EXPECT_EQ(set(kSource, 1), ENODEV);
  ASSERT_TRUE(add_context(arena_, &root_, kSource, 13));
  EXPECT_EQ(to_int(add_context(arena_, &root_, kSource, 13).error()), EBUSY);
  EXPECT_EQ(set(SourceId{0x1284}, 1), ENODEV);
  EXPECT_EQ(set(kSource, 1 << 13), EINVAL);
  EXPECT_EQ(set(kSource, 1), 0);
  EXPECT_EQ(set(kSource, 1), EBUSY);
  remove_context(arena_, &root_, kSource);
}

TEST_F(DeviceTables, WhatIsRefusedMemoryLeavesNothing) {
  const Arena::Guard guard(arena_);
  const u64 runs = failpoint::sweep([&] {
    if (!add_context(arena_, &root_, kSource, 20)) {
      ASSERT_EQ(root_, 0u);
      ASSERT_EQ(arena_.blocks_in_use(), 0);
      return;
    }
    const auto set = set_pasid_entry(arena_, root_, kSource, 9, kEntry);
    ASSERT_EQ(reason(kSource, 9), set ? FaultReason::kNone : FaultReason::kDirectoryNotPresent);
    remove_context(arena_, &root_, kSource);
  });
  EXPECT_EQ(runs, 4u);  // root, context, directory, PASID table
}

}  // namespace
}  // namespace stagetwo::iommu

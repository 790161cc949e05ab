// SPDX-License-Identifier: Apache-2.0
// A fault that knows a slot is over before the slot's successor takes effect, and before the slot
// is given back.

#include "tests/support/installer.h"
#include "tests/unit/stage2/vm_fixture.h"

namespace stagetwo::stage2 {
namespace {

class SlotLifetime : public Memory {
 protected:
  bool waits(u64 gpa, u64 size, u32 flags = 0) {
    const u64 hva = size == 0 ? 0 : pages_.address();
    return test::waits_for_installers(*memory_,
                                      [&] { EXPECT_EQ(0, slot(0, gpa, size, hva, flags)); });
  }
};

TEST_F(SlotLifetime, EveryChangeOfASlotWaitsForFaultsThatKnowIt) {
  ASSERT_EQ(0, slot(0, kGpa, 0x4000, pages_.address()));
  for (const bool zap_all : {true, false}) {
    memory_->set_slot_zap_all(zap_all);
    EXPECT_TRUE(waits(kGpa, 0x4000, kLogDirtyPages));
    EXPECT_TRUE(waits(kGpa, 0x4000));
    EXPECT_TRUE(waits(2 * kGpa, 0x4000));
    EXPECT_TRUE(waits(0, 0));
    ASSERT_EQ(0, slot(0, kGpa, 0x4000, pages_.address()));
  }
}

TEST_F(SlotLifetime, AChangeOfHostAddressesWaitsForFaultsThatFoundTheOldOnes) {
  ASSERT_EQ(0, slot(0, kGpa, 0x4000, pages_.address()));
  EXPECT_TRUE(test::waits_for_installers(
      *memory_, [&] { host::change(pages_.address(), 0x1000, host::EventKind::kUnmap, [] {}); }));
}

TEST_F(SlotLifetime, ASlotThatGoesWaitsForVcpusThatRun) {
  for (const bool zap_all : {true, false}) {
    memory_->set_slot_zap_all(zap_all);
    ASSERT_EQ(0, slot(0, kGpa, 0x4000, pages_.address()));
    ASSERT_EQ(FaultOutcome::kFixed, fault(kGpa, Access::kWrite));
    EXPECT_TRUE(test::waits_for_vcpus(*memory_, [&] { EXPECT_EQ(0, slot(0, 0, 0, 0)); }));
  }
}

TEST_F(SlotLifetime, ANewSlotWaitsForAChangeThatDidNotKnowIt) {
  EXPECT_TRUE(test::waits_for_changes(
      pages_.address(), 0x1000, [&] { EXPECT_EQ(0, slot(0, kGpa, 0x4000, pages_.address())); }));
}

TEST_F(SlotLifetime, AHarvestThatTakesAMarkWaitsForVcpusThatRun) {
  ASSERT_EQ(0, slot(0, kGpa, 0x4000, pages_.address(), kLogDirtyPages));
  const auto harvest = [&] {
    EXPECT_TRUE(memory_->slots().get_dirty_log(0, Hva(pages_.address() + 0xf000)));
  };
  EXPECT_FALSE(test::waits_for_vcpus(*memory_, harvest));
  ASSERT_EQ(FaultOutcome::kFixed, fault(kGpa, Access::kWrite));
  EXPECT_TRUE(test::waits_for_vcpus(*memory_, harvest));
}

}  // namespace
}  // namespace stagetwo::stage2

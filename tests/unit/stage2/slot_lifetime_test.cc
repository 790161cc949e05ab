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

// The vCPU may be one that is not scheduled: what it cannot have in its TLB is not its business.
TEST_F(SlotLifetime, ASlotThatNobodyUsesGoesUnderVcpusThatRun) {
  ASSERT_EQ(0, slot(0, kGpa, 0x4000, pages_.address()));
  ASSERT_EQ(0, slot(1, 2 * kGpa, 0x4000, pages_.address() + 0x4000));
  ASSERT_EQ(FaultOutcome::kFixed, fault(kGpa, Access::kWrite));
  const auto move = [&](u64 gpa) {
    return test::waits_for_vcpus(
        *memory_, [&] { EXPECT_EQ(0, slot(1, gpa, 0x4000, pages_.address() + 0x4000)); });
  };
  EXPECT_FALSE(move(3 * kGpa));
  EXPECT_EQ(0U, memory_->count_pages().pages_4k);  // every translation is obsolete all the same
  // What a vCPU may still use it uses through a root that is invalid by now.
  EXPECT_TRUE(test::waits_for_vcpus(*memory_, [&] { EXPECT_EQ(0, slot(0, 0, 0, 0)); }));
  EXPECT_FALSE(move(2 * kGpa));
}

TEST_F(SlotLifetime, AfterARemovalThatHasNotFlushedASlotWaits) {
  ASSERT_EQ(0, slot(0, kGpa, 0x4000, pages_.address()));
  ASSERT_EQ(0, slot(1, 2 * kGpa, 0x4000, pages_.address() + 0x4000));
  ASSERT_EQ(FaultOutcome::kFixed, fault(2 * kGpa, Access::kWrite));
  pt::Gather removed;
  EXPECT_TRUE(
      memory_->tdp().zap_leafs(0, GfnRange(Gfn(2 * kGpa >> kPageShift), 4), &removed, true));
  EXPECT_TRUE(test::waits_for_vcpus(
      *memory_, [&] { EXPECT_EQ(0, slot(1, 3 * kGpa, 0x4000, pages_.address() + 0x4000)); }));
  memory_->tdp().flush_and_release(&removed);
}

TEST_F(SlotLifetime, OldRootsAreTakenApartByWhoeverWalksThemLast) {
  ASSERT_EQ(0, slot(0, kGpa, 0x4000, pages_.address()));
  ASSERT_EQ(0, slot(1, 2 * kGpa, 0x4000, pages_.address() + 0x4000));
  ASSERT_EQ(FaultOutcome::kFixed, fault(kGpa, Access::kWrite));
  ASSERT_FALSE(line_.enter());
  for (u64 i = 0; i < 4; ++i) {
    ASSERT_EQ(0, slot(1, (3 + i) * kGpa, 0x4000, pages_.address() + 0x4000));
  }
  EXPECT_EQ(1U, memory_->tdp().root_count());  // this line walks it
  memory_->check_world();
  EXPECT_TRUE(line_.poll());
  memory_->flushed(*context_);
  line_.leave();
  ASSERT_EQ(FaultOutcome::kFixed, fault(kGpa, Access::kWrite));
  EXPECT_EQ(1U, memory_->tdp().root_count());
  memory_->check_world();  // and no table is left that no root leads to
}

TEST_F(SlotLifetime, ATableTooLargeToLeaveStandingIsWaitedFor) {
  constexpr u64 kBig = u64{1025} << 21;
  void* big = mmap(nullptr, kBig, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  ASSERT_NE(MAP_FAILED, big);
  ASSERT_EQ(0, slot(0, u64{1} << 32, kBig, reinterpret_cast<u64>(big)));
  ASSERT_EQ(0, slot(1, kGpa, 0x4000, pages_.address()));
  for (u64 at = 0; at < kBig; at += u64{1} << 21) {
    ASSERT_EQ(FaultOutcome::kFixed, fault((u64{1} << 32) + at, Access::kRead));
  }
  EXPECT_TRUE(test::waits_for_vcpus(
      *memory_, [&] { EXPECT_EQ(0, slot(1, 2 * kGpa, 0x4000, pages_.address())); }));
  EXPECT_EQ(0, slot(0, 0, 0, 0));
  munmap(big, kBig);
}

TEST_F(SlotLifetime, ANewSlotWaitsForAChangeThatDidNotKnowIt) {
  EXPECT_TRUE(test::waits_for_changes(
      pages_.address(), 0x1000, [&] { EXPECT_EQ(0, slot(0, kGpa, 0x4000, pages_.address())); }));
}

// Whatever becomes of the slot, and also where the change is of other addresses: a change ends with
// the slots it began with.
TEST_F(SlotLifetime, EveryChangeOfASlotWaitsForAChangeUnderWay) {
  ASSERT_EQ(0, slot(0, kGpa, 0x4000, pages_.address()));
  const auto waits_for_a_change = [&](u64 gpa, u64 size, u32 flags = 0) {
    return test::waits_for_changes(pages_.address() + 0x8000, 0x1000, [&] {
      EXPECT_EQ(0, slot(0, gpa, size, size == 0 ? 0 : pages_.address(), flags));
    });
  };
  EXPECT_TRUE(waits_for_a_change(kGpa, 0x4000, kLogDirtyPages));
  EXPECT_TRUE(waits_for_a_change(2 * kGpa, 0x4000));
  EXPECT_TRUE(waits_for_a_change(0, 0));
  EXPECT_EQ(FaultOutcome::kMmio, fault(2 * kGpa, Access::kRead));
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

// SPDX-License-Identifier: Apache-2.0
// Guards of a VM's memory, one step after another: what is wrong without each.
#include "base/guard.h"
#include "stage2/dirty_ring.h"
#include "tests/support/guest_memory_access.h"
#include "tests/support/installer.h"
#include "tests/unit/stage2/vm_fixture.h"

namespace stagetwo::stage2 {
namespace {

class WithoutAGuard : public Memory {
 protected:
  void SetUp() override {
    Memory::SetUp();
    ASSERT_EQ(0, slot(0, kGpa, 0x4000, pages_.address()));
  }
  void TearDown() override {
    mutation::restore_all();
    Memory::TearDown();
  }
  // And with it the old roots that stood because a line was on them.
  void another_slot_goes() {
    mutation::restore_all();
    ASSERT_EQ(0, slot(1, 8 * kGpa, 0x1000, pages_.address()));
    ASSERT_EQ(0, slot(1, 0, 0, 0));
  }
};

class MmioWrap : public WithoutAGuard {};
TEST_F(MmioWrap, WithoutTheZapAnOldNoSlotCountsAgain) {
  const auto first_number_again = [this] {
    memory_->slots().debug_set_generation(2 * (kMmioGenerationMask + 1) - kMaxAddressSpaces);
    return slot(1, 8 * kGpa, 0x1000, pages_.address());
  };
  ASSERT_EQ(0, slot(1, 8 * kGpa, 0x1000, pages_.address()));
  ASSERT_EQ(0, slot(1, 0, 0, 0));
  memory_->slots().debug_set_generation(kMmioGenerationMask + 1);
  ASSERT_EQ(FaultOutcome::kMmio, fault(4 * kGpa, Access::kRead));
  ASSERT_EQ(Walk::Kind::kMmio, look(4 * kGpa));
  memory_->set_slot_zap_all(false);
  mutation::remove("mmio_wrap");
  ASSERT_EQ(0, first_number_again());
  EXPECT_EQ(Walk::Kind::kMmio, look(4 * kGpa));
}

class NotifierZap : public WithoutAGuard {};
TEST_F(NotifierZap, WithoutItAnEntryStandsWhileItsPageGoes) {
  ASSERT_EQ(FaultOutcome::kFixed, fault(kGpa, Access::kWrite));
  mutation::remove("notifier_zap");
  host::change(pages_.address(), 0x1000, host::EventKind::kUnmap,
               [this] { EXPECT_EQ(Walk::Kind::kHit, look(kGpa)); });
}

class WriteTracking : public WithoutAGuard {};
TEST_F(WriteTracking, WithoutTheTestTheHostIsAskedForAPageThatIsEmulated) {
  ASSERT_TRUE(memory_->slots().track_writes(0, gpa_to_gfn(Gpa(kGpa))));
  ASSERT_EQ(0, mprotect(pages_.pointer(), 0x1000, PROT_NONE));
  EXPECT_EQ(FaultOutcome::kEmulate, fault_once(kGpa, Access::kWrite));
  mutation::remove("write_tracking");
  EXPECT_EQ(FaultOutcome::kToUser, fault_once(kGpa, Access::kWrite));
}

class SlotUsersWait : public WithoutAGuard {};
TEST_F(SlotUsersWait, WithoutItASlotEndsUnderAFaultThatKnowsIt) {
  const auto log = [this](u32 flags) {
    EXPECT_EQ(0, slot(0, kGpa, 0x4000, pages_.address(), flags));
  };
  EXPECT_TRUE(test::waits_for_installers(*memory_, [&] { log(kLogDirtyPages); }));
  mutation::remove("slot_users_wait");
  EXPECT_FALSE(test::waits_for_installers(*memory_, [&] { log(0); }));
}

class StaleFault : public WithoutAGuard {};
TEST_F(StaleFault, WithoutTheTestAFaultThatAChangeOvertookInstalls) {
  const auto overtaken = [this] {
    Fault late = ask(kGpa, Access::kWrite);
    EXPECT_EQ(FaultOutcome::kFixed, GuestMemoryTestAccess::find(*memory_, *context_, late));
    host::change(pages_.address(), 0x1000, host::EventKind::kUnmap, [] {});
    return memory_->tdp().page_fault(*context_, late);
  };
  EXPECT_EQ(FaultOutcome::kRetry, overtaken());
  mutation::remove("stale_fault");
  EXPECT_EQ(FaultOutcome::kFixed, overtaken());
}

class AckWait : public WithoutAGuard {};
TEST_F(AckWait, WithoutTheWaitASlotGoesUnderAVcpuThatRuns) {
  ASSERT_EQ(FaultOutcome::kFixed, fault(kGpa, Access::kWrite));
  mutation::remove("ack_wait");
  EXPECT_FALSE(test::waits_for_vcpus(*memory_, [&] { EXPECT_EQ(0, slot(0, 0, 0, 0)); }));
  another_slot_goes();
}

class SlotInUse : public WithoutAGuard {};
TEST_F(SlotInUse, WithoutTheLookASlotGoesUnderAVcpuThatUsesIt) {
  ASSERT_EQ(FaultOutcome::kFixed, fault(kGpa, Access::kWrite));
  mutation::remove("slot_in_use");
  EXPECT_FALSE(test::waits_for_vcpus(*memory_, [&] { EXPECT_EQ(0, slot(0, 0, 0, 0)); }));
  another_slot_goes();
}

class ChangesWait : public WithoutAGuard {};
TEST_F(ChangesWait, WithoutTheWaitANewSlotServesWhatAChangeTakes) {
  ASSERT_EQ(0, slot(0, 0, 0, 0));
  mutation::remove("create_waits");
  EXPECT_FALSE(test::waits_for_changes(
      pages_.address(), 0x1000, [&] { EXPECT_EQ(0, slot(0, kGpa, 0x4000, pages_.address())); }));
}

TEST_F(ChangesWait, WithoutTheWaitASlotGoesInTheMiddleOfAChange) {
  mutation::remove("swap_waits");
  EXPECT_FALSE(
      test::waits_for_changes(pages_.address(), 0x1000, [&] { EXPECT_EQ(0, slot(0, 0, 0, 0)); }));
}

class HarvestFlush : public WithoutAGuard {};
TEST_F(HarvestFlush, WithoutTheFlushAHarvestEndsUnderAVcpuThatStores) {
  ASSERT_EQ(0, slot(0, kGpa, 0x4000, pages_.address(), kLogDirtyPages));
  ASSERT_EQ(FaultOutcome::kFixed, fault(kGpa, Access::kWrite));
  mutation::remove("harvest_flush");
  EXPECT_FALSE(test::waits_for_vcpus(*memory_, [&] {
    EXPECT_TRUE(memory_->slots().get_dirty_log(0, Hva(pages_.address() + 0xf000)));
  }));
}

class RingReset : public WithoutAGuard {};
TEST_F(RingReset, WithoutTheFlushAResetEndsUnderAVcpuThatStores) {
  static DirtyGfn entries[128];
  DirtyRing ring(0, entries, sizeof(entries));
  memory_->slots().use_dirty_rings();
  memory_->slots().add_ring(ring);
  context_->ring = &ring;
  ASSERT_EQ(0, slot(0, kGpa, 0x4000, pages_.address(), kLogDirtyPages));
  u32 next = 0;
  const auto reset_of_one = [&] {
    EXPECT_EQ(FaultOutcome::kFixed, fault(kGpa, Access::kWrite));
    EXPECT_EQ(kGfnDirtied, entries[next].flags.load());
    entries[next++].flags.store(kGfnReset);
    return test::waits_for_vcpus(*memory_,
                                 [&] { EXPECT_EQ(1U, memory_->slots().reset_dirty_rings()); });
  };
  EXPECT_TRUE(reset_of_one());
  mutation::remove("ring_reset_flush");
  EXPECT_FALSE(reset_of_one());
  mutation::restore_all();
  memory_->slots().remove_ring(ring);
  context_->ring = nullptr;
}

}  // namespace
}  // namespace stagetwo::stage2

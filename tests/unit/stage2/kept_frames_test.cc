// SPDX-License-Identifier: Apache-2.0
// Goal: a frame that somebody keeps is used where he has it, and is in no translation when he says
// that it goes. Method: one VM whose first frames a toy keeps at pages the slot does not know.
#include "host/mmu_notifier.h"
#include "tests/support/guest_memory_access.h"
#include "tests/support/toy_keeper.h"
#include "tests/unit/stage2/vm_fixture.h"

namespace stagetwo::stage2 {
namespace {

using Where = FrameKeeper::Where;

class KeptFrames : public Memory {
 protected:
  static constexpr u64 kSlotPages = 8;
  static constexpr u64 kFirst = kGpa >> kPageShift;
  void SetUp() override {
    Memory::SetUp();
    memory_->private_memory().set_keeper(&keeper_);
    ASSERT_EQ(0, slot(0, kGpa, kSlotPages * kPageSize, pages_.address(), kLogDirtyPages));
  }
  [[nodiscard]] Hva elsewhere(u64 page) const {
    return Hva(pages_.address() + (12 + page) * kPageSize);
  }
  void keep(u64 page, Where where) { keeper_.kept[kFirst + page] = {where, elsewhere(page)}; }
  void goes(u64 page) {
    memory_->private_memory().frames_going(GfnRange(Gfn(kFirst + page), 1));
    memory_->private_memory().frames_gone();
  }
  static u64 gpa(u64 page) { return kGpa + page * kPageSize; }

  test::ToyKeeper keeper_;
};

TEST_F(KeptFrames, AreUsedWhereTheirKeeperHasThem) {
  keep(1, Where::kKept);
  Fault found;
  ASSERT_EQ(fault(gpa(1), Access::kWrite, &found), FaultOutcome::kFixed);
  EXPECT_EQ(found.page.raw(), elsewhere(1).raw());
  EXPECT_TRUE(found.is_private);
  ASSERT_EQ(fault(gpa(2), Access::kWrite, &found), FaultOutcome::kFixed);
  EXPECT_EQ(found.page.raw(), pages_.address() + 2 * kPageSize);
  EXPECT_FALSE(found.is_private);
  // An access of KVM's own is the client's.
  const u64 word = 42;
  ASSERT_EQ(memory_->write(Gpa(gpa(1)), &word, sizeof(word)), FaultOutcome::kFixed);
  u64 there = 0;
  ASSERT_TRUE(host::load(Hva(pages_.address() + kPageSize), &there));
  EXPECT_EQ(there, word);
  // One on the guest's behalf is the guest's.
  ASSERT_EQ(memory_->read_as_guest(Gpa(gpa(1)), &there, sizeof(there)), FaultOutcome::kFixed);
  EXPECT_EQ(there, 0u);
}

TEST_F(KeptFrames, AreInNoTranslationWhenTheyGo) {
  keep(1, Where::kKept);
  ASSERT_EQ(fault(gpa(1), Access::kWrite), FaultOutcome::kFixed);
  ASSERT_EQ(fault(gpa(2), Access::kWrite), FaultOutcome::kFixed);
  memory_->private_memory().frames_going(GfnRange(Gfn(kFirst + 1), 1));
  EXPECT_EQ(look(gpa(1)), Walk::Kind::kMiss);
  EXPECT_EQ(look(gpa(2)), Walk::Kind::kHit);
  // What its keeper says meanwhile makes none.
  EXPECT_EQ(fault_once(gpa(1), Access::kRead), FaultOutcome::kRetry);
  EXPECT_EQ(look(gpa(1)), Walk::Kind::kMiss);
  memory_->private_memory().frames_gone();
  EXPECT_EQ(fault(gpa(1), Access::kRead), FaultOutcome::kFixed);
}

TEST_F(KeptFrames, AnAnswerFromBeforeTheyWentIsNone) {
  keep(1, Where::kKept);
  Fault on_its_way = ask(gpa(1), Access::kWrite);
  ASSERT_EQ(GuestMemoryTestAccess::find(*memory_, *context_, on_its_way), FaultOutcome::kFixed);
  goes(1);
  keeper_.kept.clear();
  EXPECT_EQ(memory_->tdp().page_fault(*context_, on_its_way), FaultOutcome::kRetry);
  EXPECT_EQ(look(gpa(1)), Walk::Kind::kMiss);
  Fault found;
  ASSERT_EQ(fault(gpa(1), Access::kWrite, &found), FaultOutcome::kFixed);
  EXPECT_EQ(found.page.raw(), pages_.address() + kPageSize);
}

TEST_F(KeptFrames, ChangesNestAndNameFramesThatNoSlotHas) {
  keep(1, Where::kKept);
  PrivateMemory& frames = memory_->private_memory();
  frames.frames_going(GfnRange(Gfn(kFirst + 1), 1));
  frames.frames_going(GfnRange(Gfn(0), 1));
  frames.frames_gone();
  EXPECT_EQ(fault_once(gpa(1), Access::kRead), FaultOutcome::kRetry);
  frames.frames_gone();
  ASSERT_EQ(fault(gpa(1), Access::kRead), FaultOutcome::kFixed);
  frames.frames_going(GfnRange(Gfn(0), ~u64{0}));
  EXPECT_EQ(look(gpa(1)), Walk::Kind::kMiss);
  frames.frames_gone();
}

TEST_F(KeptFrames, AreBroughtOutsideOfEverything) {
  keep(1, Where::kLater);
  keeper_.brings = {Where::kKept, elsewhere(1)};
  Fault found;
  ASSERT_EQ(fault(gpa(1), Access::kRead, &found), FaultOutcome::kFixed);
  EXPECT_EQ(keeper_.brought, 1u);
  EXPECT_EQ(found.page.raw(), elsewhere(1).raw());
  keep(2, Where::kLater);
  u64 word = 0;
  ASSERT_EQ(memory_->read_as_guest(Gpa(gpa(2)), &word, sizeof(word)), FaultOutcome::kFixed);
  EXPECT_EQ(keeper_.brought, 2u);
  // An access that may not wait says so.
  keep(3, Where::kLater);
  u32 expected = 0;
  bool swapped = false;
  EXPECT_EQ(memory_->try_cmpxchg<u32>(Gpa(gpa(3)), &expected, 1, &swapped), FaultOutcome::kRetry);
  EXPECT_EQ(keeper_.brought, 2u);
}

// As long as a guest rests on its way to be secure. (A page walk went on asking for ever, and no
// signal ended KVM_RUN.)
TEST_F(KeptFrames, WhoseKeeperHasThemNotJustNowAreNotWaitedFor) {
  keep(1, Where::kLater);
  keeper_.brings = {Where::kLater, Hva()};
  u64 word = 0;
  EXPECT_EQ(memory_->read_as_guest(Gpa(gpa(1)), &word, sizeof(word)), FaultOutcome::kSpurious);
  u32 expected = 0;
  bool swapped = false;
  EXPECT_EQ(memory_->cmpxchg<u32>(Gpa(gpa(1)), &expected, 1, &swapped), FaultOutcome::kSpurious);
  EXPECT_FALSE(swapped);
  EXPECT_EQ(keeper_.brought, 2u);
}

TEST_F(KeptFrames, MayBeNoMemoryOrAGuestsThatHasEnded) {
  keep(1, Where::kMmio);
  EXPECT_EQ(fault(gpa(1), Access::kRead), FaultOutcome::kMmio);
  keep(2, Where::kStopped);
  Fault found;
  EXPECT_EQ(fault(gpa(2), Access::kRead, &found), FaultOutcome::kMemoryFault);
  EXPECT_EQ(found.error, EHWPOISON);
  keep(3, Where::kLater);
  keeper_.says = FaultOutcome::kMemoryFault;
  EXPECT_EQ(fault(gpa(3), Access::kRead, &found), FaultOutcome::kMemoryFault);
  EXPECT_EQ(found.error, EHWPOISON);
}

TEST_F(KeptFrames, TheirGuestIsNotYoungAndIsLeftAlone) {
  ASSERT_EQ(fault(gpa(2), Access::kWrite), FaultOutcome::kFixed);
  const HvaRange all(Hva(pages_.address()), kSlotPages * kPageSize);
  EXPECT_TRUE(host::test_young(all));
  keep(1, Where::kKept);
  EXPECT_FALSE(host::test_young(all));
  EXPECT_FALSE(host::clear_young(all));
  EXPECT_FALSE(host::clear_flush_young(all));
  keeper_.kept.clear();
  EXPECT_TRUE(host::test_young(all)) << "nobody took the mark away";
}

TEST_F(KeptFrames, AreSingleInTheTable) {
  EXPECT_TRUE(memory_->private_memory().is_mixed(Gfn(kFirst), 2));
  EXPECT_TRUE(memory_->private_memory().has_secrets());
}

}  // namespace
}  // namespace stagetwo::stage2

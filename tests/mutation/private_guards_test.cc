// SPDX-License-Identifier: Apache-2.0
// Guards of private memory: what is wrong without each.
#include "base/guard.h"
#include "stage2/file_pages.h"
#include "tests/support/guest_memory_access.h"
#include "tests/support/installer.h"
#include "tests/support/private_fixture.h"
#include "tests/support/toy_keeper.h"

namespace stagetwo::stage2 {
namespace {

class PrivateGuards : public PrivateVm {
 protected:
  void SetUp() override {
    PrivateVm::SetUp();
    ASSERT_EQ(0, bind(0, kGpa, kFilePages, pages_.address(), file_));
  }
  void TearDown() override {
    mutation::restore_all();
    if (check_) return PrivateVm::TearDown();
    memory_->lines().remove(line_);
    context_.reset();
  }
  bool check_ = true;
};

class ConvertCloses : public PrivateGuards {};
TEST_F(ConvertCloses, WithoutItAFaultInstallsTheHalfThatWasLeft) {
  const auto convert_under_a_fault = [this](bool to_private) {
    Fault on_its_way = ask(kGpa, Access::kRead);
    EXPECT_EQ(FaultOutcome::kFixed, GuestMemoryTestAccess::find(*memory_, *context_, on_its_way));
    EXPECT_EQ(0, convert(kGpa, 1, to_private));
    return memory_->tdp().page_fault(*context_, on_its_way);
  };
  EXPECT_EQ(FaultOutcome::kRetry, convert_under_a_fault(true));
  mutation::remove("convert_closes");
  EXPECT_EQ(FaultOutcome::kFixed, convert_under_a_fault(false));
  check_ = false;  // the table holds a private entry of a shared frame
}

class ConvertZaps : public PrivateGuards {};
TEST_F(ConvertZaps, WithoutItTheOldHalfIsStillMapped) {
  ASSERT_EQ(FaultOutcome::kFixed, store(kGpa, 1));
  mutation::remove("convert_zaps");
  ASSERT_EQ(0, convert(kGpa, 1, true));
  EXPECT_EQ(Walk::Kind::kHit, look(kGpa));
}

class PunchZap : public PrivateGuards {};
TEST_F(PunchZap, WithoutItAnEntryOutlivesItsPage) {
  ASSERT_EQ(0, convert(kGpa, 1, true));
  ASSERT_EQ(FaultOutcome::kFixed, store(kGpa, 1));
  mutation::remove("punch_zap");
  ASSERT_EQ(0, file_.punch(0, 1));
  EXPECT_EQ(Walk::Kind::kHit, look(kGpa));
}

class NamesItsHalf : public PrivateGuards {};
TEST_F(NamesItsHalf, WithoutItAChangeOfTheClientsAddressTakesAPrivatePage) {
  ASSERT_EQ(0, convert(kGpa, 1, true));
  ASSERT_EQ(FaultOutcome::kFixed, store(kGpa, 1));
  mutation::remove("names_its_half");
  host::change(pages_.address(), kPageSize, host::EventKind::kUnmap, [] {});
  EXPECT_EQ(Walk::Kind::kMiss, look(kGpa));
}

class KeptZap : public PrivateGuards {};
TEST_F(KeptZap, WithoutItAFrameThatItsKeeperTookAwayIsStillMapped) {
  test::ToyKeeper keeper;
  memory_->private_memory().set_keeper(&keeper);
  const Gfn frame = gpa_to_gfn(Gpa(kGpa + kPageSize));
  keeper.kept[frame.raw()] = {FrameKeeper::Where::kKept, Hva(pages_.address())};
  ASSERT_EQ(FaultOutcome::kFixed, fault(kGpa + kPageSize, Access::kRead));
  mutation::remove("kept_zap");
  memory_->private_memory().frames_going(GfnRange(frame, 1));
  EXPECT_EQ(Walk::Kind::kHit, look(kGpa + kPageSize));
  memory_->private_memory().frames_gone();
  check_ = false;  // the entry is of no file
}

class MixedIsSmall : public PrivateGuards {};
TEST_F(MixedIsSmall, WithoutItFramesOfTwoKindsAreOneLargeEntry) {
  ASSERT_EQ(0, convert(0, 1, true));
  EXPECT_TRUE(memory_->private_memory().is_mixed(Gfn(3), 2));
  EXPECT_FALSE(memory_->private_memory().is_mixed(Gfn(3), 1));
  mutation::remove("mixed_is_small");
  EXPECT_FALSE(memory_->private_memory().is_mixed(Gfn(3), 2));
}

}  // namespace
}  // namespace stagetwo::stage2

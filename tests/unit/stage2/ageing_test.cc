// SPDX-License-Identifier: Apache-2.0
// Goal: the bell's questions about use are answered from the table, by host address, also where a
// processor has the translation in hand. Method: one VM, a thread that plays its vCPU and keeps
// what it was given until it is asked to flush.
#include <gtest/gtest.h>

#include <chrono>
#include <thread>

#include "host/mmu_notifier.h"
#include "tests/unit/stage2/vm_fixture.h"

namespace stagetwo::stage2 {
namespace {

using namespace std::chrono_literals;

class Ageing : public Memory {
 protected:
  void SetUp() override {
    Memory::SetUp();
    ASSERT_EQ(0, slot(0, kGpa, 8 * kPageSize, hva(0)));
  }
  [[nodiscard]] u64 hva(u64 page) const { return pages_.address() + page * kPageSize; }
  [[nodiscard]] HvaRange page(u64 n) const { return {Hva(hva(n)), kPageSize}; }
  FaultOutcome use(u64 n, Access access = Access::kRead) {
    return fault(kGpa + n * kPageSize, access);
  }
  // A processor that keeps translations until it is asked to flush.
  bool kept_ = false;
  void use_cached() {
    const sync::RunningSection running(line_);
    if (running.must_flush()) kept_ = false;
    if (kept_) return;
    Fault f = ask(kGpa, Access::kRead);
    ASSERT_EQ(Walk::Kind::kHit, memory_->translate(*context_, f));
    kept_ = true;
  }
};

TEST_F(Ageing, IsAskedByHostAddress) {
  ASSERT_EQ(use(1), FaultOutcome::kFixed);
  EXPECT_TRUE(host::test_young(page(1)));
  EXPECT_FALSE(host::test_young(page(2)));
  EXPECT_TRUE(host::clear_young(page(1)));
  EXPECT_FALSE(host::test_young(page(1)));
  ASSERT_EQ(use(1), FaultOutcome::kFixed);
  EXPECT_TRUE(host::test_young({Hva(hva(0)), 8 * kPageSize}));
}

TEST_F(Ageing, KnowsEveryFrameThatUsesAnAddress) {
  ASSERT_EQ(0, slot(1, kGpa + (1 << 20), 8 * kPageSize, hva(0)));  // an alias
  ASSERT_EQ(fault(kGpa + (1 << 20) + kPageSize, Access::kRead), FaultOutcome::kFixed);
  EXPECT_TRUE(host::test_young(page(1)));
  EXPECT_TRUE(host::clear_young(page(1)));
  EXPECT_FALSE(host::test_young(page(1)));
}

TEST_F(Ageing, CollectsPageByPageAndMakesThemOld) {
  for (const u64 n : {u64{1}, u64{4}, u64{6}}) ASSERT_EQ(use(n), FaultOutcome::kFixed);
  u64 bits = 0;
  host::collect_young({Hva(hva(1)), 5 * kPageSize}, &bits);
  EXPECT_EQ(0b1001U, bits) << "pages 1 and 4, counted from the range's start";
  bits = 0;
  host::collect_young({Hva(hva(0)), 8 * kPageSize}, &bits);
  EXPECT_EQ(0b1000000U, bits) << "the others are old now, and 6 was not asked of";
  bits = 1 << 7;
  host::collect_young({Hva(hva(0)), 8 * kPageSize}, &bits);
  EXPECT_EQ(1U << 7, bits) << "what was set stays set";
}

TEST_F(Ageing, CollectsWhatAnAliasUsed) {
  ASSERT_EQ(0, slot(1, kGpa + (1 << 20), 8 * kPageSize, hva(0)));
  ASSERT_EQ(fault(kGpa + (1 << 20) + 3 * kPageSize, Access::kRead), FaultOutcome::kFixed);
  ASSERT_EQ(use(5), FaultOutcome::kFixed);
  u64 bits = 0;
  host::collect_young({Hva(hva(0)), 8 * kPageSize}, &bits);
  EXPECT_EQ(0b101000U, bits);
}

TEST_F(Ageing, BorrowsExactlyTheSlots) {
  EXPECT_TRUE(host::borrows(page(0)));
  EXPECT_TRUE(host::borrows(page(7)));
  EXPECT_FALSE(host::borrows(page(8)));
}

TEST_F(Ageing, ATranslationInHandHidesUsesUntilItIsFlushed) {
  ASSERT_EQ(use(0), FaultOutcome::kFixed);
  use_cached();
  ASSERT_TRUE(kept_);
  EXPECT_TRUE(host::clear_flush_young(page(0)));
  use_cached();
  EXPECT_TRUE(host::test_young(page(0))) << "with a flush the very next use is seen";
  use_cached();
  std::this_thread::sleep_for(2ms);
  EXPECT_TRUE(host::clear_young(page(0)));
  use_cached();
  EXPECT_TRUE(host::test_young(page(0))) << "the first of a while asks for one";
}

TEST_F(Ageing, OneOfManyOwesAFlushThatTheNextRunAsksFor) {
  for (u64 n = 0; n < 8; ++n) ASSERT_EQ(use(n), FaultOutcome::kFixed);
  use_cached();
  std::this_thread::sleep_for(2ms);
  EXPECT_TRUE(host::clear_young(page(7)));  // asks
  use_cached();
  EXPECT_TRUE(host::clear_young(page(0)));  // owes
  memory_->before_run();
  use_cached();
  EXPECT_TRUE(host::test_young(page(0)));
}

// The promise is about the next use, whoever made the page old.
TEST_F(Ageing, AFlushAfterAQuietClearIsOneAllTheSame) {
  for (u64 n = 0; n < 8; ++n) ASSERT_EQ(use(n), FaultOutcome::kFixed);
  use_cached();
  std::this_thread::sleep_for(2ms);
  EXPECT_TRUE(host::clear_young(page(7)));  // asks
  use_cached();
  EXPECT_TRUE(host::clear_young(page(0)));  // owes
  EXPECT_FALSE(host::clear_flush_young(page(0))) << "it is old";
  use_cached();
  EXPECT_TRUE(host::test_young(page(0)));
}

TEST_F(Ageing, CallsNothingYoungThatWasNotUsed) {
  ASSERT_EQ(use(0, Access::kWrite), FaultOutcome::kFixed);
  EXPECT_TRUE(host::clear_young(page(0)));
  for (int i = 0; i < 10; ++i) {
    memory_->before_run();
    ASSERT_EQ(use(1), FaultOutcome::kFixed);
    EXPECT_FALSE(host::test_young(page(0)));
  }
}

TEST_F(Ageing, AMissingNxPolicyChangesNothing) {
  ASSERT_EQ(use(0), FaultOutcome::kFixed);
  memory_->before_run();
  EXPECT_EQ(Walk::Kind::kHit, look(kGpa)) << "no root was given up";
}

bool nx_wanted = false;
constexpr NxPolicy kNx = {[] { return nx_wanted; }, [] { return u64{1}; }, [] { return u64{0}; }};

TEST(NxPolicy, OfAVmIsFollowedBeforeItsNextRun) {
  nx_wanted = false;
  auto memory = std::move(*GuestMemory::create(SlotPolicy{}, kNx));
  EXPECT_FALSE(memory->tdp().nx_huge_pages());
  nx_wanted = true;
  memory->before_run();
  EXPECT_TRUE(memory->tdp().nx_huge_pages());
  auto refuses = std::move(*GuestMemory::create(SlotPolicy{}, kNx));
  refuses->disable_nx_huge_pages();
  refuses->before_run();
  EXPECT_FALSE(refuses->tdp().nx_huge_pages()) << "a VM may opt out";
}

}  // namespace
}  // namespace stagetwo::stage2

// SPDX-License-Identifier: Apache-2.0
// What a thread stands on while it is in the engine is there and stays (host/footing.h). Whole
// programs: tests/shim/programs/hidden_touches.c; schedules: tests/sched/owners_scenarios.h.
#include "host/footing.h"

#include <signal.h>

#include <optional>
#include <vector>

#include "host/blocked_faults.h"
#include "host/piecewise.h"
#include "host/process_map.h"
#include "host/run_section.h"
#include "tests/support/absent_pages.h"
#include "tests/support/thread_on_pages.h"

namespace stagetwo::test {
namespace {

class FootingTest : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(host::backstop::install());
    if (!host::userfault::open()) GTEST_SKIP() << "userfaultfd is denied here";
    // From now on pages go.
    GuardedPages one(1);
    Keeper keeper{Hva(one.address())};
    const HvaRange page(Hva(one.address()), kPageSize);
    ASSERT_TRUE(host::take_away(page, &keeper, this, host::Which::kAnonymous));
  }
  static u64 take(Keeper& keeper, HvaRange range, const HvaRange* span = nullptr) {
    const auto taken = host::take_away(range, &keeper, nullptr, host::Which::kAnonymous, span);
    return taken ? *taken : ~u64{0};
  }
  void be_inside() { section_.emplace(host::Touches::kNothing); }
  void be_outside() { section_.reset(); }
  static void be_inside_and_leave() {
    host::EngineSection section(host::Touches::kNothing);
    section.leave();
  }
  std::optional<host::EngineSection> section_;
};

TEST_F(FootingTest, OfAThreadInTheEngineIsNotTaken) {
  ThreadOnPages thread([&] { be_inside(); }, [&] { be_outside(); });
  Keeper keeper(thread.stack().start());
  const u64 before = host::owner_counts().refused_held;
  const u64 taken = take(keeper, thread.stack());
  EXPECT_GE(taken, ThreadOnPages::kFarPages);
  EXPECT_LE(taken, ThreadOnPages::kPages - 16);
  EXPECT_EQ(before + ThreadOnPages::kPages - taken, host::owner_counts().refused_held);
  EXPECT_FALSE(host::is_absent(thread.in_use()));
  EXPECT_FALSE(host::is_absent(thread.in_use() - 15 * kPageSize));
  thread.finish();
}

TEST_F(FootingTest, EndsWhereTheStackOfItsThreadDoes) {
  Hva end;
  ThreadOnPages thread([&] { end = host::footing_at(__builtin_frame_address(0)).end(); }, [] {});
  EXPECT_GT(end, thread.in_use());
  EXPECT_LE(end, thread.stack().end()) << "memory above the stack is anybody's";
  thread.finish();
}

TEST_F(FootingTest, OutsideTheEngineIsMemoryAsAnyOther) {
  ThreadOnPages thread(be_inside_and_leave, [] {});
  Keeper keeper(thread.stack().start());
  EXPECT_EQ(ThreadOnPages::kPages, take(keeper, thread.stack()));
  thread.finish();
}

TEST_F(FootingTest, ThatIsAbsentComesBackAtTheDoor) {
  bool there = true;
  ThreadOnPages thread(be_inside_and_leave, [&] {
    host::EngineSection section(host::Touches::kNothing);
    const Hva here(reinterpret_cast<u64>(__builtin_frame_address(0)));
    for (unsigned i = 0; i < 16; ++i) {
      there = there && !host::is_absent(page_floor(here) - i * kPageSize);
    }
    section.leave();
  });
  Keeper keeper(thread.stack().start());
  EXPECT_EQ(ThreadOnPages::kPages, take(keeper, thread.stack()));
  thread.finish();
  EXPECT_TRUE(there);
}

// Of a page that is watched and was never touched, too, the touch asks us.
TEST_F(FootingTest, IsNotWatchedAndWhatIsAroundItIs) {
  ThreadOnPages thread([&] { be_inside(); }, [&] { be_outside(); });
  const HvaRange stack = thread.stack();
  const HvaRange first(stack.start(), kPageSize);
  Keeper keeper(stack.start());
  EXPECT_EQ(1u, take(keeper, first, &stack));
  EXPECT_TRUE(host::userfault::is_watched(stack.start() + kPageSize));
  EXPECT_FALSE(host::userfault::is_watched(thread.in_use() - 15 * kPageSize));
  thread.finish();
}

TEST_F(FootingTest, IsTouchedNowhereButWhereAnOwnerIs) {
  host::PageState states[8];
  bool known = false;
  ThreadOnPages thread(
      [] {},
      [&] {
        const Hva below =
            page_floor(Hva(reinterpret_cast<u64>(__builtin_frame_address(0)))) - 12 * kPageSize;
        madvise(reinterpret_cast<void*>(below.raw()), 8 * kPageSize, MADV_DONTNEED);
        be_inside_and_leave();
        known = host::page_states(below, 8, states).has_value();
      });
  // Somewhere something goes meanwhile, so that it looks.
  GuardedPages other(1);
  Keeper keeper{Hva(other.address())};
  EXPECT_EQ(1u, take(keeper, HvaRange(Hva(other.address()), kPageSize)));
  thread.finish();
  ASSERT_TRUE(known);
  for (const host::PageState& state : states) EXPECT_FALSE(state.present);
}

TEST_F(FootingTest, AnAlternateStackIsPartOfIt) {
  GuardedPages alternate(8);
  std::memset(alternate.bytes_at(0), 1, 8 * kPageSize);
  const HvaRange pages(Hva(alternate.address()), 8 * kPageSize);
  Keeper keeper(pages.start());
  ASSERT_EQ(8u, take(keeper, pages));
  const stack_t set{.ss_sp = alternate.bytes_at(0), .ss_flags = 0, .ss_size = 8 * kPageSize};
  ThreadOnPages thread(
      [&] {
        be_inside_and_leave();
        ASSERT_EQ(0, sigaltstack(&set, nullptr));
        host::alternate_stack_changed();
        be_inside();
      },
      [&] { be_outside(); });
  EXPECT_FALSE(host::is_absent(pages.start()));
  EXPECT_EQ(0u, take(keeper, pages));
  thread.finish();
  EXPECT_EQ(8u, take(keeper, pages)) << "nobody's once the thread is outside";
}

TEST_F(FootingTest, ThatItsThreadDiscardsIsThereAgain) {
  bool there = false;
  ThreadOnPages thread(
      [] {},
      [&] {
        host::EngineSection section;
        const Hva below =
            page_floor(Hva(reinterpret_cast<u64>(__builtin_frame_address(0)))) - 14 * kPageSize;
        void* const at = reinterpret_cast<void*>(below.raw());
        static_cast<void>(host::discard(below.raw(), 2 * kPageSize, MADV_DONTNEED,
                                        [&](u64, u64) { return madvise(at, 2 * kPageSize, 4); }));
        host::PageState states[2];
        there = host::page_states(below, 2, states) && states[0].present && states[1].present;
        section.leave();
      });
  // All of it is watched, as long as some of it is absent.
  Keeper keeper(thread.stack().start());
  const HvaRange stack = thread.stack();
  EXPECT_EQ(1u, take(keeper, HvaRange(stack.start(), kPageSize), &stack));
  thread.finish();
  EXPECT_TRUE(there);
}

// More threads than slots at once: nothing goes until they have left, and then all does.
TEST(Footings, MoreThanHaveSlotsHoldEverything) {
  constexpr u32 kMost = host::Footings::kMost;
  auto all = std::make_unique<host::Footings>();
  const HvaRange stack(Hva(u64{1} << 40), 4 * kPageSize);
  const HvaRange other(Hva(u64{1} << 41), 4 * kPageSize);
  std::vector<host::FootingSlot*> slots;
  u32 hint = 0;
  for (u32 i = 0; i < kMost; ++i) slots.push_back(all->enter({host::packed(stack), 0, 0}, &hint));
  EXPECT_TRUE(all->first_in(other).empty());
  EXPECT_EQ(nullptr, all->enter({host::packed(stack), 0, 0}, &hint));
  EXPECT_EQ(other, all->first_in(other));
  all->leave(nullptr);
  EXPECT_TRUE(all->first_in(other).empty());
  EXPECT_EQ(stack, all->first_in(stack));
  for (host::FootingSlot* slot : slots) all->leave(slot);
  EXPECT_TRUE(all->first_in(stack).empty());
}

TEST(Footings, CutWhatIsWatchedAroundThem) {
  auto all = std::make_unique<host::Footings>();
  const auto pages = [](u64 first, u64 count) {
    return HvaRange(Hva((u64{1} << 40) + first * kPageSize), count * kPageSize);
  };
  u32 one = 0;
  u32 other = 1;
  static_cast<void>(all->enter({host::packed(pages(10, 4)), host::packed(pages(20, 1)), 0}, &one));
  static_cast<void>(all->enter({host::packed(pages(60, 4)), 0, 0}, &other));
  EXPECT_EQ(pages(21, 39), all->clear_around(pages(30, 2), pages(0, 100)));
  EXPECT_EQ(pages(0, 10), all->clear_around(pages(2, 2), pages(0, 100)));
  EXPECT_EQ(pages(10, 4), all->first_in(pages(0, 100)));
  EXPECT_EQ(pages(12, 2), all->first_in(pages(12, 100)));
}

// Who has looked need not look again as long as nothing is taken.
TEST(Footings, AreKnownUntilSomethingIsTaken) {
  auto all = std::make_unique<host::Footings>();
  const auto at = [](u64 page) {
    return host::packed(HvaRange(Hva((u64{1} << 40) + page * kPageSize), 16 * kPageSize));
  };
  u32 hint = 0;
  host::FootingSlot* slot = all->enter({at(0), 0, 0}, &hint);
  EXPECT_TRUE(all->is_known(*slot)) << "nothing was ever taken";
  all->count_taking();
  EXPECT_FALSE(all->is_known(*slot));
  all->note_looked(*slot, all->wait_for_takers());
  EXPECT_TRUE(all->is_known(*slot));
  all->leave(slot);
  EXPECT_EQ(slot, all->enter({at(2), 0, 0}, &hint));
  EXPECT_FALSE(all->is_known(*slot)) << "further up";
  all->note_looked(*slot, all->wait_for_takers());
  all->leave(slot);
  EXPECT_EQ(slot, all->enter({at(0), 0, 0}, &hint));
  EXPECT_TRUE(all->is_known(*slot)) << "both are known";
  all->leave(slot);
  EXPECT_EQ(slot, all->enter({at(0), at(100), 0}, &hint));
  EXPECT_FALSE(all->is_known(*slot)) << "another thread";
}

}  // namespace
}  // namespace stagetwo::test

// SPDX-License-Identifier: Apache-2.0
// Old or new, of the real stage-2 tables: at every step of an operation, which is between any two
// of its writes, a reader looks at frames in and around the range. What he sees of a frame changes
// at most once: from the translation before the operation to the one after it. (recorded_test.cc
// asks the same of every format's mapper.)

#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <vector>

#include "sync/schedule.h"
#include "tests/support/tdp_world.h"

namespace stagetwo::test {
namespace {

namespace sched = sync::sched;

// What a reader can tell of a frame: its page and the rights, not the history.
struct Sight {
  u64 page = 0;
  Word rights = 0;
  friend bool operator==(const Sight&, const Sight&) = default;
};

class TdpRecorded : public ::testing::Test {
 protected:
  static constexpr u64 kHuge = pt::span_of<Format>(2);  // frames; few, under the scheduler

  void make(const stage2::TdpPolicy& policy = {}) {
    context.reset();
    world = std::make_unique<TdpWorld>(policy);
    world->add_slot(0, 4096, kWorldHva);
    context = std::make_unique<MmuContext>(world->mmu);
    ASSERT_TRUE(world->mmu.load_root(*context, 0));
    ASSERT_TRUE(context->top_up());
  }
  void SetUp() override { make(); }
  void TearDown() override {
    world->mmu.check_world();
    context.reset();
  }
  FaultOutcome fault(u64 gfn, Access access, unsigned level) {
    return world->fault(*context, gfn, access, level);
  }

  Sight look(u64 gfn) {
    const auto found = TdpTestAccess::find(world->mmu, *context, Gfn(gfn));
    if (!Format::is_leaf(found.word, found.level)) return {};
    const u64 within = gfn & (pt::span_of<Format>(found.level) - 1);
    return {.page = Format::output(found.word) + (within << kPageShift),
            .rights = found.word & ~(Format::kAddressMask | Format::kAccessed | Format::kDirty)};
  }
  void look_at_all() {
    ++looks;
    for (auto& [gfn, sights] : film) {
      const Sight sight = look(gfn);
      if (sights.empty() || sights.back() != sight) sights.push_back(sight);
    }
  }

  // Runs the operation with a look between any two steps. The frames: the ends of the range, their
  // neighbours, and some between.
  template <typename Operation>
  void record(u64 first, u64 frames, Operation&& operation) {
    film.clear();
    looks = 0;
    for (u64 near = 0; near < 5; ++near) {
      film[first + near];
      film[first + frames - 1 + near];
      if (first >= near) film[first - near];
    }
    for (u64 offset = 0; offset < frames; offset += frames / 16 + 1) film[first + offset];
    look_at_all();
    sched::Options options;
    options.invariant = [](void* self) { static_cast<TdpRecorded*>(self)->look_at_all(); };
    options.invariant_context = this;
    const auto outcome = sched::run(options, 1, [&](unsigned) { operation(); });
    ASSERT_TRUE(outcome.finished()) << outcome.why;
    look_at_all();
    EXPECT_GT(looks, 4U) << "nothing was seen of the operation";
  }
  // The most things that were seen of one frame, and how many frames changed.
  [[nodiscard]] size_t most_sights() const {
    size_t most = 0;
    for (const auto& [gfn, sights] : film) most = std::max(most, sights.size());
    return most;
  }
  [[nodiscard]] size_t changed() const {
    size_t count = 0;
    for (const auto& [gfn, sights] : film) count += sights.size() > 1 ? 1U : 0U;
    return count;
  }
  void expect_old_or_new(bool changes) {
    EXPECT_LE(most_sights(), 2U) << "a third thing was seen";
    EXPECT_EQ(changed() > 0, changes);
  }

  std::unique_ptr<TdpWorld> world;
  std::unique_ptr<MmuContext> context;
  std::map<u64, std::vector<Sight>> film;
  u64 looks = 0;
};

TEST_F(TdpRecorded, MapOfAPage) {
  record(5, 1, [&] { static_cast<void>(fault(5, Access::kWrite, 1)); });
  expect_old_or_new(true);
  EXPECT_EQ(changed(), 1U) << "the neighbours are as they were";
  record(6, 1, [&] { static_cast<void>(fault(6, Access::kRead, 1)); });
  expect_old_or_new(true);
}

TEST_F(TdpRecorded, MapOfAHugePage) {
  record(kHuge, kHuge, [&] { static_cast<void>(fault(kHuge + 7, Access::kWrite, 2)); });
  expect_old_or_new(true);
  EXPECT_EQ(look(kHuge + 6).page, kWorldHva + ((kHuge + 6) << kPageShift));
}

TEST_F(TdpRecorded, SplitByAFaultForAPage) {
  ASSERT_EQ(fault(kHuge, Access::kWrite, 2), FaultOutcome::kFixed);
  record(kHuge, kHuge, [&] { static_cast<void>(fault(kHuge + 7, Access::kWrite, 1)); });
  expect_old_or_new(false);
  EXPECT_EQ(world->mmu.count_pages().pages_4k, kHuge);
}

TEST_F(TdpRecorded, SplitThatMakesAPageExecutable) {
  make({.nx_huge_pages = true});
  ASSERT_EQ(fault(kHuge, Access::kWrite, 2), FaultOutcome::kFixed);
  record(kHuge, kHuge, [&] { static_cast<void>(fault(kHuge + 7, Access::kExec, 2)); });
  expect_old_or_new(true);
  EXPECT_EQ(world->mmu.count_pages().pages_4k, kHuge);
}

TEST_F(TdpRecorded, SplitOfASlotBeforeItIsLogged) {
  for (const u64 gfn : {kHuge, 2 * kHuge, 3 * kHuge}) {
    ASSERT_EQ(fault(gfn, Access::kWrite, 2), FaultOutcome::kFixed);
  }
  const Slot& slot = world->slots[0];
  record(kHuge, 3 * kHuge, [&] { world->mmu.try_split_huge(slot, slot.gfns(), 1); });
  expect_old_or_new(false);
  EXPECT_EQ(world->mmu.count_pages().pages_4k, 3 * kHuge);
}

TEST_F(TdpRecorded, ProtectionOfASlotThatIsLogged) {
  ASSERT_EQ(fault(3, Access::kWrite, 1), FaultOutcome::kFixed);
  ASSERT_EQ(fault(kHuge, Access::kWrite, 2), FaultOutcome::kFixed);
  record(3, kHuge, [&] { world->mmu.write_protect_slot(world->slots[0], 1); });
  expect_old_or_new(true);
  EXPECT_EQ(look(3).page, film.at(3).front().page) << "the page stays, the right to store goes";
}

TEST_F(TdpRecorded, RecoveryWhenLoggingEnds) {
  for (const u64 gfn : {kHuge, kHuge + 1, kHuge + 5}) {
    ASSERT_EQ(fault(gfn, Access::kWrite, 1), FaultOutcome::kFixed);
  }
  const Slot& slot = world->slots[0];
  record(kHuge, kHuge, [&] { world->mmu.recover_huge(slot, slot.gfns(), 2); });
  expect_old_or_new(true);
  EXPECT_EQ(world->mmu.count_pages().pages_4k, 0U) << "the next access maps it large";
}

TEST_F(TdpRecorded, CollapseByAFaultForAHugePage) {
  for (const u64 gfn : {kHuge, kHuge + 1, kHuge + 5}) {
    ASSERT_EQ(fault(gfn, Access::kWrite, 1), FaultOutcome::kFixed);
  }
  record(kHuge, kHuge, [&] { static_cast<void>(fault(kHuge + 7, Access::kWrite, 2)); });
  expect_old_or_new(true);
  EXPECT_EQ(film.at(kHuge + 1).size(), 1U) << "what was mapped stays mapped throughout";
  EXPECT_EQ(world->mmu.count_pages().pages_2m, 1U);
}

TEST_F(TdpRecorded, ZapOfFrames) {
  for (u64 gfn = 2; gfn < 8; ++gfn) {
    ASSERT_EQ(fault(gfn, Access::kWrite, 1), FaultOutcome::kFixed);
  }
  record(4, 3, [&] { world->zap(4, 3); });
  expect_old_or_new(true);
  EXPECT_EQ(changed(), 3U);
}

TEST_F(TdpRecorded, ZapOfTablesAndHugePages) {
  ASSERT_EQ(fault(kHuge - 1, Access::kWrite, 1), FaultOutcome::kFixed);
  ASSERT_EQ(fault(kHuge, Access::kWrite, 1), FaultOutcome::kFixed);
  ASSERT_EQ(fault(kHuge + 5, Access::kWrite, 1), FaultOutcome::kFixed);
  ASSERT_EQ(fault(2 * kHuge, Access::kWrite, 2), FaultOutcome::kFixed);
  ASSERT_EQ(fault(3 * kHuge, Access::kWrite, 1), FaultOutcome::kFixed);
  record(kHuge, 2 * kHuge, [&] { world->zap(kHuge, 2 * kHuge); });
  expect_old_or_new(true);
  EXPECT_EQ(film.at(kHuge - 1).size(), 1U);
  EXPECT_EQ(film.at(3 * kHuge).size(), 1U);
  EXPECT_EQ(film.at(kHuge + 4).size(), 1U) << "nothing was there";
}

TEST_F(TdpRecorded, ZapThatShares) {
  for (const unsigned level : {1U, 2U}) {
    ASSERT_EQ(fault(kHuge + 3, Access::kWrite, level), FaultOutcome::kFixed);
    record(kHuge, kHuge, [&] {
      pt::Gather removed;
      EXPECT_TRUE(TdpTestAccess::zap_frozen(world->mmu, *TdpTestAccess::root(*context),
                                            Gfn(kHuge + 3), 2, &removed));
      world->mmu.flush_and_release(&removed);
    });
    expect_old_or_new(true);
  }
}

// The judge is judged: a page that is taken away and comes back is a third thing.
TEST_F(TdpRecorded, AGapIsSeen) {
  ASSERT_EQ(fault(kHuge, Access::kWrite, 2), FaultOutcome::kFixed);
  record(kHuge, kHuge, [&] {
    world->zap(kHuge, kHuge);
    static_cast<void>(fault(kHuge + 7, Access::kWrite, 2));
  });
  EXPECT_EQ(most_sights(), 3U);
}

}  // namespace
}  // namespace stagetwo::test

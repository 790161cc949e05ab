// SPDX-License-Identifier: Apache-2.0
// Ageing under every schedule: what was taken away stays away, rights stay, and a use after the
// flush is seen.
#include "stage2/age_flush.h"
#include "tests/sched/tdp_scenarios.h"

namespace stagetwo::test {
namespace {

constexpr GfnRange kPage{Gfn(5), 1};

// A is cleared while the entry is removed, and while walks set it.
struct AgedWhileItGoes : TdpScenario {
  static constexpr unsigned kThreads = 3;
  AgedWhileItGoes() { mapped(5); }
  void thread(unsigned me) {
    if (me == 0) {
      static_cast<void>(world.mmu.age(0, kPage));
      static_cast<void>(world.mmu.age(0, kPage));
    } else if (me == 1) {
      static_cast<void>(world.walk(context[1], 5, Access::kWrite));
    } else {
      world.zap(5, 1);
      sched::expect(entry(5) == Format::kNonpresent, "an entry came back");
    }
  }
};

// Two who age share one bit: one of them takes a use, and none is taken twice.
struct AgedByTwo : TdpScenario {
  static constexpr unsigned kThreads = 2;
  bool young[2] = {};
  Word before = 0;
  AgedByTwo() {
    mapped(5);
    before = entry(5);
  }
  void thread(unsigned me) { young[me] = world.mmu.age(0, kPage); }
  void after() {
    EXPECT_NE(young[0], young[1]) << "one use was taken twice, or by nobody";
    EXPECT_EQ(entry(5), before & ~Format::kAccessed) << "ageing changed a right";
    TdpScenario::after();
  }
};

// A processor keeps its translation until it is asked to flush, and fills it again then.
template <bool kFlushAfter>
struct UsedAfterTheFlush : TdpScenario {
  sync::AckLine line;
  bool filled_again = false;
  UsedAfterTheFlush() {
    mapped(5);
    world.lines.add(line);
  }
  ~UsedAfterTheFlush() { world.lines.remove(line); }
  void thread(unsigned me) {
    if (me == 1) {
      if (!kFlushAfter) world.flush_tlbs();
      static_cast<void>(world.mmu.age(0, kPage));
      if (kFlushAfter) world.flush_tlbs();
      return;
    }
    static_cast<void>(line.enter());
    static_cast<void>(world.walk(context[0], 5));
    for (int block = 0; block < 3; ++block) {
      if (!line.poll()) continue;
      static_cast<void>(world.walk(context[0], 5));
      filled_again = true;
    }
    line.leave();
  }
  [[nodiscard]] bool missed_a_use() { return filled_again && !world.mmu.test_young(0, kPage); }
};

// Is there a schedule in which the use after the flush is not seen?
template <bool kFlushAfter>
bool misses_a_use(unsigned limit) {
  for (unsigned i = 1; i <= limit; ++i) {
    UsedAfterTheFlush<kFlushAfter> scenario;
    const auto outcome =
        sched::run({.seed = i}, 2, [&](unsigned index) { scenario.thread(index); });
    EXPECT_TRUE(outcome.finished()) << outcome.why;
    if (scenario.missed_a_use()) return true;
  }
  return false;
}

// What is owed as a flag, taken back by who asks: nothing says so until the request is made.
class OwedAsAFlag {
 public:
  template <typename F>
  bool mark_old(sync::AckSet&, F&& age) {
    const bool young = age();
    if (young) owed_.store(true, sync::kRelaxed);
    return young;
  }
  [[nodiscard]] bool owed() const { return owed_.load(sync::kRelaxed); }
  void ask(sync::AckSet& lines) {
    owed_.store(false, sync::kRelaxed);
    ticket_.store(lines.bump_all(), sync::kRelaxed);
  }
  [[nodiscard]] bool outstanding(sync::AckSet& lines) const {
    return owed() || lines.passed() < ticket_.load(sync::kRelaxed);
  }
  template <typename F>
  void settle(F&& flush) {
    owed_.store(false, sync::kRelaxed);
    flush();
  }

 private:
  sync::Atomic<bool> owed_{false};
  sync::Atomic<u64> ticket_{0};
};
// A ticket, but nothing is known of who is about to owe it.
class OwedAfterwards : public stage2::AgeFlush {
 public:
  template <typename F>
  bool mark_old(sync::AckSet& lines, F&& age) {
    const bool young = age();
    return stage2::AgeFlush::mark_old(lines, [=] { return young; });
  }
};

// A vCPU uses a page by a translation that it keeps until it is asked to flush. However the page
// became old, when one clear_flush_young is over the translation is given up, or will be before it
// is used again.
template <typename Flush>
struct HeldWhileItIsAged : TdpScenario {
  static constexpr unsigned kThreads = 4;
  Flush flush;
  sync::AckLine line;
  bool held = true;
  sync::Atomic<bool> over{false};
  HeldWhileItIsAged() {
    mapped(5);
    world.lines.add(line);
  }
  ~HeldWhileItIsAged() { world.lines.remove(line); }
  bool mark_old() {
    return flush.mark_old(world.lines, [this] { return world.mmu.age(0, kPage); });
  }
  void use() {
    if (line.enter()) held = false;
    for (int block = 0; block < 3; ++block) {
      const bool late = over.load(sync::kAcquire);
      if (line.poll()) held = false;
      sched::expect(!late || !held, "what was called old is used unseen");
    }
    line.leave();
  }
  void thread(unsigned me) {
    if (me == 0) {
      use();
    } else if (me == 1) {
      static_cast<void>(mark_old());
      if (flush.owed()) flush.ask(world.lines);
    } else if (me == 2) {
      if (flush.owed()) flush.ask(world.lines);
    } else {
      const bool young = mark_old();
      if (young || flush.outstanding(world.lines)) flush.settle([this] { world.mmu.flush(); });
      over.store(true, sync::kRelease);
    }
  }
  void after() {
    if (line.enter()) held = false;
    line.leave();
    EXPECT_FALSE(held) << "what was called old is used unseen at the next entry";
    TdpScenario::after();
  }
};

TEST(Age, IsSeenByWhoeverFlushesHoweverThePageBecameOld) {
  expect_holds_with_after<HeldWhileItIsAged<stage2::AgeFlush>>(1500);
}
TEST(Age, WouldBeMissedIfTheDebtWereAFlag) {
  expect_found<HeldWhileItIsAged<OwedAsAFlag>>(3000);
}
TEST(Age, WouldBeMissedIfNothingToldOfWhoIsMarking) {
  expect_found<HeldWhileItIsAged<OwedAfterwards>>(3000);
}

TEST(Age, BringsNothingBack) {
  expect_holds_with_after<AgedWhileItGoes>(800);
}
TEST(Age, TakesAUseOnceAndChangesNoRight) {
  expect_holds_with_after<AgedByTwo>(500);
}
TEST(Age, SeesAUseAfterItsFlush) {
  EXPECT_FALSE(misses_a_use<true>(800));
}
TEST(Age, WouldMissOneIfItFlushedFirst) {
  EXPECT_TRUE(misses_a_use<false>(3000));
}

}  // namespace
}  // namespace stagetwo::test

// SPDX-License-Identifier: Apache-2.0
// Ageing under every schedule: what was taken away stays away, rights stay, and a use after the
// flush is seen.
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

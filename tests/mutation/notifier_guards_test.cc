// SPDX-License-Identifier: Apache-2.0
// Each guard of the registry is there for a reason: what is wrong without it. Method: one thread
// stands where the guard would make another wait, and the other does not.
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <optional>
#include <thread>

#include "base/guard.h"
#include "host/interval_notifier.h"
#include "host/mmu_notifier.h"
#include "tests/support/mirror_access.h"
#include "tests/unit/mirror/mirror_fixture.h"

namespace stagetwo::host {
namespace {

const HvaRange kMine(Hva(0x10000), 0x10000);
const HvaRange kOther(Hva(0x80000), 0x1000);

class Listener final : public MmuNotifier {
 public:
  bool invalidate_range_start(const InvalidateEvent& event) override {
    return event.range.overlaps(kMine) && ++starts != 0;
  }
  TryStart try_invalidate_range_start(const InvalidateEvent& event) override {
    if (declines) return TryStart::kWouldWait;
    return invalidate_range_start(event) ? TryStart::kEngaged : TryStart::kNotMine;
  }
  void invalidate_range_end(const InvalidateEvent&) override { ++ends; }
  std::atomic<int> starts{0}, ends{0};
  bool declines = false;
};

class Interval final : public IntervalNotifier {
 public:
  ~Interval() { remove(); }
  bool invalidate(const InvalidateEvent&, u64 sequence) override {
    set_sequence(sequence);
    return true;
  }
};

// Is `what` still under way while a change of `range` is? Who is expected not to wait is given
// time.
template <typename F>
bool waits_for_a_change(HvaRange range, F&& what, bool expected = true) {
  std::atomic<bool> done{false};
  std::optional<InvalidateSection> change;
  change.emplace(InvalidateEvent{range, EventKind::kUnmap});
  std::thread thread([&] {
    what();
    done = true;
  });
  for (int i = 0; i < (expected ? 30 : 10'000) && !done; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  const bool waited = !done;
  change.reset();
  thread.join();
  return waited;
}

class NotifierGuards : public testing::Test {
 protected:
  void TearDown() override { mutation::restore_all(); }
  // Waits with the guard, and not without.
  template <typename F>
  void expect_guard(const char* guard, HvaRange range, F&& what) {
    EXPECT_TRUE(waits_for_a_change(range, what));
    mutation::remove(guard);
    EXPECT_FALSE(waits_for_a_change(range, what, false));
  }
};

TEST_F(NotifierGuards, WithoutTheWaitANewcomerMissesAChangeThatGoesOn) {
  Listener with;
  Listener without;
  EXPECT_TRUE(waits_for_a_change(kMine, [&] { ASSERT_TRUE(register_notifier(&with)); }));
  mutation::remove("register_waits");
  EXPECT_FALSE(waits_for_a_change(kMine, [&] { ASSERT_TRUE(register_notifier(&without)); }, false));
  unregister_notifier(&with);
  unregister_notifier(&without);
}

TEST_F(NotifierGuards, WithoutTheWaitWhoLeavesIsGoneInTheMiddleOfAChange) {
  Listener with;
  Listener without;
  ASSERT_TRUE(register_notifier(&with));
  ASSERT_TRUE(register_notifier(&without));
  EXPECT_TRUE(waits_for_a_change(kMine, [&] { unregister_notifier(&with); }));
  mutation::remove("unregister_waits");
  // Of a range that does not ring it: what it would be called for is not there any more.
  EXPECT_FALSE(waits_for_a_change(HvaRange(), [&] { unregister_notifier(&without); }, false));
}

TEST_F(NotifierGuards, WithoutTheUnwindingARefusedStartHasNoEndUntilItsScopeEnds) {
  Listener engaged;
  Listener declines;
  declines.declines = true;
  ASSERT_TRUE(register_notifier(&engaged));
  ASSERT_TRUE(register_notifier(&declines));
  const InvalidateEvent event{kMine, EventKind::kClear, nullptr, false};
  {
    const InvalidateSection section(event);
    EXPECT_EQ(1, engaged.ends);
  }
  mutation::remove("unwinds_starts");
  {
    const InvalidateSection section(event);
    EXPECT_EQ(1, engaged.ends);
  }
  unregister_notifier(&declines);
  unregister_notifier(&engaged);
}

TEST_F(NotifierGuards, WithoutTheWaitAReaderLooksPagesUpWhileTheyChange) {
  Interval one;
  ASSERT_TRUE(one.insert(kMine.start(), kMine.size()));
  static_cast<void>(one.read_begin());
  expect_guard("interval_read_waits", kMine, [&] { static_cast<void>(one.read_begin()); });
}

// The change rings nobody, so that nothing tells the newcomer of it.
TEST_F(NotifierGuards, WithoutTheSettlingANewcomerReadsDuringAChangeThatMissedIt) {
  Interval one;
  const auto join_and_read = [&] {
    ASSERT_TRUE(one.insert(kMine.start(), kMine.size()));
    static_cast<void>(one.read_begin());
  };
  EXPECT_TRUE(waits_for_a_change(kMine, join_and_read));
  one.remove();
  mutation::remove("interval_settles");
  EXPECT_FALSE(waits_for_a_change(kMine, join_and_read, false));
}

TEST_F(NotifierGuards, WithoutTheWaitOneThatLeftMayStillBeLookedAt) {
  Interval one;
  const auto come_and_go = [&] {
    ASSERT_TRUE(one.insert(kMine.start(), kMine.size()));
    one.remove();
  };
  expect_guard("interval_leaves", kOther, come_and_go);
}

class MirrorGate : public test::MirrorTest {
 protected:
  void TearDown() override {
    mutation::restore_all();
    MirrorTest::TearDown();
  }
};

TEST_F(MirrorGate, WithoutTheTestADeviceInstallsWhatAChangeOvertook) {
  const auto overtaken = [this] {
    return mirror::MirrorTestAccess::fault_once(*one_, at(0), [this] { discard(0, 1); });
  };
  EXPECT_FALSE(overtaken());
  mutation::remove("mirror_gate");
  EXPECT_TRUE(overtaken());
}

}  // namespace
}  // namespace stagetwo::host

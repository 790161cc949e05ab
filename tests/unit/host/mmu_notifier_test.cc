// SPDX-License-Identifier: Apache-2.0
// Goal: the bell's invariants I1 to I5. Method: subscribers that record, and threads that register
// while others ring.
#include "host/mmu_notifier.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "base/alloc.h"
#include "base/failpoint.h"
#include "host/process.h"
#include "tests/support/stress_time.h"

namespace stagetwo::host {
namespace {

class Recorder final : public MmuNotifier {
 public:
  explicit Recorder(HvaRange range) : range_(range) {}
  bool invalidate_range_start(const InvalidateEvent& event) override {
    if (!event.range.overlaps(range_)) return false;
    ++starts;
    return true;
  }
  void invalidate_range_end(const InvalidateEvent& event) override {
    EXPECT_TRUE(event.range.overlaps(range_));
    ++ends;
    EXPECT_LE(ends, starts);
  }
  std::atomic<u64> starts{0};
  std::atomic<u64> ends{0};

 private:
  HvaRange range_;
};

const HvaRange kMine(Hva(0x10000), 0x10000);
const HvaRange kOther(Hva(0x80000), 0x1000);

TEST(MmuNotifier, RingsStartAndEndOfAnOverlappingChangeOnce) {
  Recorder recorder(kMine);
  ASSERT_TRUE(register_notifier(&recorder));
  {
    const InvalidateSection section({HvaRange(Hva(0x1f000), 0x5000), EventKind::kUnmap});
    EXPECT_EQ(1U, recorder.starts);
    EXPECT_EQ(0U, recorder.ends);
  }
  EXPECT_EQ(1U, recorder.ends);
  unregister_notifier(&recorder);
}

TEST(MmuNotifier, SendsNoEndToThoseThatWereNotEngaged) {
  Recorder mine(kMine);
  Recorder other(kOther);
  ASSERT_TRUE(register_notifier(&mine));
  ASSERT_TRUE(register_notifier(&other));
  {
    const InvalidateSection section({kMine, EventKind::kClear});
  }
  EXPECT_EQ(1U, mine.ends);
  EXPECT_EQ(0U, other.starts + other.ends);
  unregister_notifier(&mine);
  unregister_notifier(&other);
}

TEST(MmuNotifier, RingsNobodyAfterUnregister) {
  Recorder recorder(kMine);
  ASSERT_TRUE(register_notifier(&recorder));
  unregister_notifier(&recorder);
  {
    const InvalidateSection section({kMine, EventKind::kUnmap});
  }
  EXPECT_EQ(0U, recorder.starts);
  EXPECT_EQ(0U, debug_notifier_count());
}

TEST(MmuNotifier, RingsManySubscribersAndGrows) {
  std::vector<std::unique_ptr<Recorder>> all;
  for (int i = 0; i < 200; ++i) {
    all.push_back(std::make_unique<Recorder>(kMine));
    ASSERT_TRUE(register_notifier(all.back().get()));
  }
  {
    const InvalidateSection section({kMine, EventKind::kUnmap});
  }
  for (const auto& one : all) {
    EXPECT_EQ(1U, one->starts);
    EXPECT_EQ(1U, one->ends);
    unregister_notifier(one.get());
  }
}

TEST(MmuNotifier, RegisterWaitsForTheChangeUnderWay) {
  Recorder recorder(kMine);
  std::atomic<bool> registered{false};
  std::thread newcomer;
  {
    const InvalidateSection section({kMine, EventKind::kUnmap});
    newcomer = std::thread([&] {
      ASSERT_TRUE(register_notifier(&recorder));
      registered = true;
    });
    for (int i = 0; i < 1000; ++i) std::this_thread::yield();
    EXPECT_FALSE(registered);
  }
  newcomer.join();
  EXPECT_EQ(0U, recorder.starts + recorder.ends);
  unregister_notifier(&recorder);
}

TEST(MmuNotifier, UnregisterWaitsForTheEndOfTheChangeThatRangIt) {
  Recorder recorder(kMine);
  ASSERT_TRUE(register_notifier(&recorder));
  std::atomic<bool> gone{false};
  std::thread leaver;
  {
    const InvalidateSection section({kMine, EventKind::kUnmap});
    leaver = std::thread([&] {
      unregister_notifier(&recorder);
      gone = true;
    });
    for (int i = 0; i < 1000; ++i) std::this_thread::yield();
    EXPECT_FALSE(gone);
  }
  leaver.join();
  EXPECT_EQ(1U, recorder.starts);
  EXPECT_EQ(1U, recorder.ends);
}

// Each round a subscriber comes and goes while another thread rings without pause: it always sees
// as many ends as starts, and nothing after it left.
TEST(MmuNotifier, RegistrationIsSafeAgainstRunningCallbacks) {
  std::atomic<bool> stop{false};
  std::thread ringer([&] {
    while (!stop) const InvalidateSection section({kMine, EventKind::kUnmap});
  });
  const u64 rounds = test::stress_rounds(100'000);
  u64 rung = 0;
  // On a busy machine the ringer may start late: without a ring nothing was tested.
  for (u64 i = 0; i < rounds || rung == 0; ++i) {
    auto recorder = std::make_unique<Recorder>(kMine);
    ASSERT_TRUE(register_notifier(recorder.get()));
    if (i % 16 == 0) std::this_thread::yield();
    unregister_notifier(recorder.get());
    ASSERT_EQ(recorder->starts, recorder->ends);
    rung += recorder->starts;
  }
  stop = true;
  ringer.join();
  EXPECT_GT(rung, 0U);
}

TEST(MmuNotifier, AChildOfForkHasNoSubscribersAndMayHaveItsOwn) {
  Recorder recorder(kMine);
  ASSERT_TRUE(register_notifier(&recorder));
  const pid_t child = fork();
  if (child == 0) {
    {
      const InvalidateSection section({kMine, EventKind::kUnmap});
    }
    if (recorder.starts != 0) _exit(1);
    unregister_notifier(&recorder);  // let go of what the parent registered: nothing happens
    Recorder own(kMine);
    if (!register_notifier(&own)) _exit(2);
    {
      const InvalidateSection section({kMine, EventKind::kUnmap});
    }
    _exit(own.starts == 1 && own.ends == 1 && recorder.starts == 0 ? 0 : 3);
  }
  int status = 0;
  waitpid(child, &status, 0);
  EXPECT_EQ(0, WEXITSTATUS(status));
  EXPECT_TRUE(WIFEXITED(status));
  unregister_notifier(&recorder);
}

TEST(MmuNotifier, AChildForkedInTheMiddleOfAChangeCanRegister) {
  Recorder recorder(kMine);
  ASSERT_TRUE(register_notifier(&recorder));
  std::atomic<int> phase{0};
  std::thread changer([&] {
    const InvalidateSection section({kMine, EventKind::kUnmap});
    phase = 1;
    while (phase != 2) std::this_thread::yield();
  });
  while (phase != 1) std::this_thread::yield();
  const pid_t child = fork();
  if (child == 0) {
    after_fork_child();
    alarm(20);
    Recorder own(kMine);
    _exit(register_notifier(&own) ? 0 : 1);
  }
  int status = 0;
  waitpid(child, &status, 0);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  phase = 2;
  changer.join();
  unregister_notifier(&recorder);
}

TEST(MmuNotifier, RingingAsksForNoMemoryAndUnregisterNeedsNone) {
  Recorder recorder(kMine);
  ASSERT_TRUE(register_notifier(&recorder));
  failpoint::arm(nullptr, 1, failpoint::kForever);
  {
    const InvalidateSection section({kMine, EventKind::kUnmap});
  }
  unregister_notifier(&recorder);
  EXPECT_EQ(0U, failpoint::asked());
  failpoint::disarm();
  EXPECT_EQ(1U, recorder.ends);
}

TEST(MmuNotifier, ARefusedRegistrationChangesNothing) {
  std::vector<std::unique_ptr<Recorder>> all;
  failpoint::sweep([&] {
    auto recorder = std::make_unique<Recorder>(kMine);
    if (register_notifier(recorder.get())) {
      all.push_back(std::move(recorder));
    } else {
      EXPECT_EQ(all.size(), debug_notifier_count());
    }
    for (const auto& one : all) unregister_notifier(one.get());
    all.clear();
  });
  EXPECT_EQ(0U, debug_notifier_count());
}

class Ageing final : public MmuNotifier {
 public:
  bool invalidate_range_start(const InvalidateEvent&) override { return false; }
  void invalidate_range_end(const InvalidateEvent&) override {}
  bool clear_flush_young(HvaRange range) override {
    ++flushes;
    return clear_young(range);
  }
  bool clear_young(HvaRange range) override {
    ++asked;
    return range.overlaps(kMine) && std::exchange(young, false);
  }
  bool test_young(HvaRange range) override {
    ++asked;
    return range.overlaps(kMine) && young;
  }
  bool young = false;
  int asked = 0;
  int flushes = 0;
};

TEST(Ageing, IsAnsweredByThoseWhoKeepAccessedBits) {
  Recorder without(kMine);
  Ageing with;
  ASSERT_TRUE(register_notifier(&without));
  EXPECT_FALSE(test_young(kMine));
  EXPECT_FALSE(clear_young(kMine));
  EXPECT_FALSE(clear_flush_young(kMine));
  ASSERT_TRUE(register_notifier(&with));
  with.young = true;
  EXPECT_TRUE(test_young(kMine));
  EXPECT_TRUE(test_young(kMine)) << "asking changes nothing";
  EXPECT_FALSE(test_young(kOther));
  EXPECT_TRUE(clear_young(kMine));
  EXPECT_FALSE(clear_young(kMine));
  EXPECT_EQ(0, with.flushes);
  with.young = true;
  EXPECT_TRUE(clear_flush_young(kMine));
  EXPECT_EQ(1, with.flushes);
  EXPECT_FALSE(test_young(kMine));
  unregister_notifier(&with);
  unregister_notifier(&without);
  EXPECT_EQ(0U, without.starts);
}

TEST(Ageing, ClearsEveryonesBitAndAsksOnlyUntilSomebodySaysYoung) {
  Ageing first;
  Ageing second;
  ASSERT_TRUE(register_notifier(&first));
  ASSERT_TRUE(register_notifier(&second));
  first.young = second.young = true;
  EXPECT_TRUE(test_young(kMine));
  EXPECT_EQ(1, first.asked + second.asked);
  EXPECT_TRUE(clear_young(kMine));
  EXPECT_FALSE(first.young);
  EXPECT_FALSE(second.young);
  unregister_notifier(&first);
  unregister_notifier(&second);
  first.young = true;
  EXPECT_FALSE(test_young(kMine)) << "no callback after unregistration";
}

}  // namespace
}  // namespace stagetwo::host

// SPDX-License-Identifier: Apache-2.0
// Goal: the bell's invariants I1 to I5. Method: subscribers that record, and threads that register
// while others ring.
#include "host/mmu_notifier.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
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
#include "host/change.h"
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

// What the kernel tells of single pages: a fork, and clear_refs.
TEST(MmuNotifier, AForkAndClearRefsAreLostRightsOfSinglePages) {
  class Kinds final : public MmuNotifier {
   public:
    bool invalidate_range_start(const InvalidateEvent& event) override {
      if (!event.range.overlaps(kMine)) return false;
      starts.push_back(event.kind);
      return true;
    }
    void invalidate_range_end(const InvalidateEvent& event) override {
      EXPECT_EQ(starts.back(), event.kind);
      ++ends;
    }
    std::vector<EventKind> starts;
    size_t ends = 0;
  } kinds;
  ASSERT_TRUE(register_notifier(&kinds));
  announce_fork();
  EXPECT_EQ(1U, kinds.ends) << "over before the fork begins";
  EXPECT_EQ(7, clear_soft_dirty([&] {
              EXPECT_EQ(1U, kinds.ends);
              return 7;
            }));
  EXPECT_EQ((std::vector{EventKind::kProtectPage, EventKind::kSoftDirty}), kinds.starts);
  EXPECT_EQ(2U, kinds.ends);
  unregister_notifier(&kinds);
}

// Analogue: copy_page_range() (kernel file: mm/memory.c), which rings for copy-on-write only.
TEST(MmuNotifier, AForkLeavesSharedMemoryAlone) {
  constexpr size_t kBytes = 4 * kPageSize;
  const auto map = [](void* at, size_t size, int flags) {
    void* const made = ::mmap(at, size, PROT_READ | PROT_WRITE, flags | MAP_ANONYMOUS, -1, 0);
    return Hva(reinterpret_cast<u64>(made));
  };
  const Hva first = map(nullptr, kBytes, MAP_PRIVATE);
  map(reinterpret_cast<void*>(first.raw() + kPageSize), 2 * kPageSize, MAP_SHARED | MAP_FIXED);
  class Rung final : public MmuNotifier {
   public:
    explicit Rung(Hva from) : first(from) {}
    bool invalidate_range_start(const InvalidateEvent& event) override {
      for (u64 i = 0; i < 4; ++i) times[i] += event.range.contains(first + i * kPageSize) ? 1 : 0;
      return false;
    }
    void invalidate_range_end(const InvalidateEvent&) override {}
    Hva first;
    int times[4] = {};
  } rung(first);
  ASSERT_TRUE(register_notifier(&rung));
  announce_fork();
  unregister_notifier(&rung);
  EXPECT_EQ((std::vector{1, 0, 0, 1}), std::vector(std::begin(rung.times), std::end(rung.times)));
  ::munmap(reinterpret_cast<void*>(first.raw()), kBytes);
}

// Counts everything, and declines starts that may not wait while it is busy.
class Witness final : public MmuNotifier {
 public:
  bool invalidate_range_start(const InvalidateEvent& event) override {
    return event.range.overlaps(kMine) && ++starts != 0;
  }
  TryStart try_invalidate_range_start(const InvalidateEvent& event) override {
    ++tries;
    if (busy) return TryStart::kWouldWait;
    return invalidate_range_start(event) ? TryStart::kEngaged : TryStart::kNotMine;
  }
  void invalidate_range_end(const InvalidateEvent&) override { ++ends; }
  void release() override { ++releases; }
  std::atomic<int> starts{0}, ends{0}, tries{0}, releases{0};
  bool busy = false;
};

const InvalidateEvent kMayNotWait{kMine, EventKind::kClear, nullptr, false};

TEST(MmuNotifier, AStartThatMayNotWaitIsRefusedByABusySubscriberAndTheOthersGetTheirEnd) {
  Witness before;
  Witness busy;
  Witness after;
  busy.busy = true;
  for (Witness* one : {&before, &busy, &after}) ASSERT_TRUE(register_notifier(one));
  {
    const InvalidateSection section(kMayNotWait);
    EXPECT_FALSE(section.begun());
    EXPECT_EQ(1, before.ends);
    EXPECT_EQ(1, after.tries) << "all are asked, whatever one says";
    EXPECT_EQ(after.starts, after.ends);
    EXPECT_EQ(0, busy.starts + busy.ends);
  }
  EXPECT_EQ(1, before.ends) << "and none twice";
  busy.busy = false;
  {
    const InvalidateSection section(kMayNotWait);
    EXPECT_TRUE(section.begun());
    EXPECT_EQ(1, before.ends);
  }
  EXPECT_EQ(2, before.ends);
  EXPECT_EQ(1, busy.ends);
  for (Witness* one : {&before, &busy, &after}) unregister_notifier(one);
}

TEST(MmuNotifier, WhoseStartMayAlwaysWaitDeclinesOneThatMayNot) {
  Recorder recorder(kMine);
  ASSERT_TRUE(register_notifier(&recorder));
  {
    const InvalidateSection section(kMayNotWait);
    EXPECT_FALSE(section.begun());
  }
  EXPECT_EQ(0U, recorder.starts + recorder.ends);
  unregister_notifier(&recorder);
}

TEST(MmuNotifier, UnregisterReleasesOnceAfterTheLastCallback) {
  Witness one;
  ASSERT_TRUE(register_notifier(&one));
  unregister_notifier(&one);
  EXPECT_EQ(1, one.releases);
  unregister_notifier(&one);
  EXPECT_EQ(1, one.releases);
  // Each registration has a release of its own.
  ASSERT_TRUE(register_notifier(&one));
  unregister_notifier(&one);
  EXPECT_EQ(2, one.releases);
}

// Of a process that ends; in a child, because there is no way back.
int in_a_child(int (*what)()) {
  const pid_t child = fork();
  if (child == 0) {
    after_fork_child();
    alarm(20);
    _exit(what());
  }
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 100;
}

TEST(Release, TellsEverybodyOnceAndRingsNobodyAfterwards) {
  EXPECT_EQ(0, in_a_child([] {
              Witness one;
              Witness two;
              if (!register_notifier(&one) || !register_notifier(&two)) return 1;
              release_address_space();
              release_address_space();
              if (one.releases != 1 || two.releases != 1) return 2;
              {
                const InvalidateSection section({kMine, EventKind::kUnmap});
              }
              if (one.starts + one.ends + two.starts + two.ends != 0) return 3;
              unregister_notifier(&one);
              if (one.releases != 1) return 4;
              const Result<void> late = register_notifier(&one);
              return !late && to_int(late.error()) == ESRCH ? 0 : 5;
            }));
}

TEST(Release, WaitsForTheChangesUnderWay) {
  EXPECT_EQ(0, in_a_child([] {
              static Witness one;
              if (!register_notifier(&one)) return 1;
              std::atomic<int> phase{0};
              std::thread changer([&] {
                const InvalidateSection section({kMine, EventKind::kUnmap});
                phase = 1;
                // Well below what the release has patience for, also where nobody gets to run.
                std::this_thread::sleep_for(std::chrono::milliseconds(50));
                if (one.releases != 0) phase = 2;
              });
              while (phase == 0) std::this_thread::yield();
              release_address_space();
              changer.join();
              if (phase != 1) return 2;
              return one.releases == 1 && one.starts == 1 && one.ends == 1 ? 0 : 3;
            }));
}

// exit() while threads change the address space, come and go: each is released once, by the process
// or because it left, and nobody is rung later.
TEST(Release, InTheMiddleOfAStormComesOnceAndIsTheLastCallback) {
  EXPECT_EQ(0, in_a_child([] {
              static Witness stay[4];
              static std::atomic<bool> over{false};
              static std::atomic<int> wrong{0};
              static std::atomic<u64> changes{0};
              for (Witness& one : stay) {
                if (!register_notifier(&one)) return 1;
              }
              std::vector<std::thread> storm;
              for (int i = 0; i < 2; ++i) {
                storm.emplace_back([] {
                  for (; !over; ++changes) {
                    const InvalidateSection section({kMine, EventKind::kUnmap});
                  }
                });
              }
              storm.emplace_back([] {
                while (!over) {
                  Witness guest;
                  if (!register_notifier(&guest)) break;
                  unregister_notifier(&guest);
                  if (guest.releases != 1 || guest.starts != guest.ends) wrong = 2;
                }
              });
              while (stay[0].ends < 100) std::this_thread::yield();
              release_address_space();
              const int starts = stay[0].starts;
              const u64 before = changes;
              while (changes < before + 1000) std::this_thread::yield();
              if (stay[0].starts != starts) wrong = 3;
              over = true;
              for (auto& thread : storm) thread.join();
              for (Witness& one : stay) {
                if (one.releases != 1 || one.starts != one.ends) wrong = 4;
              }
              return wrong.load();
            }));
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

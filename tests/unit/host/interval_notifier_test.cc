// SPDX-License-Identifier: Apache-2.0
// Goal: a subscription to a range is told of every change of it, and no page looked up before a
// change is used after it. Method: subscriptions that record; threads that come and go while others
// ring; a device that caches what a page means.
#include "host/interval_notifier.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <thread>
#include <vector>

#include "base/failpoint.h"
#include "sync/try_mutex.h"
#include "tests/support/notifier_contract.h"
#include "tests/support/stress_time.h"

namespace stagetwo::host {
namespace {

const HvaRange kMine(Hva(0x10000), 0x10000);
const HvaRange kOther(Hva(0x80000), 0x1000);

class Recorder final : public IntervalNotifier {
 public:
  Recorder() = default;
  // In its range for as long as it lives.
  explicit Recorder(HvaRange range) { EXPECT_TRUE(insert(range.start(), range.size())); }
  ~Recorder() { remove(); }
  bool invalidate(const InvalidateEvent& event, u64 sequence) override {
    if (!event.blockable && busy) return false;
    set_sequence(sequence);
    last = event.kind;
    ++rung;
    return true;
  }
  std::atomic<EventKind> last{EventKind::kUnmap};
  std::atomic<u64> rung{0};
  bool busy = false;
};

void change(HvaRange range, EventKind kind = EventKind::kUnmap) {
  const InvalidateSection section({range, kind});
}

TEST(IntervalNotifier, IsRungByWhatOverlapsItAndByNothingElse) {
  Recorder one(kMine);
  change(HvaRange(Hva(0), 0x10000));
  change(HvaRange(Hva(0x20000), 0x10000));
  EXPECT_EQ(0U, one.rung);
  change(HvaRange(Hva(0x1f000), 0x5000), EventKind::kClear);
  EXPECT_EQ(1U, one.rung);
  EXPECT_EQ(EventKind::kClear, one.last);
}

TEST(IntervalNotifier, TwoOfOneRangeAreBothRung) {
  Recorder one(kMine);
  Recorder other(kMine);
  change(kMine);
  EXPECT_EQ(1U, one.rung);
  EXPECT_EQ(1U, other.rung);
}

TEST(IntervalNotifier, AnEmptyRangeAndOneThatWrapsAreRefused) {
  Recorder one;
  EXPECT_EQ(EOVERFLOW, to_int(one.insert(Hva(0x1000), 0).error()));
  EXPECT_EQ(EOVERFLOW, to_int(one.insert(Hva(0x1000), ~u64{0}).error()));
  EXPECT_EQ(0U, debug_interval_count());
  EXPECT_TRUE(one.insert(Hva(0), ~u64{0}));  // to the last byte but one
  one.remove();
  one.remove();  // a second time: nothing
}

TEST(IntervalNotifier, WhatWasLookedUpBeforeAChangeIsRefusedAfterIt) {
  Recorder one(kMine);
  const u64 before = one.read_begin();
  EXPECT_FALSE(one.read_retry(before));
  change(kOther);
  EXPECT_FALSE(one.read_retry(before));
  change(kMine);
  EXPECT_TRUE(one.read_retry(before));
  const u64 after = one.read_begin();
  EXPECT_FALSE(one.read_retry(after));
}

TEST(IntervalNotifier, AReaderWaitsWhileItsRangeChanges) {
  Recorder one(kMine);
  std::atomic<bool> began{false};
  std::optional<InvalidateSection> section;
  section.emplace(InvalidateEvent{kMine, EventKind::kUnmap});
  std::thread reader([&] {
    static_cast<void>(one.read_begin());
    began = true;
  });
  for (int i = 0; i < 1000; ++i) std::this_thread::yield();
  EXPECT_FALSE(began);
  section.reset();
  reader.join();
}

TEST(IntervalNotifier, AReaderDoesNotWaitForAChangeOfAnotherRange) {
  Recorder one(kMine);
  const Recorder other(kOther);
  static_cast<void>(one.read_begin());  // no change may have missed it any more
  const InvalidateSection section({kOther, EventKind::kUnmap});
  EXPECT_FALSE(one.read_retry(one.read_begin()));
}

TEST(IntervalNotifier, InsertedDuringAChangeItIsNotReadUntilThatIsOver) {
  for (const bool matches : {false, true}) {
    // A change that rings somebody holds insertions back until its end; one that rings nobody
    // cannot know of them.
    std::optional<Recorder> old;
    if (matches) old.emplace(kMine);
    Recorder fresh;
    std::atomic<bool> began{false};
    std::thread reader;
    {
      const InvalidateSection section({kMine, EventKind::kUnmap});
      ASSERT_TRUE(fresh.insert(kMine.start(), kMine.size())) << "and nobody waited";
      reader = std::thread([&] {
        const u64 sequence = fresh.read_begin();
        began = true;
        EXPECT_FALSE(fresh.read_retry(sequence));
      });
      for (int i = 0; i < 1000; ++i) std::this_thread::yield();
      EXPECT_FALSE(began);
    }
    reader.join();
    EXPECT_EQ(0U, fresh.rung) << "neither start nor end of the change it missed";
    change(kMine);
    EXPECT_EQ(1U, fresh.rung);
    fresh.remove();
  }
}

TEST(IntervalNotifier, RemovedBeforeItArrivedItWasNeverThere) {
  Recorder old(kMine);
  Recorder fresh;
  const InvalidateSection section({kMine, EventKind::kUnmap});
  ASSERT_TRUE(fresh.insert(kMine.start(), kMine.size()));
  fresh.remove();  // waits for nothing: this thread's change is still under way
  EXPECT_EQ(0U, fresh.rung);
}

TEST(IntervalNotifier, RemovalDuringAChangeWaitsForItsEnd) {
  Recorder stays(kMine);
  auto leaver = std::make_unique<Recorder>(kMine);
  std::atomic<bool> gone{false};
  std::thread thread;
  {
    const InvalidateSection section({kMine, EventKind::kUnmap});
    thread = std::thread([&] {
      leaver.reset();
      gone = true;
    });
    for (int i = 0; i < 1000; ++i) std::this_thread::yield();
    EXPECT_FALSE(gone);
  }
  thread.join();
  change(kMine);
  EXPECT_EQ(2U, stays.rung);
}

TEST(IntervalNotifier, NestedChangesKeepReadersOutUntilTheLastEnds) {
  Recorder one(kMine);
  static_cast<void>(one.read_begin());
  std::atomic<bool> began{false};
  std::thread reader;
  auto outer = std::make_unique<InvalidateSection>(InvalidateEvent{kMine, EventKind::kUnmap});
  {
    const InvalidateSection inner({kMine, EventKind::kClear});
    reader = std::thread([&] {
      static_cast<void>(one.read_begin());
      began = true;
    });
  }
  for (int i = 0; i < 1000; ++i) std::this_thread::yield();
  EXPECT_FALSE(began);
  outer.reset();
  reader.join();
}

TEST(IntervalNotifier, ABusyOneDeclinesAStartThatMayNotWaitAndNobodyIsLeftClosed) {
  Recorder willing(kMine);
  Recorder busy(kMine);
  busy.busy = true;
  static_cast<void>(willing.read_begin());
  {
    const InvalidateSection section({kMine, EventKind::kClear, nullptr, false});
    EXPECT_FALSE(section.begun());
    EXPECT_FALSE(willing.read_retry(willing.read_begin())) << "and this waited for nobody";
  }
  busy.busy = false;
  const InvalidateSection section({kMine, EventKind::kClear, nullptr, false});
  EXPECT_TRUE(section.begun());
}

TEST(IntervalNotifier, AsksForNoMemory) {
  Recorder one(kMine);
  Recorder other;
  failpoint::arm(nullptr, 1, failpoint::kForever);
  ASSERT_TRUE(other.insert(kMine.start(), kMine.size()));
  change(kMine);
  other.remove();
  EXPECT_EQ(0U, failpoint::asked());
  failpoint::disarm();
}

TEST(IntervalNotifier, AChildOfForkHasNoneAndMayHaveItsOwn) {
  Recorder parents(kMine);
  const pid_t child = fork();
  if (child == 0) {
    change(kMine);
    if (parents.rung != 0 || debug_interval_count() != 0) _exit(1);
    parents.remove();
    Recorder own;
    if (!own.insert(kMine.start(), kMine.size())) _exit(2);
    change(kMine);
    _exit(own.rung == 1 && parents.rung == 0 ? 0 : 3);
  }
  int status = 0;
  waitpid(child, &status, 0);
  EXPECT_TRUE(WIFEXITED(status));
  EXPECT_EQ(0, WEXITSTATUS(status));
}

// The process ends while a change is in a callback: who leaves then waits for it as ever.
class Last final : public IntervalNotifier {
 public:
  bool invalidate(const InvalidateEvent& event, u64 sequence) override {
    set_sequence(sequence);
    if (event.kind == EventKind::kRelease) {
      if (at_release) at_release();
      return true;
    }
    if (!blocks) return true;
    inside = true;
    for (int i = 0; i < 1000; ++i) std::this_thread::yield();
    inside = false;
    return true;
  }
  std::function<void()> at_release;
  bool blocks = false;
  std::atomic<bool> inside{false};
};

TEST(IntervalNotifier, WhoLeavesAProcessThatEndsWaitsForACallbackAllTheSame) {
  const pid_t child = fork();
  if (child == 0) {
    alarm(20);
    Last first;
    Last second;
    second.blocks = true;
    std::thread changer;
    first.at_release = [&] {
      changer = std::thread([] { change(kOther); });
      while (!second.inside) std::this_thread::yield();
    };
    if (!first.insert(kMine.start(), kMine.size())) _exit(1);
    if (!second.insert(kOther.start(), kOther.size())) _exit(2);
    release_address_space();
    second.remove();
    const bool still_inside = second.inside;
    changer.join();
    first.remove();
    _exit(still_inside ? 3 : 0);
  }
  int status = 0;
  waitpid(child, &status, 0);
  EXPECT_TRUE(WIFEXITED(status));
  EXPECT_EQ(0, WEXITSTATUS(status));
}

// Subscriptions come and go while others ring: whoever is in is told, whoever left is not.
TEST(IntervalNotifier, ComesAndGoesWhileOthersRing) {
  std::atomic<bool> stop{false};
  std::vector<std::thread> ringers;
  for (u64 which = 0; which < 2; ++which) {
    ringers.emplace_back([&stop, which] {
      while (!stop) change(HvaRange(Hva(0x10000 + which * 0x8000), 0x1000));
    });
  }
  const u64 rounds = test::stress_rounds(20'000);
  u64 rung = 0;
  Recorder stays(kMine);
  for (u64 i = 0; i < rounds || rung == 0; ++i) {
    auto one = std::make_unique<Recorder>(kMine);
    if (i % 16 == 0) {
      static_cast<void>(one->read_begin());
      std::this_thread::yield();
    }
    rung += one->rung;
  }
  stop = true;
  for (auto& ringer : ringers) ringer.join();
  EXPECT_EQ(1U, debug_interval_count());
}

// A device that caches what its page means, under its own lock.
class Cache final : public IntervalNotifier {
 public:
  explicit Cache(HvaRange range = kMine) { EXPECT_TRUE(insert(range.start(), range.size())); }
  ~Cache() { remove(); }
  bool invalidate(const InvalidateEvent& event, u64 sequence) override {
    if (event.owner == this) return true;
    if (event.blockable) {
      const sync::MutexGuard guard(lock_);
      forget(sequence);
      return true;
    }
    const sync::TryMutexGuard guard(lock_);
    if (guard.locked()) forget(sequence);
    return guard.locked();
  }
  // One attempt of a device that looks up, with `between` after the lookup.
  template <typename F>
  bool fault_once(F&& between) {
    const u64 sequence = read_begin();
    between();
    const sync::MutexGuard guard(lock_);
    if (read_retry(sequence)) return false;
    cached_ = 1;
    return true;
  }
  template <typename F>
  void hold(F&& during) {
    const sync::MutexGuard guard(lock_);
    during();
  }
  // Looks up and installs, as every user of an interval does.
  void fault(const std::atomic<u64>& meaning) {
    for (;;) {
      const u64 sequence = read_begin();
      const u64 found = meaning;
      const sync::MutexGuard guard(lock_);
      if (read_retry(sequence)) continue;
      cached_ = found;
      return;
    }
  }
  u64 cached() {
    const sync::MutexGuard guard(lock_);
    return cached_;
  }

 private:
  void forget(u64 sequence) {
    set_sequence(sequence);
    cached_ = 0;
  }
  sync::Mutex lock_{sync::Rank::kSecondary};
  u64 cached_ = 0;
};

TEST(IntervalNotifier, NothingLookedUpBeforeAChangeIsInstalledAfterIt) {
  Cache cache;
  std::atomic<u64> meaning{1};
  std::atomic<bool> stop{false};
  std::thread device([&] {
    while (!stop) cache.fault(meaning);
  });
  const u64 rounds = test::stress_rounds(100'000);
  for (u64 i = 0; i < rounds; ++i) {
    // Now and then there is something to forget.
    while (i % 16 == 0 && cache.cached() != meaning) std::this_thread::yield();
    const InvalidateSection section({kMine, EventKind::kUnmap});
    ASSERT_EQ(0U, cache.cached());
    ++meaning;
    ASSERT_EQ(0U, cache.cached());
  }
  stop = true;
  device.join();
}

}  // namespace
}  // namespace stagetwo::host

namespace stagetwo::test {
namespace {

struct IntervalSubscriber {
  HvaRange mine() { return host::kMine; }
  HvaRange foreign() { return host::kOther; }
  template <typename F>
  bool use_with(Hva, F&& between) {
    return cache_.fault_once(between);
  }
  bool may_use(Hva page) {
    while (!use_with(page, [] {})) {
    }
    return true;
  }
  bool may_use_now(Hva page) {
    return users_.can([this, page] { return may_use(page); });
  }
  bool still_holds(Hva) { return cache_.cached() != 0; }
  template <typename F>
  void hold(Hva, F&& during) {
    cache_.hold(during);
  }
  const void* cookie() { return &cache_; }
  host::Cache cache_;
  PatientUsers users_;
};

}  // namespace
INSTANTIATE_TYPED_TEST_SUITE_P(Interval, NotifierContract, IntervalSubscriber);
INSTANTIATE_TYPED_TEST_SUITE_P(Interval, NotifierContractOfTakers, IntervalSubscriber);
}  // namespace stagetwo::test

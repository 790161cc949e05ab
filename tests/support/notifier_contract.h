// SPDX-License-Identifier: Apache-2.0
#pragma once

// The executable contract of a subscriber of the bell, R1 to R13: whoever implements
// host::MmuNotifier or host::IntervalNotifier runs it. The bell is the real one.
//
//   struct MySubscriber {
//     MySubscriber();                  subscribes; its destructor lets go
//     HvaRange mine();                 a range it holds translations of
//     HvaRange foreign();              one it does not
//     bool may_use(Hva);               one access to a page, translated anew if need be; may wait
//     bool may_use_now(Hva);           the same without waiting for a change under way
//     bool use_with(Hva, between);     one attempt, between() runs after the lookup; installed?
//     void hold(Hva, during);          an access that is in flight while during() runs
//     bool still_holds(Hva);           a translation it needs not ask for
//   };
//   INSTANTIATE_TYPED_TEST_SUITE_P(Mine, NotifierContract, MySubscriber);
//
// Who takes pages away itself (a migration, exclusive access) has
//     const void* cookie();            the owner of its own changes
// and runs R11 as well:
//   INSTANTIATE_TYPED_TEST_SUITE_P(Mine, NotifierContractOfTakers, MySubscriber);

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <memory>
#include <optional>
#include <thread>
#include <vector>

#include "base/failpoint.h"
#include "host/change.h"
#include "host/interval_notifier.h"
#include "host/mmu_notifier.h"
#include "host/notifier_internal.h"

namespace stagetwo::test {

// A subscriber beside the one under test: it writes down its rings and may decline.
class Bystander final : public host::MmuNotifier {
 public:
  explicit Bystander(std::vector<const void*>* log = nullptr) : log_(log) {
    EXPECT_TRUE(host::register_notifier(this));
  }
  ~Bystander() { host::unregister_notifier(this); }
  bool invalidate_range_start(const host::InvalidateEvent&) override {
    if (log_ != nullptr) log_->push_back(this);
    ++starts;
    return true;
  }
  host::TryStart try_invalidate_range_start(const host::InvalidateEvent& event) override {
    if (declines) return host::TryStart::kWouldWait;
    invalidate_range_start(event);
    return host::TryStart::kEngaged;
  }
  void invalidate_range_end(const host::InvalidateEvent&) override { ++ends; }
  bool declines = false;
  int starts = 0;
  int ends = 0;

 private:
  std::vector<const void*>* log_;
};

// Long enough for another thread to do what it must not do.
inline void let_others_run() {
  for (int i = 0; i < 1000; ++i) std::this_thread::yield();
}

// may_use_now() of a subscriber that waits while its range changes: another thread asks, and this
// one waits for it a while.
class PatientUsers {
 public:
  ~PatientUsers() {
    for (auto& user : users_) user.join();
  }
  template <typename F>
  bool can(F&& use) {
    auto used = std::make_shared<std::atomic<bool>>(false);
    users_.emplace_back([use, used] { *used = use(); });
    const auto closed = [] { return host::debug_intervals_changing(); };
    for (int i = 0; i < 1000 || (!closed() && !*used); ++i) {
      if (*used) return true;
      std::this_thread::yield();
    }
    return *used;
  }

 private:
  std::vector<std::thread> users_;
};

template <typename Subscriber>
class NotifierContract : public testing::Test {
 protected:
  using Section = host::InvalidateSection;
  static host::InvalidateEvent event(HvaRange range) { return {range, host::EventKind::kUnmap}; }
  static host::InvalidateEvent may_not_wait(HvaRange range) {
    return {range, host::EventKind::kClear, nullptr, false};
  }
  host::InvalidateEvent of_mine() { return event(subscriber_.mine()); }
  Hva page() { return subscriber_.mine().start(); }
  Subscriber subscriber_;
};
TYPED_TEST_SUITE_P(NotifierContract);

// R1: no missed invalidation.
TYPED_TEST_P(NotifierContract, R1AStartBetweenLookupAndInstallIsSeenByTheInstaller) {
  auto& s = this->subscriber_;
  EXPECT_TRUE(s.use_with(this->page(), [] {})) << "nothing came between";
  EXPECT_FALSE(s.use_with(this->page(), [&] {
    const host::InvalidateSection all(this->of_mine());
  })) << "a whole change came between";
  std::optional<host::InvalidateSection> open;
  EXPECT_FALSE(s.use_with(this->page(), [&] { open.emplace(this->of_mine()); }))
      << "a change came between and goes on";
  open.reset();
  EXPECT_TRUE(s.may_use(this->page()));
}

// R2: when start returns nobody uses the old meaning, and nobody can.
TYPED_TEST_P(NotifierContract, R2AStartReturnsWhenNobodyUsesTheRangeAndNobodyCan) {
  auto& s = this->subscriber_;
  ASSERT_TRUE(s.may_use(this->page()));
  std::atomic<bool> inside{false};
  std::atomic<bool> started{false};
  std::thread user([&] {
    s.hold(this->page(), [&] {
      inside = true;
      let_others_run();
      EXPECT_FALSE(started);
    });
  });
  while (!inside) std::this_thread::yield();
  {
    const host::InvalidateSection section(this->of_mine());
    started = true;
    EXPECT_FALSE(s.may_use_now(this->page()));
    EXPECT_FALSE(s.still_holds(this->page()));
  }
  user.join();
  EXPECT_TRUE(s.may_use(this->page()));
}

// R3: one end for each start, whatever became of the call.
TYPED_TEST_P(NotifierContract, R3EachStartHasOneEndWhateverBecameOfTheCall) {
  auto& s = this->subscriber_;
  const HvaRange mine = s.mine();
  EXPECT_EQ(-1, host::change(mine.start().raw(), mine.size(), host::EventKind::kUnmap, [&] {
    EXPECT_FALSE(s.may_use_now(this->page()));
    errno = EINVAL;
    return -1;
  }));
  EXPECT_TRUE(s.may_use(this->page()));
  Bystander refuses;
  refuses.declines = true;
  {
    const host::InvalidateSection refused(this->may_not_wait(mine));
    EXPECT_FALSE(refused.begun());
    EXPECT_TRUE(s.may_use_now(this->page())) << "the end of a refused start has come already";
  }
  EXPECT_TRUE(s.may_use(this->page()));
}

TYPED_TEST_P(NotifierContract, R3NestedChangesAreOverWhenTheLastIs) {
  auto& s = this->subscriber_;
  std::optional<host::InvalidateSection> first;
  first.emplace(this->of_mine());
  std::thread([&] { const host::InvalidateSection second(this->of_mine()); }).join();
  EXPECT_FALSE(s.may_use_now(this->page()));
  first.reset();
  EXPECT_TRUE(s.may_use(this->page()));
}

// R4: who left is not called. A sanitizer sees the call that comes too late.
TYPED_TEST_P(NotifierContract, R4ItIsNotCalledOnceItHasLeft) {
  std::atomic<bool> stop{false};
  std::atomic<u64> rings{0};
  std::thread ringer([&] {
    for (; !stop; ++rings)
      const host::InvalidateSection section(this->event(host::kWholeAddressSpace));
  });
  for (int round = 0; round < 10; ++round) {
    auto one = std::make_unique<TypeParam>();
    const u64 before = rings;
    while (rings < before + 2) std::this_thread::yield();
    one.reset();
  }
  stop = true;
  ringer.join();
}

// R5: many on one range, in a stable order; one that declines unwinds the others.
TYPED_TEST_P(NotifierContract, R5ManyOnOneRangeAreAllRungInOneOrderAndAllUnwound) {
  std::vector<const void*> log;
  Bystander before(&log);
  auto other = std::make_unique<TypeParam>();
  Bystander after(&log);
  auto& s = this->subscriber_;
  ASSERT_TRUE(s.may_use(this->page()));
  ASSERT_TRUE(other->may_use(other->mine().start()));
  log.clear();  // a device may have taken pages to begin with
  for (int round = 0; round < 2; ++round) {
    const host::InvalidateSection section(this->event(host::kWholeAddressSpace));
    EXPECT_FALSE(s.may_use_now(this->page()));
    EXPECT_FALSE(other->may_use_now(other->mine().start()));
  }
  ASSERT_EQ(4U, log.size());
  EXPECT_EQ(log[0], log[2]);
  EXPECT_EQ(log[1], log[3]);
  after.declines = true;
  {
    const host::InvalidateSection refused(this->may_not_wait(host::kWholeAddressSpace));
    EXPECT_FALSE(refused.begun());
    EXPECT_EQ(before.starts, before.ends);
    EXPECT_TRUE(s.may_use_now(this->page()));
    EXPECT_TRUE(other->may_use_now(other->mine().start()));
  }
}

// R6: a start that may not wait is over soon, however busy the subscriber is.
TYPED_TEST_P(NotifierContract, R6AStartThatMayNotWaitDoesNot) {
  auto& s = this->subscriber_;
  ASSERT_TRUE(s.may_use(this->page()));
  std::atomic<bool> inside{false};
  std::atomic<bool> answered{false};
  std::thread user([&] {
    s.hold(this->page(), [&] {
      inside = true;
      while (!answered) std::this_thread::yield();
    });
  });
  while (!inside) std::this_thread::yield();
  {
    const host::InvalidateSection section(this->may_not_wait(s.mine()));
    EXPECT_FALSE(section.begun());
  }
  answered = true;
  user.join();
  EXPECT_TRUE(s.may_use(this->page()));
  // At rest it need not decline; the machine may be busy, so ask until it does not.
  for (bool begun = false; !begun;) {
    const host::InvalidateSection section(this->may_not_wait(s.mine()));
    begun = section.begun();
    if (!begun) continue;
    EXPECT_FALSE(s.may_use_now(this->page()));
  }
  EXPECT_TRUE(s.may_use(this->page()));
}

// R7: who comes during a change has both of its ends or neither, and begins with nothing.
TYPED_TEST_P(NotifierContract, R7ANewcomerUsesNothingUntilTheChangeThatMissedItIsOver) {
  std::atomic<bool> used{false};
  std::thread newcomer;
  {
    const host::InvalidateSection section(this->event(host::kWholeAddressSpace));
    newcomer = std::thread([&] {
      TypeParam fresh;
      EXPECT_TRUE(fresh.may_use(fresh.mine().start()));
      used = true;
    });
    let_others_run();
    EXPECT_FALSE(used);
  }
  newcomer.join();
  EXPECT_TRUE(used);
}

// R8: teardown cannot fail, so ringing asks for no memory.
TYPED_TEST_P(NotifierContract, R8StartAndEndAskForNoMemory) {
  auto& s = this->subscriber_;
  ASSERT_TRUE(s.may_use(this->page()));
  failpoint::arm(nullptr, 1, failpoint::kForever);
  {
    const host::InvalidateSection section(this->of_mine());
  }
  {
    const host::InvalidateSection section(this->may_not_wait(s.mine()));
  }
  EXPECT_EQ(0U, failpoint::asked());
  failpoint::disarm();
  EXPECT_TRUE(s.may_use(this->page()));
}

// R9: a callback that changes the address space is found out at once.
TYPED_TEST_P(NotifierContract, R9AChangeFromACallbackEndsTheProcess) {
  class Reenters final : public host::MmuNotifier {
   public:
    bool invalidate_range_start(const host::InvalidateEvent& event) override {
      const host::InvalidateSection again(event);
      return false;
    }
    void invalidate_range_end(const host::InvalidateEvent&) override {}
  };
  EXPECT_DEATH(
      {
        Reenters one;
        static_cast<void>(host::register_notifier(&one));
        const host::InvalidateSection section(this->of_mine());
      },
      "in_callback");
}

// R10: nobody concerned, no lock: here every lock of the registry is held by somebody else.
TYPED_TEST_P(NotifierContract, R10AChangeOfAForeignRangeTakesNoLock) {
  auto& s = this->subscriber_;
  ASSERT_TRUE(s.may_use(this->page()));
  std::atomic<int> phase{0};
  std::thread holder([&] {
    host::debug_with_registry_locked([&] {
      phase = 1;
      while (phase != 2) std::this_thread::yield();
    });
  });
  while (phase != 1) std::this_thread::yield();
  {
    const host::InvalidateSection section(this->event(s.foreign()));
    EXPECT_TRUE(s.still_holds(this->page()));
  }
  phase = 2;
  holder.join();
}

// R12: who changes the addresses may be one who uses them.
TYPED_TEST_P(NotifierContract, R12AThreadThatUsesTheRangeMayChangeIt) {
  auto& s = this->subscriber_;
  for (int round = 0; round < 3; ++round) {
    ASSERT_TRUE(s.may_use(this->page()));
    const host::InvalidateSection section(this->of_mine());
    EXPECT_FALSE(s.still_holds(this->page()));
  }
}

// R13: a child of fork rings nobody: the lock its parent's subscriber holds is held for ever there.
TYPED_TEST_P(NotifierContract, R13AChildOfForkRingsNobody) {
  auto& s = this->subscriber_;
  ASSERT_TRUE(s.may_use(this->page()));
  std::atomic<int> phase{0};
  std::thread user([&] {
    s.hold(this->page(), [&] {
      phase = 1;
      while (phase != 2) std::this_thread::yield();
    });
  });
  while (phase != 1) std::this_thread::yield();
  const pid_t child = fork();
  if (child == 0) {
    alarm(20);
    const host::InvalidateSection section(this->of_mine());
    _exit(host::debug_notifier_count() == 0 && host::debug_interval_count() == 0 ? 0 : 1);
  }
  int status = 0;
  waitpid(child, &status, 0);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
  phase = 2;
  user.join();
}

REGISTER_TYPED_TEST_SUITE_P(NotifierContract, R1AStartBetweenLookupAndInstallIsSeenByTheInstaller,
                            R2AStartReturnsWhenNobodyUsesTheRangeAndNobodyCan,
                            R3EachStartHasOneEndWhateverBecameOfTheCall,
                            R3NestedChangesAreOverWhenTheLastIs, R4ItIsNotCalledOnceItHasLeft,
                            R5ManyOnOneRangeAreAllRungInOneOrderAndAllUnwound,
                            R6AStartThatMayNotWaitDoesNot,
                            R7ANewcomerUsesNothingUntilTheChangeThatMissedItIsOver,
                            R8StartAndEndAskForNoMemory, R9AChangeFromACallbackEndsTheProcess,
                            R10AChangeOfAForeignRangeTakesNoLock,
                            R12AThreadThatUsesTheRangeMayChangeIt, R13AChildOfForkRingsNobody);

// R11: a subscriber recognises its own changes.
template <typename T>
class NotifierContractOfTakers : public NotifierContract<T> {};
TYPED_TEST_SUITE_P(NotifierContractOfTakers);
TYPED_TEST_P(NotifierContractOfTakers, R11ItRecognisesItsOwnChange) {
  auto& s = this->subscriber_;
  int other = 0;
  for (const bool own : {true, false}) {
    ASSERT_TRUE(s.may_use(this->page()));
    {
      const host::InvalidateSection section(
          {s.mine(), host::EventKind::kMigrate, own ? s.cookie() : &other});
    }
    EXPECT_EQ(own, s.still_holds(this->page()));
  }
}

REGISTER_TYPED_TEST_SUITE_P(NotifierContractOfTakers, R11ItRecognisesItsOwnChange);

}  // namespace stagetwo::test

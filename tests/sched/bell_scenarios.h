// SPDX-License-Identifier: Apache-2.0
#pragma once

// What the bell was before it was what it is: the forms of 2008 and of the years after, each as
// small as it can be, with the step that put it right as a guard. What a system call of the client
// changes is `meaning`, outside the memory model; it stands for the page behind an address.

#include "base/guard.h"
#include "host/mmu_notifier.h"
#include "sync/mutex.h"
#include "tests/sched/sched_support.h"

namespace stagetwo::test {

// A subscriber with KVM's count and sequence, its entry under a lock.
class CountingUser final : public host::MmuNotifier {
 public:
  bool invalidate_range_start(const host::InvalidateEvent&) override {
    const sync::MutexGuard guard(lock_);
    ++count_;
    entry_ = 0;
    return true;
  }
  void invalidate_range_end(const host::InvalidateEvent&) override {
    const sync::MutexGuard guard(lock_);
    ++sequence_;
    --count_;
  }
  void initialise() {
    const sync::MutexGuard guard(lock_);
    sync::sched::note("initialises its count and its sequence");
    count_ = 0;
    sequence_ = 1;
  }
  void fault(const u64& meaning) {
    u64 seen = 0;
    {
      const sync::MutexGuard guard(lock_);
      seen = sequence_;
    }
    sync::sched::note("looks the page up");
    const u64 found = meaning;
    sync::sched::point();
    const sync::MutexGuard guard(lock_);
    if (count_ != 0 || sequence_ != seen) return;
    sync::sched::note("installs it");
    entry_ = 1 + found;
  }
  template <typename F>
  void use(F&& fn) {
    const sync::MutexGuard guard(lock_);
    if (entry_ != 0) fn(entry_ - 1);
  }
  // The callback change_pte: another page for the same address, in place.
  void change_pte(u64 meaning) {
    const sync::MutexGuard guard(lock_);
    if (entry_ == 0) return sync::sched::note("change_pte: finds no entry");
    sync::sched::note("change_pte: puts the new page in place of the old one");
    entry_ = 1 + meaning;
  }
  // The callback invalidate_page.
  void forget() {
    const sync::MutexGuard guard(lock_);
    sync::sched::note("invalidate_page: forgets");
    entry_ = 0;
  }

 private:
  sync::Mutex lock_{sync::Rank::kSecondary};
  u64 count_ = 0;
  u64 sequence_ = 0;
  u64 entry_ = 0;  // 0: none
};

struct BellWorld {
  CountingUser user;
  bool registered = false;
  u64 meaning = 1;
  bool changing = false;
  static constexpr HvaRange kRange{Hva(0x10000), kPageSize};

  ~BellWorld() {
    if (registered) host::unregister_notifier(&user);
  }
  void join() {
    sync::sched::note("registers");
    sync::sched::expect(host::register_notifier(&user).has_value(), "room");
    registered = true;
  }
  void use() {
    user.use([this](u64 entry) {
      sync::sched::point();
      sync::sched::note("uses its entry");
      sync::sched::expect(!changing && entry == meaning, "an old page is used");
    });
  }
  void change_meaning() {
    changing = true;
    sync::sched::note("the system call begins");
    sync::sched::point();
    ++meaning;
    sync::sched::point();
    sync::sched::note("... and ends: another page now");
    changing = false;
  }
  void change() {
    const host::InvalidateSection section({kRange, host::EventKind::kUnmap});
    change_meaning();
  }
};

// Weakness (a) of the posted design: it registers, and then makes ready what the callbacks use.
struct ReadyAgainstChange : BellWorld {
  static constexpr unsigned kThreads = 2;
  static constexpr unsigned kSteps = 8;
  void thread(unsigned me) {
    if (me == 1) return change();
    if (ST_GUARD(ready_before_it_registers, true)) {
      user.initialise();
      join();
    } else {
      join();
      // A schedule that leaves it here for as long as a change takes to begin is rare without.
      for (unsigned step = 0; step < kSteps; ++step) sync::sched::point();
      user.initialise();
    }
    user.fault(meaning);
    use();
  }
};

// Weakness (b): whoever faults spins for as long as a writer is inside, which is a whole range.
struct SpinAgainstRange {
  static constexpr unsigned kThreads = 2;
  static constexpr unsigned kPages = 20;
  static constexpr unsigned kMostLooks = 5;
  sync::Atomic<u64> sequence{2};
  void thread(unsigned me) {
    if (me == 1) return invalidate_range();
    unsigned looks = 0;
    while ((sequence.load(sync::kAcquire) & 1) != 0) {
      sync::sched::note("a change is under way");
      // Count plus sequence with a retry: the fault is over, and its thread may be interrupted.
      if (ST_GUARD(retry_instead_of_spinning, true)) return sync::sched::note("is to be retried");
      sync::sched::expect(++looks < kMostLooks, "a fault spins until the whole range is done");
      sync::spin_hint();
    }
  }
  void invalidate_range() {
    sequence.fetch_add(1, sync::kAcqRel);
    for (unsigned page = 0; page < kPages; ++page) {
      sync::sched::note("takes a page of the range");
      sync::sched::point();
    }
    sequence.fetch_add(1, sync::kAcqRel);
  }
};

// A page is replaced by one of equal content (KSM), and change_pte is all that says so.
struct FaultAgainstReplacement : BellWorld {
  static constexpr unsigned kThreads = 2;
  FaultAgainstReplacement() {
    user.initialise();
    join();
  }
  void thread(unsigned me) {
    if (me == 1) return replace();
    user.fault(meaning);
    use();
  }
  void replace() {
    if (ST_GUARD(replaced_in_a_pair, true)) {
      const host::InvalidateSection section({kRange, host::EventKind::kClear});
      change_meaning();
      user.change_pte(meaning);
    } else {
      ++meaning;
      sync::sched::note("the page is replaced");
      sync::sched::point();
      user.change_pte(meaning);
      sync::sched::point();
    }
  }
};

// invalidate_page: told after the page's address has lost it, and nobody holds a reference.
struct UseAgainstLateCall : BellWorld {
  static constexpr unsigned kThreads = 2;
  UseAgainstLateCall() {
    user.initialise();
    join();
    user.fault(meaning);
  }
  void thread(unsigned me) {
    if (me == 0) return use();
    if (ST_GUARD(told_before_the_change, true)) return change();
    change_meaning();
    user.forget();
  }
};

// One that registers while a change goes on that rang without it.
struct RegisterAgainstChange : BellWorld {
  static constexpr unsigned kThreads = 2;
  RegisterAgainstChange() { user.initialise(); }
  void thread(unsigned me) {
    if (me == 1) return change();
    join();
    user.fault(meaning);
    use();
  }
};

}  // namespace stagetwo::test

// SPDX-License-Identifier: Apache-2.0
#pragma once

// A user of an interval of the bell, as small as one can be, against changes: the real registry.
// What a system call of the client changes is `meaning`, outside the memory model.

#include "host/interval_notifier.h"
#include "sync/mutex.h"
#include "tests/sched/sched_support.h"

namespace stagetwo::test {

class IntervalUser final : public host::IntervalNotifier {
 public:
  ~IntervalUser() { remove(); }
  bool invalidate(const host::InvalidateEvent&, u64 sequence) override {
    const sync::MutexGuard guard(lock_);
    set_sequence(sequence);
    cached_ = 0;
    return true;
  }
  // One fault: looks the meaning up without the lock, keeps it if nothing came between.
  void fault(const u64& meaning) {
    const u64 sequence = read_begin();
    sync::sched::note("looks the page up");
    const u64 found = meaning;
    sync::sched::point();
    const sync::MutexGuard guard(lock_);
    if (read_retry(sequence)) return;
    sync::sched::note("installs it");
    cached_ = 1 + found;
  }
  template <typename F>
  void use(F&& fn) {
    const sync::MutexGuard guard(lock_);
    if (cached_ != 0) fn(cached_ - 1);
  }

 private:
  sync::Mutex lock_{sync::Rank::kSecondary};
  u64 cached_ = 0;  // 0: nothing
};

struct IntervalWorld {
  static constexpr u64 kStart = 0x10000;
  IntervalUser user;
  u64 meaning = 1;
  bool changing = false;

  void use() {
    user.use([this](u64 cached) {
      sync::sched::point();
      sync::sched::note("uses what it has");
      sync::sched::expect(!changing && cached == meaning, "an old page is used");
    });
  }
  void join() { sync::sched::expect(user.insert(Hva(kStart), kPageSize).has_value(), "room"); }
  void change() {
    const host::InvalidateSection section(
        {HvaRange(Hva(kStart), kPageSize), host::EventKind::kUnmap});
    changing = true;
    sync::sched::note("the system call begins");
    sync::sched::point();
    ++meaning;
    sync::sched::point();
    sync::sched::note("... and ends: another page now");
    changing = false;
  }
};

// A user that is there, against a change.
struct ReaderAgainstChange : IntervalWorld {
  static constexpr unsigned kThreads = 2;
  ReaderAgainstChange() {
    join();
    static_cast<void>(user.read_begin());
  }
  void thread(unsigned me) {
    if (me == 1) return change();
    user.fault(meaning);
    use();
  }
};

// One that comes meanwhile: nobody rings it for a change that began before.
struct NewcomerAgainstChange : IntervalWorld {
  static constexpr unsigned kThreads = 2;
  void thread(unsigned me) {
    if (me == 1) return change();
    join();
    user.fault(meaning);
    use();
  }
};

// Changes that overlap in time: who reads waits for the last.
struct ReaderAgainstTwoChanges : ReaderAgainstChange {
  static constexpr unsigned kThreads = 3;
  int open = 0;
  void thread(unsigned me) {
    if (me == 0) return ReaderAgainstChange::thread(0);
    const host::InvalidateSection section(
        {HvaRange(Hva(kStart), kPageSize), host::EventKind::kClear});
    ++open;
    changing = true;
    sync::sched::point();
    ++meaning;
    sync::sched::point();
    changing = --open != 0;
  }
};

// It leaves while others ring, and comes again.
struct LeaverAgainstChange : IntervalWorld {
  static constexpr unsigned kThreads = 3;
  void thread(unsigned me) {
    if (me != 0) return change_once(me);
    for (int round = 0; round < 2; ++round) {
      join();
      user.fault(meaning);
      use_what_is_now();
      user.remove();
      user.invalidate({}, 0);  // who does not listen may keep nothing
    }
  }
  int open = 0;
  void change_once(unsigned) {
    const host::InvalidateSection section(
        {HvaRange(Hva(kStart), kPageSize), host::EventKind::kUnmap});
    ++open;
    sync::sched::point();
    ++meaning;
    --open;
  }
  void use_what_is_now() {
    user.use([this](u64 cached) {
      sync::sched::expect(open == 0 && cached == meaning, "an old page is used");
    });
  }
};

}  // namespace stagetwo::test

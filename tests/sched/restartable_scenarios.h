// SPDX-License-Identifier: Apache-2.0
#pragma once

// An owner that lets go inside its section: what it uses is plain data that the invalidator
// overwrites when its barrier has returned. An access that reaches it afterwards is a race. The
// scheduler aborts restartable accesses as the kernel does.

#include "sync/ack_line.h"
#include "tests/sched/sched_support.h"

namespace stagetwo::test {

struct LetGo {
  static constexpr unsigned kThreads = 2;
  static constexpr u64 kAlive = 7;
  static constexpr u64 kGone = 666;
  static constexpr int kMany = 60;  // accesses: the owner outlives the invalidator's spinning
  sync::AckSet set;
  sync::AckLine line;
  sync::sched::PlainWord page{kAlive};
  bool cached = true;  // the owner's: until a request is acknowledged

  LetGo() { set.add(line); }
  ~LetGo() { set.remove(line); }

  // By an address that was found before: no access if a request is pending, or if it is aborted.
  void restartable_access() {
    if (!cached) return;
    u64 value = 0;
    sync::sched::begin_restartable();
    if (!line.pending() && page.read_restartable(&value)) {
      sync::sched::expect(value == kAlive, "an aborted access reached the page");
    }
  }
  // Longer than the invalidator spins.
  void held_accesses() {
    if (line.hold()) cached = false;
    for (int i = 0; i < 40 && cached; ++i) {
      sync::sched::expect(page.read() == kAlive, "held, and not waited for");
    }
    line.let_go();
  }
  void enter() {
    if (line.enter()) cached = false;
    line.let_go();
  }
  void leave() {
    if (line.hold()) cached = false;
    line.leave();
  }
  void invalidate() {
    set.barrier();
    page.write(kGone);
  }
};

struct RestartableAgainstBarrier : LetGo {
  void thread(unsigned me) {
    if (me != 0) return invalidate();
    enter();
    // So rarely that the invalidator comes to its barrier between two of them.
    for (int i = 0; i < 4; ++i) {
      for (int step = 0; step < kMany; ++step) sync::sched::point();
      restartable_access();
    }
    leave();
  }
};

struct HoldAgainstBarrier : LetGo {
  void thread(unsigned me) {
    if (me != 0) return invalidate();
    enter();
    for (int i = 0; i < 4; ++i) held_accesses();
    leave();
  }
};

// Both kinds turn about, polls between, and sections that end.
struct MixedAgainstBarrier : LetGo {
  void thread(unsigned me) {
    if (me != 0) return invalidate();
    for (int section = 0; section < 2; ++section) {
      enter();
      for (int i = 0; i < kMany / 2; ++i) restartable_access();
      held_accesses();
      if (line.pending() && line.hold()) {
        cached = false;
        line.let_go();
      }
      restartable_access();
      leave();
    }
  }
};

// Who retires a table asks later whether the lines have passed; somebody else's barrier may be the
// answer.
struct RetireAgainstHold : LetGo {
  static constexpr unsigned kThreads = 3;
  void thread(unsigned me) {
    if (me == 0) {
      enter();
      for (int i = 0; i < 4; ++i) held_accesses();
      leave();
    } else if (me == 1) {
      const u64 ticket = set.bump_all();
      while (set.passed() < ticket) sync::spin_hint();
      page.write(kGone);
    } else {
      set.barrier();
    }
  }
};

}  // namespace stagetwo::test

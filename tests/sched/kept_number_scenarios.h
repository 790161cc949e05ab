// SPDX-License-Identifier: Apache-2.0
#pragma once

// A table of numbers, as a process has of descriptors: the engine's file and the client's. The
// engine makes calls on its file; two threads of the client take the number it has.

#include "sync/kept_number.h"
#include "sync/passing_number.h"
#include "tests/sched/sched_support.h"

namespace stagetwo::test {

struct NumbersTaken {
  static constexpr unsigned kThreads = 3;
  enum : u64 { kNothing, kEngines, kClients };
  static constexpr int kNumbers = 3;

  sync::Passage users;
  sync::KeptNumber engines{0, users};
  // What the kernel finds behind a number at the moment of a call.
  sync::Atomic<u64> table[kNumbers] = {sync::Atomic<u64>(kEngines), sync::Atomic<u64>(kNothing),
                                       sync::Atomic<u64>(kNothing)};

  void call() {
    const sync::KeptNumber::Use use = engines.use();
    sync::sched::expect(table[use.get()].load() == kEngines, "a call on the client's file");
  }
  // The client's dup2: moves the engine's file from `at` on to the next number, and takes `at`.
  void take(int at) {
    table[at + 1].store(kEngines);
    const int old = engines.exchange(at + 1);
    engines.wait_for_users();
    table[old].store(kClients);
  }
  void thread(unsigned me) {
    if (me == 0) {
      take(0);
      take(1);
    } else {
      call();
      call();
    }
  }
};

// A number that is the engine's for the length of one call, the lowest that is free, and a client
// that puts its file on that number.
struct NumberPasses {
  static constexpr unsigned kThreads = 3;
  enum : u64 { kNothing, kEngines, kClients };

  sync::Atomic<u64> number{kNothing};  // what the kernel finds behind it

  bool make(u64 file) {
    u64 seen = kNothing;
    return number.compare_exchange(seen, file);
  }
  void call() {
    const sync::PassingNumber passing;
    if (!make(kEngines)) return;  // another number is the lowest
    sync::sched::expect(number.load() == kEngines, "a call on the client's file");
    number.store(kNothing);
  }
  bool is_mine_to_take() const {
    const auto look = sync::PassingNumber::look();
    return number.load() != kNothing && look.holds();
  }
  void take() {
    for (int turn = 0; turn < 3; ++turn) {
      if (make(kClients)) return;
      if (!is_mine_to_take()) continue;
      number.store(kClients);
      return;
    }
  }
  void thread(unsigned me) {
    if (me == 0) {
      take();
      take();
    } else {
      call();
      call();
    }
  }
};

}  // namespace stagetwo::test

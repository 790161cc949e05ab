// SPDX-License-Identifier: Apache-2.0
#pragma once

// A table of numbers, as a process has of descriptors: the engine's file and the client's. The
// engine makes calls on its file; two threads of the client take the number it has.

#include "sync/kept_number.h"
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

}  // namespace stagetwo::test

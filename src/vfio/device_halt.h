// SPDX-License-Identifier: Apache-2.0
#pragma once

// The threads of one device in all the processes that have it open, by fork or by opening it: who
// changes the device holds all of them off. It stands in the model's shared memory; zero: nobody.
//
//   who pauses (has the device's lock)      a thread of any process
//   by = itself                             inside = itself
//   waits until every row's inside is 0     reads by: set, it goes outside again and waits
//   changes; by = 0                         works; inside = 0
//
// I1  While `by` is set and hold() has returned, no thread works.
// I2  A thread that has died inside is outside; who has died while he paused, holds nobody off.
// Orders: by and inside stored and then the other read, all seq_cst (Dekker).

#include "base/sys.h"
#include "sync/futex.h"
#include "sync/process_mutex.h"

namespace stagetwo::vfio {

struct DeviceHalt {
  // Processes whose threads work at the same time. One more waits until another ends.
  static constexpr u32 kThreads = 32;
  struct Row {
    sync::Atomic<u32> thread;
    sync::Atomic<u32> inside;
  };
  sync::Atomic<u32> by;
  Row rows[kThreads];

  // ---- who has the device's lock
  void hold();
  void release() { by.store(0); }
  // ---- a thread. Null: there is no place now.
  Row* enter_row();
  [[nodiscard]] bool others_inside(const Row* own);
  void give_way();  // while somebody holds the device
};

}  // namespace stagetwo::vfio

// SPDX-License-Identifier: Apache-2.0
#pragma once

// A thread of a model's own: a device that works by itself while its client goes on. It is made
// with the first start(), sleeps where there is nothing to do, and can be stopped between two
// pieces of work. Analogue: the hardware's side; no kernel file.
//
//   client's call (device's lock)            thread
//   puts work where work() finds it, wake()  work() until it says that there is none
//   pause(): cancelled() from now on         drops what it is at, sleeps
//   changes what work() reads; resume()      goes on with what stands there now
//
// I1  Between pause() and resume() the thread touches nothing, nor is anything of before under way;
//     with a DeviceHalt that goes for the device's threads in all processes.
// I2  What is put before wake() is found: the thread looks once more after it has said it sleeps.
// I3  A child of fork has no thread; start() makes it one, with fresh state (Work::in_child).
// Locking: start, pause, resume and wake under the device's lock. Lifetime: the model's, which
// calls stop() first in its destructor.

#include "iommu/cancel.h"
#include "sync/futex.h"
#include "vfio/device_halt.h"

namespace stagetwo::vfio {

class DeviceThread {
 public:
  class Work {
   public:
    virtual bool work() = 0;  // false: there is nothing to do
    virtual void begins() {}  // once, in the thread
    // It is about to sleep, and has woken or begun. Work may come between the two: say so.
    virtual void falls_asleep() {}
    virtual void wakes_up() {}
    virtual void in_child() {}  // what was under way is the parent's

   protected:
    ~Work() = default;
  };

  explicit DeviceThread(Work& work, DeviceHalt* halt = nullptr) : work_(work), halt_(halt) {}
  // False: none can be made.
  [[nodiscard]] bool start();
  void wake();
  void pause();
  void resume();
  void stop();
  // To be asked between pieces. Where the thread waits: as a word that is 0 while it is not.
  [[nodiscard]] bool cancelled() const {
    return order_.load() != kRun || (halt_ != nullptr && halt_->by.load() != 0);
  }
  [[nodiscard]] iommu::Cancel cancel() const {
    return {{&order_, halt_ != nullptr ? &halt_->by : nullptr}};
  }
  // Of the thread: does another process's work? Racy.
  [[nodiscard]] bool others_work() const { return halt_ != nullptr && halt_->others_inside(row_); }

 private:
  enum Order : u32 { kRun, kPause, kStop };
  enum State : u32 { kNone, kRuns, kPaused };
  void give(Order order);
  void serve();
  void rest();
  void idle();
  bool turn();
  [[nodiscard]] bool is_mine() const;

  Work& work_;
  DeviceHalt* const halt_;
  DeviceHalt::Row* row_ = nullptr;  // the thread's
  u32 process_ = 0;                 // whose the rest is
  // The thread stores kRuns and then reads the order; who pauses stores the order and then reads
  // the state; all seq_cst: one of them sees the other.
  sync::Atomic<u32> order_{kRun};   // who calls stores
  sync::Atomic<u32> state_{kNone};  // the thread stores, but the first kRuns
  sync::Atomic<u32> orders_{0};     // ever given: a resting thread sleeps on it
  sync::Atomic<u32> bell_{0};       // an idle one on this
};

}  // namespace stagetwo::vfio

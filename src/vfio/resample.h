// SPDX-License-Identifier: Apache-2.0
#pragma once

// The eventfd by which a client unmasks its line: while that is masked, a thread sleeps on it.
// Analogue: struct virqfd (kernel file: drivers/vfio/virqfd.c). Differs: the kernel is called by
// who writes.
//
//   ring (Interrupts' lock)                 thread
//   masked; arm(): what was written before  sleeps on the eventfd, 2 ms at a time, because its
//   meant nothing and is read away          number may have to move (sync/kept_number.h)
//                                           written: rests, then tells; who is told may arm() again
//
// I1  After stop() nothing is told any more, nor is anything of before under way.
// I2  It tells only between an arm() and the next write.
// Context: arm() under the lock of who is told, stop() without. A child of fork makes a thread of
// its own when it arms. Lifetime: stop() comes before the end of who is told.

#include "base/alloc.h"
#include "host/kept_fd.h"
#include "sync/futex.h"

namespace stagetwo::vfio {

class Resample {
 public:
  using Tell = void (*)(void* whom);
  Resample(Box<host::HeldFd> bell, Tell tell, void* whom)
      : bell_(std::move(bell)), tell_(tell), whom_(whom) {}
  ~Resample() { stop(); }
  Resample(const Resample&) = delete;
  Resample& operator=(const Resample&) = delete;

  // Failure: ENOMEM (no thread).
  Result<void> start();
  // `fresh`: what was written before it was masked means nothing.
  void arm(bool fresh = true);
  void stop();

 private:
  enum Order : u32 { kRest, kListen, kStop };
  [[nodiscard]] bool is_mine() const;
  void give(Order order);
  void serve();
  [[nodiscard]] bool wait();
  [[nodiscard]] bool take();

  const Box<host::HeldFd> bell_;
  const Tell tell_;
  void* const whom_;
  u32 process_ = 0;  // whose thread it is
  sync::Atomic<u32> order_{kRest};
  sync::Atomic<u32> runs_{0};
};

}  // namespace stagetwo::vfio

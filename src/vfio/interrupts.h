// SPDX-License-Identifier: Apache-2.0
#pragma once

// The interrupts of one open device: which eventfd of the client's each vector rings. One index is
// in use at a time. INTx is a line: it rings once and is masked until the client unmasks it, and
// rings again then if the line is still up.
//
// Analogue: vfio_pci_intrs.c for a function (Shape::function), mtty.c for a mediated device; they
// differ in what they call a bad request, and in what an eventfd of -1 leaves behind.
// Beside it stand the function's own two, errors and the request to give it back.
// Differs: the line of a mediated device, too, is unmasked by an eventfd (mtty.c: ENOTTY).
// I1  An eventfd is the engine's own copy: closing the client's takes no ring away.
// I2  After set() returned, no eventfd that it took out rings.
// Locking: a leaf. Lifetime: the open device's. A child of fork has its own copy of all this.

#include <span>

#include "base/alloc.h"
#include "base/vec.h"
#include "host/kept_fd.h"
#include "sync/mutex.h"
#include "vfio/model.h"
#include "vfio/resample.h"

namespace stagetwo::vfio {

// A request, in the uapi's numbers (struct vfio_irq_set).
struct IrqSet {
  static constexpr u32 kNoData = 1, kBools = 2, kEventfds = 4;
  static constexpr u32 kMask = 8, kUnmask = 16, kTrigger = 32;
  static constexpr u32 kData = kNoData | kBools | kEventfds, kAction = kMask | kUnmask | kTrigger;
  u32 flags;
  u32 index, start, count;
  std::span<const u8> data;  // count bytes, or count s32
};

class Interrupts {
 public:
  Interrupts() = default;
  Interrupts(const Interrupts&) = delete;
  Interrupts& operator=(const Interrupts&) = delete;

  // Pre: the request is whole (abi has looked at its sizes), start + count within the index.
  // Failure: EINVAL, ENOTTY, EBADF, EBUSY, ENOMEM, EMFILE, and nothing has changed.
  Result<void> set(const Shape& shape, const IrqSet& request);
  // A message: of MSI or MSI-X. Nobody listens: nothing.
  void raise(u32 vector);
  // In a child of fork: another thread may have been in the middle of a ring.
  void after_fork_child();
  // Its holder is asked to let go of the device, if he listens to that.
  void ask_for_release();
  // The level of what interrupts by a line; with MSI in use each rise is a message of vector 0.
  // `off`: the line itself says nothing (the command register's bit).
  void set_line(bool up, bool off = false);

 private:
  static constexpr u32 kNone = ~u32{0};
  struct Vector {
    Box<host::HeldFd> bell;
  };
  // Locals of set() that end behind the lock: what stops listening is waited for there.
  using Going = Box<Resample>;
  Result<void> trigger(const Shape& shape, const IrqSet& request, Going& going) TA_REQ(lock_);
  Result<void> mask(const IrqSet& request, Going& going) TA_REQ(lock_);
  Result<void> unmask_by(s32 fd, Going& going) TA_REQ(lock_);
  void unmask() TA_REQ(lock_);
  static void resampled(void* self);
  Result<void> set_own(Vector* own, const IrqSet& request) TA_REQ(lock_);
  Result<void> take(const Shape& shape, const IrqSet& request, Going& going) TA_REQ(lock_);
  void drop_all(Going& going) TA_REQ(lock_);
  void ring(u32 vector) TA_REQ(lock_);
  static void ring(const Vector& vector);
  void ring_line() TA_REQ(lock_);

  sync::Mutex lock_{sync::Rank::kInterrupts};
  Vec<Vector> vectors_ TA_GUARDED(lock_){"vfio.vectors"};
  Vector own_[2] TA_GUARDED(lock_);  // of kErrorIndex and kRequestIndex
  u32 index_ TA_GUARDED(lock_) = kNone;
  bool masked_ TA_GUARDED(lock_) = false;
  bool line_ TA_GUARDED(lock_) = false;
  bool line_off_ TA_GUARDED(lock_) = false;
  Box<Resample> resample_ TA_GUARDED(lock_);  // of INTx
};

}  // namespace stagetwo::vfio

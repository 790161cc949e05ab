// SPDX-License-Identifier: Apache-2.0
#include "vfio/interrupts.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/syscall.h>
#include <time.h>

#include <cstring>
#include <memory>
#include <string_view>

#include "base/sys.h"
#include "base/text.h"
#include "host/client_limits.h"
#include "sync/passing_number.h"

namespace stagetwo::vfio {
namespace {

// The engine's own copy of a client's eventfd. Failure: EBADF, EINVAL (another file), EMFILE.
Result<Box<host::HeldFd>> copy_eventfd(int fd) {
  if ((ST_TRY(sys::fcntl(fd, F_GETFL)) & O_PATH) != 0) return refuse(EBADF);
  FixedString<48> link;
  link.append("/proc/thread-self/fd/").append_int(fd);
  char target[32];
  const long size =
      sys::call(SYS_readlinkat, AT_FDCWD, sys::arg(link.c_str()), sys::arg(target), sizeof(target));
  if (size <= 0 || std::string_view(target, static_cast<size_t>(size)) != "anon_inode:[eventfd]") {
    return refuse(EINVAL);
  }
  auto held = ST_TRY(make_box<host::HeldFd>("vfio.eventfd", host::HeldFd::Child::kHasIt));
  // In the kernel it needs no number: neither a low limit nor a full table is in its way.
  const sync::PassingNumber passing;
  const auto copy = [&]() -> Result<int> {
    return static_cast<int>(ST_TRY(sys::fcntl(fd, F_DUPFD_CLOEXEC)));
  };
  ST_TRY(held->hold(ST_TRY(host::open_beyond_limit(copy))));
  return held;
}

bool bool_at(const IrqSet& request, u32 i) {
  return (request.flags & IrqSet::kNoData) != 0 || request.data[i] != 0;
}

s32 eventfd_at(const IrqSet& request, u32 i) {
  s32 fd = -1;
  std::memcpy(&fd, request.data.data() + i * sizeof(fd), sizeof(fd));
  return fd;
}

}  // namespace

void Interrupts::ring(u32 vector) {
  if (vector < vectors_.size() && vectors_[vector].bell) ring(vectors_[vector]);
}

void Interrupts::ring(const Vector& vector) {
  const auto use = vector.bell->number().use();
  // Analogue: eventfd_signal, which does not wait: a counter that is full has rung. Nothing writes
  // an eventfd that blocks without waiting for room (it has no RWF_NOWAIT), so it is asked for.
  // Differs: who fills it between the question and the write has the ringing wait for his reader;
  // and it stays full where the kernel's signal makes it overflow (EPOLLERR).
  pollfd room{use.get(), POLLOUT, 0};
  timespec now{};
  const long asked = sys::call(SYS_ppoll, sys::arg(&room), 1, sys::arg(&now), 0, 0);
  if (asked >= 0 && (room.revents & POLLOUT) == 0) return;
  const u64 one = 1;
  static_cast<void>(sys::write(use.get(), &one, sizeof(one)));
}

void Interrupts::ring_line() {
  if (index_ == kIntxIndex) {
    if (masked_ || line_off_) return;
    masked_ = true;
    if (resample_) resample_->arm();
  }
  ring(0);
}

void Interrupts::raise(u32 vector) {
  const sync::MutexGuard guard(lock_);
  if (index_ == kMsiIndex || index_ == kMsixIndex) ring(vector);
}

void Interrupts::after_fork_child() {
  std::construct_at(&lock_, sync::Rank::kInterrupts);
}

void Interrupts::ask_for_release() {
  const sync::MutexGuard guard(lock_);
  if (own_[1].bell) ring(own_[1]);
}

void Interrupts::set_line(bool up, bool off) {
  const sync::MutexGuard guard(lock_);
  line_off_ = off;
  const bool rises = up && !line_;
  line_ = up;
  if (rises || (up && index_ == kIntxIndex)) ring_line();
}

void Interrupts::drop_all(Going& going) {
  vectors_.clear();
  index_ = kNone;
  masked_ = false;
  going = std::move(resample_);
}

// Vectors get their eventfds, or lose them (-1).
Result<void> Interrupts::take(const Shape& shape, const IrqSet& request, Going& going) {
  Vec<Vector> fresh{"vfio.vectors"};
  ST_TRY(fresh.resize(request.count));
  for (u32 i = 0; i < request.count; ++i) {
    const s32 fd = eventfd_at(request, i);
    if (fd >= 0) fresh[i].bell = ST_TRY(copy_eventfd(fd));
  }
  if (vectors_.size() != shape.vectors[request.index]) {
    ST_TRY(vectors_.resize(shape.vectors[request.index]));
  }
  bool any = shape.function;
  for (u32 i = 0; i < request.count; ++i) vectors_[request.start + i] = std::move(fresh[i]);
  for (const Vector& vector : vectors_) any = any || vector.bell;
  if (!any) {
    drop_all(going);
    return {};
  }
  if (index_ != request.index) masked_ = false;
  index_ = request.index;
  if (index_ == kIntxIndex && line_) ring_line();
  return {};
}

Result<void> Interrupts::trigger(const Shape& shape, const IrqSet& request, Going& going) {
  const bool in_use = index_ == request.index;
  const bool without_data = (request.flags & IrqSet::kNoData) != 0;
  if (in_use && request.count == 0 && without_data) {
    drop_all(going);
    return {};
  }
  if (!in_use && index_ != kNone) return refuse(EINVAL);
  if (request.count == 0) {
    if (!shape.function || request.index == kIntxIndex) return refuse(EINVAL);
    if (in_use) return {};  // of messages, none
    if ((request.flags & IrqSet::kEventfds) == 0) return refuse(EINVAL);
    if (request.start == 0) return refuse(ERANGE);  // as many vectors are asked for
  }
  if ((request.flags & IrqSet::kEventfds) != 0) return take(shape, request, going);
  if (!in_use) return refuse(EINVAL);
  // The client's own ring: a function's line is neither asked nor masked, mtty's is.
  for (u32 i = 0; i < request.count; ++i) {
    if (!bool_at(request, i)) continue;
    const bool line = !shape.function && index_ == kIntxIndex;
    if (line && masked_) continue;
    if (line) masked_ = true;
    ring(request.start + i);
  }
  return {};
}

void Interrupts::unmask() {
  masked_ = false;
  if (line_) ring_line();
}

void Interrupts::resampled(void* self) {
  auto& interrupts = *static_cast<Interrupts*>(self);
  const sync::MutexGuard guard(interrupts.lock_);
  if (interrupts.index_ == kIntxIndex && interrupts.resample_) interrupts.unmask();
}

Result<void> Interrupts::unmask_by(s32 fd, Going& going) {
  if (fd < 0) {
    going = std::move(resample_);
    return {};
  }
  auto bell = ST_TRY(copy_eventfd(fd));
  if (resample_) return refuse(EBUSY);
  auto made = ST_TRY(make_box<Resample>("vfio.resample", std::move(bell), resampled, this));
  ST_TRY(made->start());
  resample_ = std::move(made);
  if (masked_) resample_->arm(false);  // a ring that is waiting counts
  return {};
}

// Of INTx.
Result<void> Interrupts::mask(const IrqSet& request, Going& going) {
  if (index_ != kIntxIndex || request.start != 0 || request.count != 1) return refuse(EINVAL);
  const bool masks = (request.flags & IrqSet::kMask) != 0;
  if ((request.flags & IrqSet::kEventfds) != 0) {
    if (masks) return refuse(ENOTTY);
    return unmask_by(eventfd_at(request, 0), going);
  }
  if (!bool_at(request, 0)) return {};
  if (!masks) {
    unmask();
  } else if (!masked_) {
    masked_ = true;
    if (resample_) resample_->arm();
  }
  return {};
}

// As vfio_pci_intrs.c: set, taken out, or rung to see that it does.
Result<void> Interrupts::set_own(Vector* own, const IrqSet& request) {
  if ((request.flags & IrqSet::kAction) != IrqSet::kTrigger) return refuse(ENOTTY);
  if (request.start != 0 || request.count > 1) return refuse(EINVAL);
  if ((request.flags & IrqSet::kNoData) != 0 && request.count == 0 && own->bell) {
    own->bell.reset();
    return {};
  }
  if (request.count == 0) return refuse(EINVAL);
  if ((request.flags & IrqSet::kEventfds) != 0) {
    const s32 fd = eventfd_at(request, 0);
    if (fd >= -1) own->bell = fd >= 0 ? ST_TRY(copy_eventfd(fd)) : Box<host::HeldFd>();
    return {};
  }
  if ((request.flags & IrqSet::kNoData) != 0 && !own->bell) return refuse(EINVAL);
  if (own->bell && bool_at(request, 0)) ring(*own);
  return {};
}

Result<void> Interrupts::set(const Shape& shape, const IrqSet& request) {
  Going going;  // ends behind the lock
  const sync::MutexGuard guard(lock_);
  if (shape.vectors[request.index] == 0) return refuse(ENOTTY);
  if (request.index >= kErrorIndex) return set_own(&own_[request.index - kErrorIndex], request);
  switch (request.flags & IrqSet::kAction) {
    case IrqSet::kTrigger:
      return trigger(shape, request, going);
    case IrqSet::kMask:
    case IrqSet::kUnmask:
      if (request.index != kIntxIndex) return refuse(ENOTTY);
      return mask(request, going);
    default:
      return refuse(ENOTTY);
  }
}

}  // namespace stagetwo::vfio

// SPDX-License-Identifier: Apache-2.0
#include "vfio/resample.h"

#include <poll.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>

#include "base/process_page.h"
#include "base/sys.h"
#include "host/worker.h"

namespace stagetwo::vfio {

bool Resample::is_mine() const {
  return process_ == process_stamp() && runs_.load(sync::kAcquire) != 0;
}

Result<void> Resample::start() {
  process_ = process_stamp();
  order_.store(kRest, sync::kRelaxed);
  runs_.store(1, sync::kRelease);
  if (host::start_own_thread([](void* self) { static_cast<Resample*>(self)->serve(); }, this)) {
    return {};
  }
  runs_.store(0, sync::kRelaxed);
  return refuse(ENOMEM);
}

void Resample::give(Order order) {
  order_.store(order);
  sync::futex_wake(order_, 1);
}

void Resample::arm(bool fresh) {
  if (!is_mine() && !start()) return;
  if (fresh) static_cast<void>(take());
  give(kListen);
}

void Resample::stop() {
  if (!is_mine()) return;
  give(kStop);
  while (runs_.load(sync::kAcquire) != 0) sync::futex_wait(runs_, 1);
}

// Has it been written to? An eventfd that blocks is asked all the same: another reader of the
// client's may have been faster.
bool Resample::take() {
  const auto use = bell_->number().use();
  u64 count = 0;
  const iovec into{&count, sizeof(count)};
  return sys::call(SYS_preadv2, use.get(), sys::arg(&into), 1, -1, -1, RWF_NOWAIT) > 0;
}

bool Resample::wait() {
  const auto use = bell_->number().use();
  pollfd file{use.get(), POLLIN, 0};
  const timespec slice{0, 2'000'000};
  return sys::call(SYS_ppoll, sys::arg(&file), 1, sys::arg(&slice), 0, 0) > 0;
}

void Resample::serve() {
  for (;;) {
    u32 order = order_.load();
    if (order == kStop) break;
    if (order == kRest) {
      sync::futex_wait(order_, kRest);
    } else if (wait() && take() && order_.compare_exchange(order, kRest)) {
      tell_(whom_);
    }
  }
  // It may be gone with the store: only the word's address is used behind it.
  sync::Atomic<u32>& runs = runs_;
  runs.store(0, sync::kRelease);
  sync::futex_wake(runs, INT32_MAX);
}

}  // namespace stagetwo::vfio

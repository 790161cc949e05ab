// SPDX-License-Identifier: Apache-2.0
#include "vfio/device_thread.h"

#include "base/process_page.h"
#include "host/worker.h"

namespace stagetwo::vfio {
namespace {

constexpr u64 kSpinNs = 20'000;
constexpr u64 kNapNs = 50'000'000;  // a wake by another process does not come here

}  // namespace

bool DeviceThread::is_mine() const {
  return process_ == process_stamp() && state_.load(sync::kAcquire) != kNone;
}

bool DeviceThread::start() {
  if (is_mine()) return true;
  if (process_ != 0 && process_ != process_stamp()) work_.in_child();
  process_ = process_stamp();
  row_ = nullptr;
  order_.store(kRun, sync::kRelaxed);
  state_.store(kRuns, sync::kRelease);
  const auto run = [](void* self) { static_cast<DeviceThread*>(self)->serve(); };
  if (host::start_own_thread(run, this)) return true;
  state_.store(kNone, sync::kRelease);
  return false;
}

void DeviceThread::wake() {
  bell_.fetch_add(1);
  sync::futex_wake(bell_, 1);
}

void DeviceThread::give(Order order) {
  order_.store(order);
  orders_.fetch_add(1);
  sync::futex_wake(orders_, 1);
  if (order != kRun) wake();
}

void DeviceThread::pause() {
  if (is_mine()) {
    give(kPause);
    while (state_.load() == kRuns) sync::futex_wait(state_, kRuns);
  }
  if (halt_ != nullptr) halt_->hold();  // the other processes'
}

void DeviceThread::resume() {
  if (halt_ != nullptr) halt_->release();
  if (is_mine()) give(kRun);
}

void DeviceThread::stop() {
  if (!is_mine()) return;
  give(kStop);
  for (u32 now; (now = state_.load()) != kNone;) sync::futex_wait(state_, now);
}

void DeviceThread::serve() {
  work_.begins();
  work_.wakes_up();
  for (;;) {
    const u32 order = order_.load();
    if (order == kStop) break;
    if (order == kPause) {
      rest();
      work_.wakes_up();
    } else if (!turn()) {
      idle();
    }
  }
  if (row_ != nullptr) row_->thread.store(0);
  // The model may be gone with the store: only its address is used behind it.
  sync::Atomic<u32>& state = state_;
  state.store(kNone);
  sync::futex_wake(state, INT32_MAX);
}

// False: there was nothing to do.
bool DeviceThread::turn() {
  if (halt_ == nullptr) return work_.work();
  if (row_ == nullptr) row_ = halt_->enter_row();
  if (row_ == nullptr) return false;
  row_->inside.store(static_cast<u32>(sys::current_tid()));
  const bool held = halt_->by.load() != 0;
  const bool worked = held || work_.work();
  row_->inside.store(0);
  if (held) halt_->give_way();
  return worked;
}

// Another pause may follow a resume before this thread has seen either: it looks at the count.
void DeviceThread::rest() {
  for (;;) {
    const u32 seen = orders_.load();
    if (order_.load() != kPause) break;
    state_.store(kPaused);
    sync::futex_wake(state_, INT32_MAX);
    sync::futex_wait(orders_, seen);
  }
  state_.store(kRuns);
}

void DeviceThread::idle() {
  const u32 seen = bell_.load(sync::kAcquire);
  for (const u64 until = sync::now_ns() + kSpinNs; sync::now_ns() < until;) {
    if (cancelled() || turn()) return;
    sync::yield_thread();
  }
  work_.falls_asleep();
  // What was said is seen before what is looked for: a read-modify-write orders the two.
  bell_.fetch_add(0);
  if (!cancelled() && !turn()) sync::futex_wait(bell_, seen, kNapNs);
  if (!cancelled()) work_.wakes_up();
}

}  // namespace stagetwo::vfio

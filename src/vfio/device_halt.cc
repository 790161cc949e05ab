// SPDX-License-Identifier: Apache-2.0
#include "vfio/device_halt.h"

namespace stagetwo::vfio {
namespace {

constexpr u64 kNapNs = 100'000;
constexpr unsigned kSpins = 100;

void nap(unsigned turn) {
  if (turn < kSpins) return sync::yield_thread();
  sync::Atomic<u32> nobody_wakes{0};
  sync::futex_wait(nobody_wakes, 0, kNapNs);
}

// Is the thread inside, and alive?
bool is_inside(DeviceHalt::Row& row) {
  u32 thread = row.inside.load();
  if (thread == 0) return false;
  if (!sync::is_thread_gone(thread)) return true;
  row.inside.compare_exchange(thread, 0);
  return false;
}

}  // namespace

void DeviceHalt::hold() {
  by.store(static_cast<u32>(sys::current_tid()));
  for (Row& row : rows) {
    for (unsigned turn = 0; is_inside(row); ++turn) nap(turn);
  }
}

DeviceHalt::Row* DeviceHalt::enter_row() {
  for (Row& row : rows) {
    u32 thread = row.thread.load();
    if (thread != 0 && !sync::is_thread_gone(thread)) continue;
    if (row.thread.compare_exchange(thread, static_cast<u32>(sys::current_tid()))) return &row;
  }
  return nullptr;
}

bool DeviceHalt::others_inside(const Row* own) {
  for (Row& row : rows) {
    if (&row != own && is_inside(row)) return true;
  }
  return false;
}

void DeviceHalt::give_way() {
  u32 who = by.load();
  if (who == 0) return;
  if (sync::is_thread_gone(who)) {
    by.compare_exchange(who, 0);
  } else {
    nap(kSpins);
  }
}

}  // namespace stagetwo::vfio

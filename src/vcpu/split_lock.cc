// SPDX-License-Identifier: Apache-2.0
#include "vcpu/operand.h"

#include "sync/atomic.h"

namespace stagetwo::vcpu {
namespace {

constinit sync::Atomic<u32> split_owner{0};

}  // namespace

bool try_lock_split() {
  u32 free = 0;
  return split_owner.compare_exchange(free, 1, sync::kAcquire);
}
void unlock_split() {
  split_owner.store(0, sync::kRelease);
}

}  // namespace stagetwo::vcpu

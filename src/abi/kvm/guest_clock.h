// SPDX-License-Identifier: Apache-2.0
#pragma once

// The VM's clock in nanoseconds (KVM_GET_CLOCK, KVM_SET_CLOCK): the host's monotonic clock plus an
// offset, so that it starts at 0 with the VM. Linux analogue: kvmclock with the master clock on.
// Locking: one atomic; set() is called under the VM's lock.

#include "abi/kvm/uapi.h"
#include "base/result.h"
#include "sync/atomic.h"

namespace stagetwo::abi_kvm {

class GuestClock {
 public:
  GuestClock();
  [[nodiscard]] kvm_clock_data get() const;
  // Failure: EINVAL for an unknown flag.
  [[nodiscard]] Result<void> set(const kvm_clock_data& data);
  [[nodiscard]] u64 now_ns() const;

 private:
  sync::Atomic<u64> offset_{0};  // added to the host's clock; wraps
};

}  // namespace stagetwo::abi_kvm

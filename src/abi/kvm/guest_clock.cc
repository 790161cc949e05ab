// SPDX-License-Identifier: Apache-2.0
#include "abi/kvm/guest_clock.h"

#include "abi/kvm/capabilities.h"
#include "abi/kvm/host_cpu.h"
#include "base/sys.h"

namespace stagetwo::abi_kvm {

GuestClock::GuestClock() {
  offset_.store(u64{0} - sys::monotonic_ns());
}

u64 GuestClock::now_ns() const {
  return sys::monotonic_ns() + offset_.load();
}

kvm_clock_data GuestClock::get() const {
  kvm_clock_data data{};
  data.host_tsc = host_tsc();
  data.clock = now_ns();
  data.realtime = realtime_ns();
  data.flags = KVM_CLOCK_TSC_STABLE | KVM_CLOCK_REALTIME | KVM_CLOCK_HOST_TSC;
  return data;
}

Result<void> GuestClock::set(const kvm_clock_data& data) {
  if ((data.flags & ~static_cast<u32>(kClockFlags)) != 0) return refuse(EINVAL);
  u64 clock = data.clock;
  if ((data.flags & KVM_CLOCK_REALTIME) != 0) {
    // Time that passed since the value was taken; never backwards.
    const u64 now = realtime_ns();
    if (now > data.realtime) clock += now - data.realtime;
  }
  offset_.store(clock - sys::monotonic_ns());
  return {};
}

}  // namespace stagetwo::abi_kvm

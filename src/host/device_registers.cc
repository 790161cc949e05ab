// SPDX-License-Identifier: Apache-2.0
#include "host/device_registers.h"

#include "sync/atomic.h"

namespace stagetwo::host {
namespace {

constinit sync::Atomic<const DeviceRegisters*> owner{nullptr};

}  // namespace

void set_device_registers(const DeviceRegisters& registers) {
  owner.store(&registers, sync::kRelease);
}

u64 device_bytes_at(Hva at) {
  const DeviceRegisters* const known = owner.load(sync::kAcquire);
  return known != nullptr ? known->bytes_at(at) : 0;
}

size_t put_to_device(Hva at, std::span<const u8> bytes) {
  const DeviceRegisters* const known = owner.load(sync::kAcquire);
  return known != nullptr ? known->put(at, bytes) : 0;
}

}  // namespace stagetwo::host

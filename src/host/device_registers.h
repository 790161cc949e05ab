// SPDX-License-Identifier: Apache-2.0
#pragma once

// Memory of the client's that is a device's registers: it may be read as any, and a store to it is
// the device's to hear of (decision 0046). Who stores on behalf of the client or of a guest (KVM's
// processors, KVM itself) asks here what the host has refused.
//
// Analogue: pages of VM_IO that a driver's mmap has put there: a processor's store goes to the bus.
//
// Locking: none here; below what is asked there are leaf locks, and in put() the device's.
// Lifetime: one for the process, for ever.

#include <span>

#include "addr/addr.h"
#include "base/types.h"

namespace stagetwo::host {

struct DeviceRegisters {
  // How many bytes from `at` on are such memory that the client may store to.
  u64 (*bytes_at)(Hva at);
  // Stores them, once. How many: as far as the registers go; none where the device has gone.
  size_t (*put)(Hva at, std::span<const u8> bytes);
};
void set_device_registers(const DeviceRegisters& registers);

// 0: it is none. Context: any; a load or two where no device is mapped.
[[nodiscard]] u64 device_bytes_at(Hva at);
// Context: outside every read section, no ack line RUNNING: the device may do what it was told at
// once, in memory of the client's.
size_t put_to_device(Hva at, std::span<const u8> bytes);

}  // namespace stagetwo::host

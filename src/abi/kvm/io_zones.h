// SPDX-License-Identifier: Apache-2.0
#pragma once

// Writes to device addresses that need no exit: coalescing zones, and the ring they fill.
//
// Linux analogue: virt/kvm/coalesced_mmio.c. The ring lies in page KVM_COALESCED_MMIO_PAGE_OFFSET
// of the vCPU descriptors of the VM; this room writes it, so uapi.h is its declaration. Invariants:
// I1  an entry is complete before `last` names the next one (release).
//             I2  one slot stays free, so that full and empty differ.
// Locking: all under one leaf lock (rank: kCoalesced). The client may write the ring at any time:
// every word of it is read once.

#include "abi/kvm/uapi.h"
#include "base/result.h"
#include "base/vec.h"
#include "sync/atomic.h"
#include "sync/mutex.h"

namespace stagetwo::abi_kvm {

class IoZones {
 public:
  IoZones() = default;
  IoZones(const IoZones&) = delete;
  IoZones& operator=(const IoZones&) = delete;

  // Failure: EINVAL (pio neither 0 nor 1), ENOSPC (as many devices as a bus takes), ENOMEM.
  [[nodiscard]] Result<void> add(const kvm_coalesced_mmio_zone& zone);
  // Every zone of that bus that contains the given one goes. Failure: EINVAL.
  [[nodiscard]] Result<void> remove(const kvm_coalesced_mmio_zone& zone);

  // True: the write is in the ring, no exit. `ring` may be null: no vCPU has one yet.
  [[nodiscard]] bool write(kvm_coalesced_mmio_ring* ring, bool pio, u64 address, const void* data,
                           u32 size);

 private:
  static constexpr size_t kMaxDevices = 1000;  // the kernel's NR_IOBUS_DEVS

  sync::Atomic<u32> count_{0};  // a hint for write(); relaxed
  sync::Mutex lock_{sync::Rank::kCoalesced};
  Vec<kvm_coalesced_mmio_zone> zones_ TA_GUARDED(lock_){"abi.io_zones"};
};

}  // namespace stagetwo::abi_kvm

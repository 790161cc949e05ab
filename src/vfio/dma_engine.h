// SPDX-License-Identifier: Apache-2.0
#pragma once

// A copy accelerator: moves, fills, compares and sums memory by descriptors, in a thread of its
// own. A device is one work queue (vfio/queue_device.h); its requests carry the PASID its client's
// container gave it, whatever a descriptor says. No driver takes it for the real one: the identity
// is ours.
//
// I1  Memory of the client's is reached through its Dma only: lists and completion records, too.
// I2  Where no completion record can be written, kSoftwareError says so, to this client.
// I3  After a reset or an abort nothing that was submitted before reaches memory.
// Types: "1" reaches what its container maps; "sva" the addresses of the process that opened it, by
// page requests where a page is absent.

#include "vfio/dsa_format.h"
#include "vfio/mdev.h"

namespace stagetwo::vfio {

inline constexpr u32 kEngineVectors = 2;  // 0: errors and commands; 1: completions
inline constexpr u32 kEngineInstances = 32;

extern const Parent kDmaEngine;

}  // namespace stagetwo::vfio

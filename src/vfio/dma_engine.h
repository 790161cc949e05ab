// SPDX-License-Identifier: Apache-2.0
#pragma once

// A copy accelerator: moves, fills, compares and sums memory by descriptors, in a thread of its
// own. A device is one work queue; its requests carry the PASID its client's container gave it,
// whatever a descriptor says.
//
//   region          what
//   0  registers    engine_register below
//   2  portal       64 slots of 64 bytes, for as many threads of a client: a descriptor is
//                   submitted when the last bytes of its slot are written
//   4  ring         plain memory: RingHead, and descriptors from kRingAt on. The client writes
//                   them and moves the tail; where `asleep` is set it writes kDoorbell, too.
//
// Source: descriptors, completion records, their codes and the registers with a counterpart are
// those of Intel's Data Streaming Accelerator (architecture specification 341204; linux/idxd.h has
// the names). The ring, kDoorbell, kPasid and `fault_info` are ours, as is the identity: no driver
// takes it for the real one.
// I1  Memory of the client's is reached through its Dma only: lists and completion records, too.
// I2  Where no completion record can be written, kSoftwareError says so, to this client.
// I3  After a reset or an abort nothing that was submitted before reaches memory.
// Types: "1" reaches what its container maps; "sva" the addresses of the process that opened it, by
// page requests where a page is absent.

#include "vfio/mdev.h"

namespace stagetwo::vfio {

struct Descriptor {
  u32 pasid;         // 20 bits, and the privilege in bit 31: both ignored
  u32 flags_opcode;  // 24 bits, 8 bits
  u64 completion;
  u64 source;  // or a pattern, or a batch's list
  u64 destination;
  u32 size;  // or how many descriptors
  u16 interrupt;
  u16 reserved;
  u64 operation[3];
  [[nodiscard]] u32 flags() const { return flags_opcode & 0xffffff; }
  [[nodiscard]] u8 opcode() const { return static_cast<u8>(flags_opcode >> 24); }
};
struct Completion {
  u8 status, result, fault_info, reserved;  // fault_info: the IOMMU's reason (iommu/vtd_layout.h)
  u32 bytes;                                // or descriptors, of a batch
  u64 fault_address;
  u64 special[2];  // the sum; of kBadFlags which
};
struct RingHead {
  u32 tail, head, asleep, reserved[13];
};
static_assert(sizeof(Descriptor) == 64 && sizeof(Completion) == 32 && sizeof(RingHead) == 64);
inline constexpr u64 kRingAt = 4096, kRingSlots = 1024, kRingBytes = 128 * 1024;

enum class Opcode : u8 { kNoop, kBatch, kDrain, kMove, kFill, kCompare, kSum = 0x10 };
enum Flags : u32 {
  kFence = 1,
  kBlockOnFault = 2,
  kCompletionValid = 4,
  kRequestCompletion = 8,
  kRequestInterrupt = 0x10,
  kCacheControl = 0x100,
};
enum class Status : u8 {
  kNone,
  kSuccess,
  kPageFault = 3,
  kPageRefused,
  kBatchFailed,
  kBatchFault,
  kBadOpcode = 0x10,
  kBadFlags,
  kReservedSet,
  kBadSize,
  kBadCount,
  kOverlap = 0x16,
  kListMisaligned = 0x18,
  kBadInterrupt,
  kCompletionFault,
  kCompletionMisaligned,
  kQueueFull = 0x3f,  // ours: dropped, the portal's queue was full
};
inline constexpr u8 kFaultWasWrite = 0x80;  // in a completion's status

namespace engine_register {
inline constexpr u64 kVersion = 0x00, kGenCap = 0x10, kQueueCap = 0x20, kOpCap = 0x40;
inline constexpr u64 kGenStatus = 0x90, kIntCause = 0x98, kCommand = 0xa0, kCommandStatus = 0xa8;
inline constexpr u64 kCommandCap = 0xb0, kSoftwareError = 0xc0;
inline constexpr u64 kDoorbell = 0x800;
// The requests' PASID. Written: one that the client attached by its iommufd; 0: none.
inline constexpr u64 kPasid = 0x808;
}  // namespace engine_register

inline constexpr u32 kEngineVectors = 2;  // 0: errors and commands; 1: completions
inline constexpr u32 kEngineInstances = 32;

extern const Parent kDmaEngine;

}  // namespace stagetwo::vfio

// SPDX-License-Identifier: Apache-2.0
#pragma once

// What a client and the dma-engine say to each other: descriptors, completion records, their codes,
// and the registers. Source: Intel's Data Streaming Accelerator (architecture specification
// 341204); what linux/idxd.h has of it is the same here (tests/unit/vfio/dsa_format_test.cc). Ours
// are kNotBound, kQueueFull and `fault_info`.

#include <array>
#include <bit>

#include "base/types.h"

namespace stagetwo::vfio {

enum class Opcode : u8 { kNoop, kBatch, kDrain, kMove, kFill, kCompare, kSum = 0x10 };
struct Descriptor {
  u32 pasid;         // 20 bits, and the privilege in bit 31: both ignored
  u32 flags_opcode;  // 24 bits, 8 bits
  u64 completion;
  u64 source;  // or a pattern, or a batch's list
  u64 destination;
  u32 size;  // or how many descriptors
  u16 interrupt;
  u16 reserved;
  u64 operation[3];  // of kSum the seed, 32 bits; else reserved
  [[nodiscard]] u32 flags() const { return flags_opcode & 0xffffff; }
  [[nodiscard]] u8 opcode() const { return static_cast<u8>(flags_opcode >> 24); }
  [[nodiscard]] bool has_reserved() const {
    const bool seeded = opcode() == static_cast<u8>(Opcode::kSum);
    const u64 first = seeded ? operation[0] >> 32 : operation[0];
    return (pasid & 0x7ff00000) != 0 || (reserved | first | operation[1] | operation[2]) != 0;
  }
};
struct Completion {
  u8 status, result, fault_info, reserved;  // fault_info: the IOMMU's reason (iommu/vtd_layout.h)
  u32 bytes;                                // or descriptors, of a batch
  u64 fault_address;
  u64 special[2];  // the sum; of kBadFlags which
  [[nodiscard]] std::array<u64, 4> words() const {
    return std::bit_cast<std::array<u64, 4>>(*this);
  }
};
static_assert(sizeof(Descriptor) == 64 && sizeof(Completion) == 32);

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
  kNotBound = 0x3e,   // ours: dropped, its process's addresses cannot be bound; its address: errno
  kQueueFull = 0x3f,  // ours: dropped, the portal's queue was full
};
inline constexpr u8 kFaultWasWrite = 0x80;  // in a completion's status

namespace engine_register {
inline constexpr u64 kVersion = 0x00, kGenCap = 0x10, kQueueCap = 0x20, kOpCap = 0x40;
inline constexpr u64 kGenStatus = 0x90, kIntCause = 0x98, kCommand = 0xa0, kCommandStatus = 0xa8;
inline constexpr u64 kCommandCap = 0xb0, kSoftwareError = 0xc0;
}  // namespace engine_register

}  // namespace stagetwo::vfio

// SPDX-License-Identifier: Apache-2.0
#pragma once

// `ioat`: a PCI function modelled on Intel's I/OAT of Skylake-E (8086:2021, version 3.3 of its
// registers): one channel that walks a chain of descriptors in its client's memory, copies and
// fills. Analogue: the hardware, as DPDK's drivers/dma/ioat and Linux' drivers/dma/ioat describe
// it. It is no mediated device: it stands on a PCI bus of our own (`stagetwo run
// --vfio-device=ioat`), with an IOMMU device of its own.
//
//   BAR0, 16 KiB     0x00 the function's registers, 0x80 the channel's, 0x2000 the MSI-X table
//   descriptor       64 bytes: size, control, source (or the pattern), destination, next
//
//   state       what the client does            what follows
//   HALTED      CHANERR is 0, writes CHAINADDR   ARMED: nothing is done, the chain begins there
//   ARMED       writes DMACOUNT                  ACTIVE: the device's thread does that many
//                                                descriptors of the chain, then IDLE
//   IDLE        writes a greater DMACOUNT        the rest is
//   any but HALTED, ARMED   CHANCMD suspends     SUSPENDED until CHAINADDR or a resume
//   any         CHANCMD resets                   HALTED
//
// I1  It moves memory through its domain only, and only as a bus master.
// I2  A descriptor that cannot be done halts the channel: CHANERR says why, CHANSTS names the last
//     one that was done, nothing behind it is begun.
// I3  A doorbell waits for nothing. Any other write of a register finds the thread between two
//     descriptors.
// Differs: XFERCAP is 64 KiB, the hardware's 1 MiB; no XOR, no PQ, no DCA; nothing that is read
// changes by it.

#include "vfio/mdev.h"

namespace stagetwo::vfio {

extern const Parent kIoat;

namespace ioat {

// Offsets in BAR0.
inline constexpr u64 kChanCnt = 0x00, kXferCap = 0x01, kGenCtrl = 0x02, kIntrCtrl = 0x03;
inline constexpr u64 kAttnStatus = 0x04, kCbVer = 0x08, kDmaCap = 0x10;
inline constexpr u64 kChanCtrl = 0x80, kChanCmd = 0x84, kDmaCount = 0x86, kChanSts = 0x88;
inline constexpr u64 kChainAddr = 0x90, kChanCmp = 0x98, kChanErr = 0xa8, kChanErrMask = 0xac;
inline constexpr u64 kBarBytes = 0x4000, kMsixTable = 0x2000, kMsixPending = 0x3000;
// Offsets in the configuration space, beyond the header.
inline constexpr u64 kConfigBytes = 4096, kUncorrectable = 0x148, kChanErrInt = 0x180;

inline constexpr u8 kVersion = 0x33, kXferCapLog2 = 16;
inline constexpr u64 kActive = 0, kIdle = 1, kSuspended = 2, kHalted = 3, kArmed = 4;
inline constexpr u8 kCmdReset = 0x20, kCmdResume = 0x10, kCmdSuspend = 0x04;
inline constexpr u16 kRearm = 0x01, kErrorCompletion = 0x04, kErrorInterrupt = 0x10;
inline constexpr u8 kMasterEnable = 0x01, kIntStatus = 0x02, kInterrupting = 0x04, kMsixEnable = 8;
inline constexpr u32 kCanFill = 0x40;

// CHANERR.
inline constexpr u32 kBadSource = 1, kBadDestination = 2, kBadNext = 8, kBadChain = 0x10;
inline constexpr u32 kReadError = 0x100, kBadControl = 0x400, kBadLength = 0x800;
inline constexpr u32 kBadCompletion = 0x1000;

struct Descriptor {
  u32 size, control;
  u64 source, destination, next;
  u64 unused[4];
};
static_assert(sizeof(Descriptor) == 64);
inline constexpr u32 kInterrupts = 1, kWritesCompletion = 8, kNull = 0x20, kOpShift = 24;
inline constexpr u32 kCopy = 0, kFill = 1;

}  // namespace ioat
}  // namespace stagetwo::vfio

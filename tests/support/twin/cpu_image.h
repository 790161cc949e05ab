// SPDX-License-Identifier: Apache-2.0
#pragma once

// What the three executors of a test sequence (the host's processor, the interpreter, a real
// /dev/kvm) start from and end with, and the address layout all of them share.
//
// The layout stands at fixed low virtual addresses so that it can be the same in the process and in
// a guest, is reachable with 32-bit displacements, and has nothing of the process within 2 GiB of
// it. Everything around the listed areas is inaccessible in all worlds.

#include <cstddef>
#include <cstdint>

#include "vcpu/state.h"

namespace stagetwo::twin {

using vcpu::u16;
using vcpu::u32;
using vcpu::u64;
using vcpu::u8;
using vcpu::Xmm;

struct CpuImage {
  u64 gpr[16] = {};
  u64 rip = 0;
  u64 rflags = 2;
  u64 fs_base = 0;
  u64 gs_base = 0;
  Xmm xmm[16];
  u32 mxcsr = 0x1f80;
};

// How a run ended. `vector` < 0: the end of the sequence was reached and image.rip is kExit.
struct CpuEnd {
  CpuImage image;
  int vector = -1;
  u64 error = 0;
  u64 cr2 = 0;
};

inline constexpr u64 kArena = 0x1000'0000, kArenaSize = 0x100'0000;
inline constexpr u64 kCode = kArena, kCodeSize = 0x10000;                   // read, execute
inline constexpr u64 kScratch = kArena + 0x10'0000, kScratchSize = 0x2000;  // read, write
inline constexpr u64 kStack = kArena + 0x20'0000, kStackSize = 0x1000;      // read, write
inline constexpr u64 kExit = 0x2a6c'7000;   // a sequence ends by a jump here
inline constexpr u64 kFrame = 0x35d9'b000;  // the process's own: registers on their way

}  // namespace stagetwo::twin

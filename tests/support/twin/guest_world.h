// SPDX-License-Identifier: Apache-2.0
#pragma once

// The memory of a guest that runs test sequences: page tables that map the areas of cpu_image.h to
// the same virtual addresses, and a minimal kernel whose exception handlers are one HLT each. It is
// one block of host memory, to be made slot 0 at guest-physical address 0 of the interpreter or of
// a real /dev/kvm.
//
// A run starts at kIret with an IRET frame prepared on the kernel's stack and ends at a handler's
// HLT, so that nothing but general registers, vector registers and memory changes between runs.
//
//   guest-physical   0x00000 page tables   0x08000 IDT   0x09000 GDT and TSS   0x0a000 handlers
//                    0x0c000 kernel stack  0x10000 code  0x20000 scratch       0x22000 stack
//   guest-virtual    the same + kKernelBase for the first five, supervisor only

#include <cstring>
#include <span>

#include "tests/support/twin/cpu_image.h"
#include "vcpu/vcpu.h"

namespace stagetwo::twin {

inline constexpr u64 kWorldBytes = 0x30000;

class GuestWorld {
 public:
  static constexpr u64 kKernelBase = 0x4000'0000;
  static constexpr u64 kTables = 0, kIdt = 0x8000, kGdt = 0x9000, kTss = 0x9100, kHandlers = 0xa000,
                       kKernelStack = 0xc000, kCodePa = 0x10000, kScratchPa = 0x20000,
                       kStackPa = 0x22000;
  static constexpr u64 kHandlerStride = 16;
  static constexpr u64 kIret = kKernelBase + 0xb000;  // one IRETQ
  static constexpr u16 kKernelCs = 0x08, kKernelSs = 0x10, kUserCs = 0x33, kUserSs = 0x2b,
                       kTssSelector = 0x40;  // the user's as under Linux: programs can read them

  // Pre: `memory` is kWorldBytes of zeroed, page-aligned memory that outlives this.
  explicit GuestWorld(u8* memory) : memory_(memory) { build(); }

  [[nodiscard]] std::span<u8> code() { return {memory_ + kCodePa, kCodeSize}; }
  [[nodiscard]] std::span<u8> scratch() { return {memory_ + kScratchPa, kScratchSize}; }
  [[nodiscard]] std::span<u8> stack() { return {memory_ + kStackPa, kStackSize}; }

  // Puts the IRET frame for `start`; returns the RSP to enter kIret with.
  u64 prepare(const CpuImage& start, unsigned cpl);
  // Pre: the guest halted in a handler with RIP `rip` behind the HLT. Fills everything of `end`
  // that the frame on the kernel's stack holds. False: `rip` is not in a handler.
  [[nodiscard]] bool read_end(u64 rip, CpuEnd* end) const;

  [[nodiscard]] static bool pushes_error(int vector);
  [[nodiscard]] static constexpr bool in_handlers(u64 rip) {
    return rip - (kKernelBase + kHandlers) < 256 * kHandlerStride;
  }

 private:
  void build();
  void build_tables();
  void build_kernel();
  void map(u64 virtual_page, u64 physical_page, u64 bits);
  template <typename T>
  void put(u64 at, T value) {
    std::memcpy(memory_ + at, &value, sizeof value);
  }
  template <typename T>
  [[nodiscard]] T get(u64 at) const {
    T value;
    std::memcpy(&value, memory_ + at, sizeof value);
    return value;
  }

  u8* memory_;
  u64 tables_used_ = 0x1000;
};

// The system registers of that kernel: flat segments, long mode, CPL 0. CR4.FSGSBASE is set if the
// guest's CPUID has it.
[[nodiscard]] vcpu::SystemState guest_world_system(std::span<const vcpu::CpuidEntry> cpuid);

}  // namespace stagetwo::twin

// SPDX-License-Identifier: Apache-2.0
#pragma once

// What the executor works on: the architectural state plus everything that is in flight. Internal
// to the room; outside it there is only Vcpu.
//
// How an instruction runs: an operation (ops.h) is called with RIP at the instruction and
// `next_rip` behind it. It changes registers only after its last memory access has succeeded, so
// that it can be started again. It answers with a Step; kFault has filled `fault`, kExit has filled
// `exit`.
//
// I1  lazy flags: RFLAGS is `s.rflags` without the six arithmetic bits plus `flags`.
// I2  `tlb` is the view that belongs to CPL, CR4.SMAP and EFLAGS.AC (update_view after each
//     change).
// I3  host addresses live in `view` arrays, in the block being run and in locals of one access;
//     leaving the section bumps `section`, and whoever holds a local compares it. A local lives
//     within a Hold, or in one restartable access (holding.h).
// Locking: none; the thread that runs the vCPU.

#include "addr/addr.h"
#include "base/result.h"
#include "sync/ack_line.h"
#include "vcpu/exit.h"
#include "vcpu/flags.h"
#include "vcpu/in_flight.h"
#include "vcpu/soft_tlb.h"
#include "vcpu/state.h"
#include "vcpu/vcpu.h"

namespace stagetwo::vcpu {

class BlockCache;

// Why the loop must look around before the next block. Own thread only.
enum Attention : u32 {
  kAttendEvents = 1,  // something may be deliverable: interrupt, NMI, window, shadow
  kAttendTrap = 2,    // TF or guest debugging: one instruction at a time
  kAttendMmio = 4,    // queued writes
  kAttendCode = 8,    // the running block was written to
  kAttendExit = 16,   // somebody may want the guest out
  kAttendRing = 32,   // the dirty ring was pushed soft full
};

// What cannot wait for the end of a block, or of a repeated instruction.
inline constexpr u32 kAttendNow = kAttendMmio | kAttendCode | kAttendRing;

struct Cpu {
  CpuState s;
  LazyFlags flags;
  u64 next_rip = 0;
  SoftTlb* tlb = nullptr;
  // Entries of *tlb: where the load and the store before hit (mem.h).
  TlbEntry* last_read = nullptr;
  TlbEntry* last_write = nullptr;
  u32 attention = 0;
  Mode mode = Mode::k16;
  u64 fs_base = 0, gs_base = 0;  // copies for address arithmetic in 64-bit mode: see update_view

  Fault fault;
  Step stop = Step::kFault;  // why the last memory access failed
  Exit exit;
  u64 section = 0;  // counts leavings of the read section
  // holding.h: how many say that host addresses are held; the loop alone says none.
  u32 holds = 1;
  u64* restart_section = &no_section;  // of the running thread, or nobody's
  u64 no_section = 0;

  // Code being run, as host addresses: stores into it end the block.
  u64 code_start = 0;
  u64 code_size = 0;

  Mmio mmio;
  PendingIo io;
  const Insn* insn = nullptr;  // under way, for exits that carry its bytes
  u8 insn_bytes[15] = {};
  u8 insn_size = 0;

  stage2::GuestMemory* memory = nullptr;
  stage2::MmuContext* mmu = nullptr;  // owned by the Vcpu that owns this
  stage2::DirtyRing* ring = nullptr;
  const VmPolicy* policy = nullptr;
  BlockCache* blocks = nullptr;
  SoftTlb* views = nullptr;  // kViewCount of them, made at first run
  u8* pio_page = nullptr;
  u8* own_pio_page = nullptr;
  u64 code_filter[64] = {};  // host pages with cached code, by hash: see block_cache.h
  u64 private_given_up = 0;  // of the memory, when code was last looked at: see remains.h
  bool large_pages = false;  // a translation larger than 4 KiB is cached

  CpuidEntry cpuid[kMaxCpuid];
  u32 cpuid_count = 0;
  Features features;
  u64 reserved_gpa = 0;  // physical address bits above MAXPHYADDR
  u64 cr4_reserved = 0;
  bool has_run = false;

  GuestDebug debug;
  bool window_wanted = false;
  bool trap_due = false;      // TF was set when the instruction started
  bool element_done = false;  // a repeated string instruction did one element and is not finished
  u64 instructions = 0;
  s64 tsc_offset = 0;
  u32 id = 0;
  bool boot_cpu = true;
  u32 poll_countdown = 0;

  u64 random = 0;

  sync::AckLine line;
  // exit_requested: set by request_exit (any thread, seq_cst with the line's kick), taken by run.
  sync::Atomic<u32> exit_requested{0};
  // The word of the guest's fences: only this thread's, for the order a read-modify-write has.
  sync::Atomic<u32> fence_word{0};

  // --- Flags and mode -------------------------------------------------------------------------
  [[nodiscard]] u64 rflags() const { return (s.rflags & ~rflags::kArithmetic) | flags.bits(); }
  void set_rflags(u64 value) {
    flags.set_exact(value);
    s.rflags = (value & ~rflags::kArithmetic) | 2;
  }
  [[nodiscard]] bool long64() const { return mode == Mode::k64; }
  [[nodiscard]] bool real_mode() const { return (s.sys.cr0 & cr0::kPe) == 0; }
  [[nodiscard]] bool v86() const { return (s.rflags & rflags::kVm) != 0; }
  [[nodiscard]] u8 cpl() const { return s.cpl(); }
  [[nodiscard]] u64 linear_rip() const {
    return long64() ? s.rip : (s.sys.seg[kSegCs].base + s.rip) & 0xffffffff;
  }
  // Recomputes mode and TLB view from the state. After each change of CS, SS.DPL, CR0, CR4, EFER,
  // AC.
  void update_view();
  void look_through(SoftTlb& view) {
    tlb = &view;
    last_read = last_write = view.entry;
  }
  // After TF, the shadow, pending events or guest debugging changed.
  void update_attention();
  void flush_tlb();
  void flush_tlb_page(u64 linear);

  // --- Ways an instruction ends ---------------------------------------------------------------
  Step raise(Vector vector) {
    fault = Fault{.vector = vector};
    return stop = Step::kFault;
  }
  Step raise(Vector vector, u32 error) {
    fault = Fault{.vector = vector, .has_error = true, .error = error};
    return stop = Step::kFault;
  }
  Step gp0() { return raise(kVectorGp, 0); }
  Step ud() { return raise(kVectorUd); }
  // The exit "emulation failure" with the instruction's bytes; #UD if the policy and CPL say so.
  Step emulation_failure();
};

}  // namespace stagetwo::vcpu

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
// change). I3  host addresses live in `view` arrays, in the block being run and in locals of one
// access;
//     leaving the section bumps `section`, and whoever holds a local compares it.
// Locking: none; the thread that runs the vCPU.

#include "addr/addr.h"
#include "base/result.h"
#include "sync/ack_line.h"
#include "vcpu/exit.h"
#include "vcpu/flags.h"
#include "vcpu/soft_tlb.h"
#include "vcpu/state.h"
#include "vcpu/vcpu.h"

namespace stagetwo::vcpu {

class BlockCache;

enum class Step : u8 {
  kNext,   // done; go on behind the instruction
  kJump,   // done; s.rip is where to go on
  kEnd,    // done; go on behind the instruction, but look at the world first
  kFault,  // `fault` is to be delivered; RIP is at the instruction
  kExit,   // `exit` is to be reported; RIP is where it belongs
  kAgain,  // RIP is at the instruction, which is to be started again (REP, retry)
};

enum Vector : u8 {
  kVectorDe = 0,
  kVectorDb = 1,
  kVectorNmi = 2,
  kVectorBp = 3,
  kVectorOf = 4,
  kVectorBr = 5,
  kVectorUd = 6,
  kVectorNm = 7,
  kVectorDf = 8,
  kVectorTs = 10,
  kVectorNp = 11,
  kVectorSs = 12,
  kVectorGp = 13,
  kVectorPf = 14,
  kVectorMf = 16,
  kVectorAc = 17,
  kVectorXm = 19,
};

struct Fault {
  u8 vector = 0;
  bool has_error = false;
  bool trap = false;  // RIP is already behind the instruction
  u32 error = 0;
  u64 payload = 0;  // CR2 of #PF, DR6 bits of #DB
};

// Accesses to memory nobody backs, while one instruction is under way. A read the client must
// answer ends the instruction; when it is started again the answers stand in `reads`. Writes are
// queued and reported once the instruction is done. Analogue: kvm_mmio_fragment.
struct Mmio {
  static constexpr unsigned kMax = 72;  // FXSAVE, page crossing included
  struct Fragment {
    Gpa gpa;
    u32 len;
    u64 data;
  };
  u64 reads[kMax];
  unsigned answered = 0;  // valid in `reads`
  unsigned position = 0;  // next one the instruction will ask for
  u32 waiting_len = 0;    // a read is with the client
  Fragment writes[kMax];
  unsigned queued = 0;
  unsigned reported = 0;

  [[nodiscard]] bool write_waits() const { return reported < queued; }
};

// What run() must finish before the guest goes on.
enum class Pending : u8 {
  kNone,
  kIn,
  kOut,
  kStringIn,
  kMmioRead,
  kMmioWrite,
  kHypercall,
  kRdMsr,
  kWrMsr
};

struct PendingIo {
  Pending kind = Pending::kNone;
  u8 size = 0;
  u8 length = 0;  // of the instruction
  u32 count = 0;  // string input: elements the client filled
  u32 used = 0;
  u64 linear_rip = 0;
};

// Why the loop must look around before the next block. Own thread only.
enum Attention : u32 {
  kAttendEvents = 1,  // something may be deliverable: interrupt, NMI, window, shadow
  kAttendTrap = 2,    // TF or guest debugging: one instruction at a time
  kAttendMmio = 4,    // queued writes
  kAttendCode = 8,    // the running block was written to
  kAttendExit = 16,   // somebody may want the guest out
};

inline constexpr unsigned kMaxCpuid = 256;

// What CPUID offers, as the executor asks for it. Before KVM_SET_CPUID2: nothing.
struct Features {
  bool bmi1 = false, lzcnt = false, popcnt = false, movbe = false, crc32 = false, adx = false;
  bool rdtscp = false, rdpid = false, monitor = false, invpcid = false, fsgsbase = false;
  bool rdrand = false, rdseed = false, xsave = false, nx = false, long_mode = false;
  bool syscall = false, cx16 = false, clflushopt = false, clwb = false, ffxsr = false;
  bool amd = false;
};

struct Cpu {
  CpuState s;
  LazyFlags flags;
  u64 next_rip = 0;
  SoftTlb* tlb = nullptr;
  u32 attention = 0;
  Mode mode = Mode::k16;
  u64 fs_base = 0, gs_base = 0;  // copies for address arithmetic in 64-bit mode: see update_view

  Fault fault;
  Step stop = Step::kFault;  // why the last memory access failed
  Exit exit;
  u64 section = 0;  // counts leavings of the read section

  // Code being run, as host addresses: stores into it end the block.
  u64 code_start = 0;
  u64 code_size = 0;

  Mmio mmio;
  PendingIo io;
  const Insn* insn = nullptr;  // under way, for exits that carry its bytes
  u8 insn_bytes[15] = {};
  u8 insn_size = 0;

  stage2::GuestMemory* memory = nullptr;
  const VmPolicy* policy = nullptr;
  BlockCache* blocks = nullptr;
  SoftTlb* views = nullptr;  // kViewCount of them, made at first run
  u8* pio_page = nullptr;
  u8* own_pio_page = nullptr;
  u64 code_filter[64] = {};  // host pages with cached code, by hash: see block_cache.h
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

// SPDX-License-Identifier: Apache-2.0
#pragma once

// What can be in flight while a guest instruction runs or waits for the client: how it ended, the
// fault it raised, memory accesses and port accesses the client must answer. Internal to the room.
// Linux analogue: struct x86_exception, kvm_mmio_fragment, kvm_pio_request.

#include "addr/addr.h"
#include "vcpu/state.h"

namespace stagetwo::vcpu {

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
  // #PF by an address bit that only the guest's CPUID reserves. Hardware with two-dimensional
  // paging does not fault there: the kernel emulates the instruction to have the fault raised.
  bool by_guest_width = false;
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

inline constexpr unsigned kMaxCpuid = 256;

// What CPUID offers, as the executor asks for it. Before KVM_SET_CPUID2: nothing.
struct Features {
  bool bmi1 = false, lzcnt = false, popcnt = false, movbe = false, crc32 = false, adx = false;
  bool rdtscp = false, rdpid = false, monitor = false, invpcid = false, fsgsbase = false;
  bool rdrand = false, rdseed = false, xsave = false, nx = false, long_mode = false;
  bool syscall = false, cx16 = false, clflushopt = false, clwb = false, ffxsr = false;
  bool amd = false;
};

}  // namespace stagetwo::vcpu

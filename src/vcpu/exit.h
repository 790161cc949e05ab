// SPDX-License-Identifier: Apache-2.0
#pragma once

// Why the guest stopped. One value travels from the executor to `abi`, which only copies fields
// into the client's run page: every number here is already the one the kernel would show.
// Linux analogue: the exit part of `struct kvm_run` plus the return value of KVM_RUN.
//
// `error` is 0 when KVM_RUN returns 0, else the positive errno it fails with. kernel file: x86.c.

#include "addr/addr.h"
#include "vcpu/state.h"

namespace stagetwo::vcpu {

enum class ExitKind : u8 {
  kUnknown,        // entered, nothing to report: exit_reason 0 (with error EFAULT: a host fault)
  kIo,             // exit_reason 2; OUT data is in the PIO page, IN data is expected there
  kDebug,          // 4
  kHypercall,      // 3
  kHlt,            // 5
  kMmio,           // 6
  kIrqWindow,      // 7
  kShutdown,       // 8
  kInterrupted,    // 10; error EINTR. immediate_exit: the run page keeps its old reason
  kSetTpr,         // 11
  kInternalError,  // 17
  kRdMsr,          // 29
  kWrMsr,          // 30
  kDirtyRingFull,  // 31
  kMemoryFault,    // 39; error EFAULT or EHWPOISON
};

struct IoExit {
  bool out;
  u8 size;
  u16 port;
  u32 count;
};

struct MmioExit {
  Gpa gpa;
  u8 data[8];
  u32 len;
  bool write;
};

// Calls of a guest that is or wants to be secure: POWER's numbers, H_SVM_* and UV_*
// (asm/hvcall.h, asm/ultravisor-api.h). No number of KVM's own is near them.
constexpr bool is_secure_call(u64 nr) {
  return nr % 4 == 0 && ((nr >= 0xEF00 && nr <= 0xEF14) || (nr >= 0xF104 && nr <= 0xF150));
}

struct HypercallExit {
  u64 nr;
  u64 args[6];
  u64 flags;  // bit 0: long mode
};

struct InternalErrorExit {
  u32 suberror;  // 1: emulation
  u32 ndata;
  u64 data[16];  // flags, then {u8 size, u8 bytes[15]} for suberror 1: laid out as in kvm_run
};

struct MemoryFaultExit {
  u64 flags;  // bit 3: private
  Gpa gpa;
  u64 size;
};

struct DebugExit {
  u32 exception;
  u64 pc;
  u64 dr6;
  u64 dr7;
};

struct MsrExit {
  u32 reason;
  u32 index;
  u64 data;
};

struct Exit {
  ExitKind kind = ExitKind::kUnknown;
  bool immediate = false;  // kInterrupted because the client asked: leave exit_reason alone
  int error = 0;
  union {
    IoExit io;
    MmioExit mmio;
    HypercallExit hypercall;
    InternalErrorExit internal;
    MemoryFaultExit memory_fault;
    DebugExit debug;
    MsrExit msr;
  };

  Exit() : internal{} {}
};

}  // namespace stagetwo::vcpu

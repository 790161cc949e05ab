// SPDX-License-Identifier: Apache-2.0
#pragma once

// The architectural state of one x86-64 processor: what KVM's get and set calls show of it, and
// what the executor works on. Plain data; the executor keeps RFLAGS exact at every point where
// somebody else can look (an exit, an exception).
//
// Linux analogue: `struct kvm_vcpu_arch` with `kvm_regs`, `kvm_sregs2` and the MSRs of x86.c.
// Reset values: KVM's (kernel file: arch/x86/kvm/x86.c, kvm_vcpu_reset, and vmx_vcpu_reset).
// Locking: none; owned by the thread inside the vCPU's mutex.

#include <cstdint>

#include "vcpu/xmm.h"

namespace stagetwo::vcpu {

using u8 = std::uint8_t;
using u16 = std::uint16_t;
using u32 = std::uint32_t;
using u64 = std::uint64_t;
using i8 = std::int8_t;
using i16 = std::int16_t;
using i32 = std::int32_t;
using i64 = std::int64_t;

// Numbers as the instruction encoding has them.
enum Gpr : u8 {
  kRax,
  kRcx,
  kRdx,
  kRbx,
  kRsp,
  kRbp,
  kRsi,
  kRdi,
  kR8,
  kR9,
  kR10,
  kR11,
  kR12,
  kR13,
  kR14,
  kR15
};
enum SegIndex : u8 { kSegEs, kSegCs, kSegSs, kSegDs, kSegFs, kSegGs };

// A segment register with its hidden part. `limit` is in bytes, already scaled.
struct Segment {
  u64 base = 0;
  u32 limit = 0xffff;
  u16 selector = 0;
  u8 type = 3;
  u8 present = 1;
  u8 dpl = 0;
  u8 db = 0;
  u8 s = 1;
  u8 l = 0;
  u8 g = 0;
  u8 avl = 0;
  u8 unusable = 0;
};

struct DescTable {
  u64 base = 0;
  u16 limit = 0xffff;
};

// Registers of the x87 unit: carried for KVM_GET_FPU and FXSAVE, never computed with.
struct X87 {
  u16 fcw = 0x37f;
  u16 fsw = 0;
  u8 ftw = 0;  // abridged, as FXSAVE stores it: one bit a register, 1 = valid
  u16 fop = 0;
  u64 fip = 0;
  u64 fdp = 0;
  u8 st[8][16] = {};
};

// What KVM_SET_SREGS replaces as one: see Vcpu::set_system_state.
struct SystemState {
  Segment seg[6];
  Segment tr;
  Segment ldt;
  DescTable gdt;
  DescTable idt;
  u64 cr0 = 0x60000010;
  u64 cr2 = 0;
  u64 cr3 = 0;
  u64 cr4 = 0;
  u64 cr8 = 0;
  u64 efer = 0;
  u64 apic_base = 0xfee00800;
  u64 pdptr[4] = {0, 0, 0, 0};
};

struct Msrs {
  u64 star = 0, lstar = 0, cstar = 0, sfmask = 0, kernel_gs_base = 0;
  u64 sysenter_cs = 0, sysenter_esp = 0, sysenter_eip = 0;
  u64 pat = 0x0007040600070406;
  u64 tsc_adjust = 0, tsc_aux = 0, tsc_deadline = 0;
  u64 misc_enable = 1;  // fast string
  u64 hwcr = 0;
  u64 spec_ctrl = 0;
  u64 arch_capabilities = 0;
  u64 platform_info = 0;
  u64 misc_features_enables = 0;
  u64 feature_control = 0;
  u64 perf_capabilities = 0;
  u64 ucode_rev = 0;
  u64 xss = 0;
  u64 smbase = 0x30000;
  u64 debugctl = 0;
  u64 power_ctl = 0;
  u64 mcg_cap = 32, mcg_status = 0, mcg_ctl = 0, mcg_ext_ctl = 0;  // banks at first: 32
  u64 mc_bank[32][4] = {};
  u64 mtrr_def_type = 0;
  u64 mtrr_var[16] = {};    // base, mask of 8 pairs
  u64 mtrr_fixed[11] = {};  // 64K, 16K x 2, 4K x 8
};

// Interruptibility: what STI and MOV/POP SS hold back for one instruction.
inline constexpr u8 kShadowMovSs = 1;
inline constexpr u8 kShadowSti = 2;

// Events on their way into the guest; Linux analogue: struct kvm_vcpu_events.
struct Events {
  bool exception_pending = false;   // recognised, nothing delivered yet
  bool exception_injected = false;  // delivery began and is to be restarted
  u8 exception_vector = 0;
  bool exception_has_error = false;
  u32 exception_error = 0;
  bool exception_has_payload = false;
  u64 exception_payload = 0;
  bool interrupt_injected = false;
  bool interrupt_soft = false;
  u8 interrupt_vector = 0;
  u8 shadow = 0;
  bool nmi_injected = false;
  u8 nmi_pending = 0;
  bool nmi_masked = false;
  bool triple_fault_pending = false;
};

enum class MpState : u32 {  // KVM's numbers
  kRunnable = 0,
  kUninitialized = 1,
  kInitReceived = 2,
  kHalted = 3,
  kSipiReceived = 4,
};

struct CpuState {
  u64 gpr[16] = {};
  u64 rip = 0xfff0;
  u64 rflags = 2;
  SystemState sys;
  u64 dr[4] = {0, 0, 0, 0};
  u64 dr6 = 0xffff0ff0;
  u64 dr7 = 0x400;
  u64 xcr0 = 1;
  Xmm xmm[16];
  u32 mxcsr = 0x1f80;
  X87 x87;
  Msrs msr;
  Events events;
  MpState mp_state = MpState::kRunnable;

  // Pre: nothing. Post: the state after power-on; `boot_cpu` sets APIC_BASE's BSP bit.
  void reset(bool boot_cpu);

  // The current privilege level: KVM reads SS.DPL as well.
  [[nodiscard]] u8 cpl() const { return sys.seg[kSegSs].dpl; }
  [[nodiscard]] bool long_mode() const { return (sys.efer & 0x400) != 0; }
  [[nodiscard]] bool protected_mode() const { return (sys.cr0 & 1) != 0; }
};

namespace rflags {
inline constexpr u64 kCf = 1, kPf = 4, kAf = 0x10, kZf = 0x40, kSf = 0x80, kTf = 0x100, kIf = 0x200,
                     kDf = 0x400, kOf = 0x800, kIopl = 0x3000, kNt = 0x4000, kRf = 0x10000,
                     kVm = 0x20000, kAc = 0x40000, kVif = 0x80000, kVip = 0x100000, kId = 0x200000;
inline constexpr u64 kArithmetic = kCf | kPf | kAf | kZf | kSf | kOf;
}  // namespace rflags

namespace cr0 {
inline constexpr u64 kPe = 1, kMp = 2, kEm = 4, kTs = 8, kEt = 0x10, kNe = 0x20, kWp = 0x10000,
                     kAm = 0x40000, kNw = 0x20000000, kCd = 0x40000000, kPg = 0x80000000;
}
namespace cr4 {
inline constexpr u64 kVme = 1, kPvi = 2, kTsd = 4, kDe = 8, kPse = 0x10, kPae = 0x20, kMce = 0x40,
                     kPge = 0x80, kPce = 0x100, kOsfxsr = 0x200, kOsxmmexcpt = 0x400, kUmip = 0x800,
                     kLa57 = 0x1000, kVmxe = 0x2000, kFsgsbase = 0x10000, kPcide = 0x20000,
                     kOsxsave = 0x40000, kSmep = 0x100000, kSmap = 0x200000, kPke = 0x400000;
}
namespace efer {
inline constexpr u64 kSce = 1, kLme = 0x100, kLma = 0x400, kNx = 0x800, kSvme = 0x1000,
                     kFfxsr = 0x4000;
}

}  // namespace stagetwo::vcpu

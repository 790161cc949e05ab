// SPDX-License-Identifier: Apache-2.0
//
// Model-specific registers. A guest's access to an unknown one is #GP or, if the VM asked for it,
// an exit (system_ops.cc); the host's is refused. Values a processor would refuse are refused.
// Linux analogue: kvm_set_msr_common, kvm_get_msr_common (kernel file: x86.c).
#include <algorithm>
#include <iterator>

#include "vcpu/control_regs.h"
#include "vcpu/mem.h"

namespace stagetwo::vcpu {
namespace {

enum Msr : u32 {
  kTsc = 0x10,
  kPlatformId = 0x17,
  kApicBase = 0x1b,
  kEblCrPowerOn = 0x2a,
  kFeatureControl = 0x3a,
  kTscAdjust = 0x3b,
  kSpecCtrl = 0x48,
  kPredCmd = 0x49,
  kUcodeRev = 0x8b,
  kSmbase = 0x9e,
  kPlatformInfo = 0xce,
  kMtrrCap = 0xfe,
  kArchCapabilities = 0x10a,
  kFlushCmd = 0x10b,
  kMiscFeatures = 0x140,
  kSysenterCs = 0x174,
  kSysenterEsp = 0x175,
  kSysenterEip = 0x176,
  kMcgCap = 0x179,
  kMcgStatus = 0x17a,
  kMcgCtl = 0x17b,
  kPerfStatus = 0x198,
  kMiscEnable = 0x1a0,
  kDebugCtl = 0x1d9,
  kPowerCtl = 0x1fc,
  kLastBranchFrom = 0x1db,
  kLastIntTo = 0x1de,
  kMtrrPhys = 0x200,
  kMtrrFix64 = 0x250,
  kMtrrFix16 = 0x258,
  kMtrrFix4 = 0x268,
  kPat = 0x277,
  kMtrrDefType = 0x2ff,
  kPerfCapabilities = 0x345,
  kMcBanks = 0x400,
  kTscDeadline = 0x6e0,
  kXss = 0xda0,
  kEfer = 0xc0000080,
  kStar = 0xc0000081,
  kLstar = 0xc0000082,
  kCstar = 0xc0000083,
  kSfmask = 0xc0000084,
  kFsBase = 0xc0000100,
  kGsBase = 0xc0000101,
  kKernelGsBase = 0xc0000102,
  kTscAux = 0xc0000103,
  kSyscfg = 0xc0010010,
  kHwcr = 0xc0010015,
  kTopMem = 0xc001001a,
  kNbCfg = 0xc001001f,
  kVmHsavePa = 0xc0010117,
  kBuCfg2 = 0xc001102a,
  kDcCfg = 0xc0011022,
};

constexpr u64 kMcgCtlPresent = u64{1} << 8;  // of MCG_CAP

// The plain ones: no check, no effect. Null: not plain.
u64* plain_msr(Cpu& c, u32 index) {
  Msrs& m = c.s.msr;
  switch (index) {
    case kStar:
      return &m.star;
    case kSfmask:
      return &m.sfmask;
    case kSysenterCs:
      return &m.sysenter_cs;
    case kTscAux:
      return &m.tsc_aux;
    case kTscDeadline:
      return &m.tsc_deadline;
    case kMiscEnable:
      return &m.misc_enable;
    case kSpecCtrl:
      return &m.spec_ctrl;
    case kMiscFeatures:
      return &m.misc_features_enables;
    case kFeatureControl:
      return &m.feature_control;
    case kXss:
      return &m.xss;
    case kMcgStatus:
      return &m.mcg_status;
    case kDebugCtl:
      return &m.debugctl;
    case kPowerCtl:
      return &m.power_ctl;
    default:
      return nullptr;
  }
}

u64* mtrr_msr(Cpu& c, u32 index) {
  Msrs& m = c.s.msr;
  if (index == kMtrrDefType) return &m.mtrr_def_type;
  if (index == kMtrrFix64) return &m.mtrr_fixed[0];
  if (index == kMtrrFix16 || index == kMtrrFix16 + 1) return &m.mtrr_fixed[1 + index - kMtrrFix16];
  if (index >= kMtrrFix4 && index < kMtrrFix4 + 8) return &m.mtrr_fixed[3 + index - kMtrrFix4];
  if (index >= kMtrrPhys && index < kMtrrPhys + 16) return &m.mtrr_var[index - kMtrrPhys];
  return nullptr;
}

// A register of a machine-check bank that this processor has. The count is the client's, at most
// as many as there is room for.
u64* bank_msr(Cpu& c, u32 index) {
  Msrs& m = c.s.msr;
  const u64 banks = std::min<u64>(m.mcg_cap & 0xff, std::size(m.mc_bank));
  if (index < kMcBanks || index >= kMcBanks + 4 * banks) return nullptr;
  return &m.mc_bank[(index - kMcBanks) / 4][index & 3];
}

bool valid_memory_type(u64 type) {
  return type == 0 || type == 1 || (type >= 4 && type <= 6);  // UC, WC, WT, WP, WB
}

// Analogue: kvm_mtrr_valid. Intel SDM volume 3, "MTRR control and status".
bool valid_mtrr(const Cpu& c, u32 index, u64 value) {
  if (index == kMtrrDefType) return (value & ~u64{0xcff}) == 0 && valid_memory_type(value & 0xff);
  if (index >= kMtrrFix64 && index < kMtrrFix4 + 8) {
    for (unsigned i = 0; i < 8; ++i)
      if (!valid_memory_type(value >> 8 * i & 0xff)) return false;
    return true;
  }
  const bool base = (index & 1) == 0;
  if (base && !valid_memory_type(value & 0xff)) return false;
  const u64 reserved = c.reserved_gpa | ~((u64{1} << 52) - 1);
  return (value & (reserved | (base ? 0xf00 : 0x7ff))) == 0;
}

// Analogue: set_msr_mce, with its allowances for systems that clear one odd bit of a control word.
bool valid_bank_word(const Cpu& c, u32 index, u64 value, bool host) {
  constexpr u64 kMcStatusWrite = u64{1} << 18;  // of HWCR
  if ((index & 3) == 0) return value == 0 || (value | u64{1} << 10 | 1) == ~u64{0};
  if ((index & 3) == 1)
    return host || value == 0 || (c.features.amd && (c.s.msr.hwcr & kMcStatusWrite) != 0);
  return true;
}

// Those that must be canonical addresses.
u64* address_msr(Cpu& c, u32 index) {
  switch (index) {
    case kLstar:
      return &c.s.msr.lstar;
    case kCstar:
      return &c.s.msr.cstar;
    case kKernelGsBase:
      return &c.s.msr.kernel_gs_base;
    case kFsBase:
      return &c.s.sys.seg[kSegFs].base;
    case kGsBase:
      return &c.s.sys.seg[kSegGs].base;
    default:
      return nullptr;
  }
}

// Those that are made canonical, as they reach the processor on every vendor's hardware.
u64* sysenter_msr(Cpu& c, u32 index) {
  if (index == kSysenterEsp) return &c.s.msr.sysenter_esp;
  return index == kSysenterEip ? &c.s.msr.sysenter_eip : nullptr;
}

// 57 bits of address are implemented, whatever the guest has switched on.
u64 made_canonical(u64 address) {
  return static_cast<u64>(static_cast<s64>(address << 7) >> 7);
}

// The host alone may set these; guests read them.
u64* host_msr(Cpu& c, u32 index) {
  switch (index) {
    case kArchCapabilities:
      return &c.s.msr.arch_capabilities;
    case kPlatformInfo:
      return &c.s.msr.platform_info;
    case kPerfCapabilities:
      return &c.s.msr.perf_capabilities;
    case kUcodeRev:
      return &c.s.msr.ucode_rev;
    default:
      return nullptr;
  }
}

bool valid_pat(u64 value) {
  for (unsigned i = 0; i < 8; ++i) {
    const u64 type = value >> 8 * i & 0xff;
    if (type > 7 || type == 2 || type == 3) return false;
  }
  return true;
}

// TSC_AUX exists for a guest only with an instruction that reads it.
bool hidden_msr(const Cpu& c, u32 index, bool host) {
  return index == kTscAux && !host && !c.features.rdtscp && !c.features.rdpid;
}

// Reads as zero, writes are swallowed.
bool ignored_msr(u32 index) {
  switch (index) {
    case kPlatformId:
    case kEblCrPowerOn:
    case kPerfStatus:
    case kSyscfg:
    case kTopMem:
    case kNbCfg:
    case kVmHsavePa:
    case kBuCfg2:
    case kDcCfg:
      return true;
    default:
      return index >= kLastBranchFrom && index <= kLastIntTo;
  }
}

MsrOutcome set_efer(Cpu& c, u64 value, bool host) {
  u64 allowed = efer::kLma;
  if (c.features.syscall || host) allowed |= efer::kSce;
  if (c.features.long_mode || host) allowed |= efer::kLme;
  if (c.features.nx || host) allowed |= efer::kNx;
  if (c.features.ffxsr || host) allowed |= efer::kFfxsr;
  if ((value & ~allowed) != 0) return MsrOutcome::kRefused;
  u64& current = c.s.sys.efer;
  const bool paging = (c.s.sys.cr0 & cr0::kPg) != 0;
  if (!host && paging && ((current ^ value) & efer::kLme) != 0) return MsrOutcome::kRefused;
  current = (value & ~efer::kLma) | (current & efer::kLma);  // it follows paging alone
  if (c.views != nullptr) c.flush_tlb();
  c.update_view();
  return MsrOutcome::kDone;
}

void set_tsc(Cpu& c, u64 value) {
  c.tsc_offset += static_cast<s64>(value - read_tsc(c));
}

MsrOutcome set_hwcr(Cpu& c, u64 value, bool host) {
  // Analogue: bits that are ignored, McStatusWrEn and TscFreqSel (which a guest may not clear).
  constexpr u64 kIgnored = u64{1} << 3 | u64{1} << 6 | u64{1} << 8;
  constexpr u64 kMcStatusWrite = u64{1} << 18, kTscFreqSel = u64{1} << 24;
  value &= ~kIgnored;
  if ((value & ~(kMcStatusWrite | kTscFreqSel)) != 0) return MsrOutcome::kRefused;
  (void)host;
  c.s.msr.hwcr = value;
  return MsrOutcome::kDone;
}

MsrOutcome set_special(Cpu& c, u32 index, u64 value, bool host) {
  Msrs& m = c.s.msr;
  switch (index) {
    case kEfer:
      return set_efer(c, value, host);
    case kPat:
      if (!valid_pat(value)) return MsrOutcome::kRefused;
      m.pat = value;
      return MsrOutcome::kDone;
    case kTsc:
      if (!host) m.tsc_adjust += value - read_tsc(c);
      set_tsc(c, value);
      return MsrOutcome::kDone;
    case kTscAdjust:
      if (!host) set_tsc(c, read_tsc(c) + (value - m.tsc_adjust));
      m.tsc_adjust = value;
      return MsrOutcome::kDone;
    case kApicBase:
      c.s.sys.apic_base = value;
      return MsrOutcome::kDone;
    case kMcgCap:
      return MsrOutcome::kRefused;
    case kMcgCtl:
      if ((m.mcg_cap & kMcgCtlPresent) == 0 && (value != 0 || !host)) return MsrOutcome::kRefused;
      if (value != 0 && value != ~u64{0}) return MsrOutcome::kRefused;
      m.mcg_ctl = value;
      return MsrOutcome::kDone;
    case kHwcr:
      return set_hwcr(c, value, host);
    case kSmbase:
      if (!host) return MsrOutcome::kRefused;
      m.smbase = value;
      return MsrOutcome::kDone;
    case kPredCmd:
    case kFlushCmd:
      return (value & ~u64{1}) == 0 ? MsrOutcome::kDone : MsrOutcome::kRefused;
    case kMtrrCap:
      return MsrOutcome::kRefused;
    default:
      return MsrOutcome::kUnknown;
  }
}

MsrOutcome get_special(Cpu& c, u32 index, u64* value, bool host) {
  const Msrs& m = c.s.msr;
  switch (index) {
    case kEfer:
      *value = c.s.sys.efer;
      return MsrOutcome::kDone;
    case kPat:
      *value = m.pat;
      return MsrOutcome::kDone;
    case kTsc:
      *value = read_tsc(c);
      return MsrOutcome::kDone;
    case kTscAdjust:
      *value = m.tsc_adjust;
      return MsrOutcome::kDone;
    case kApicBase:
      *value = c.s.sys.apic_base;
      return MsrOutcome::kDone;
    case kMcgCap:
      *value = m.mcg_cap;
      return MsrOutcome::kDone;
    case kMcgCtl:
      if ((m.mcg_cap & kMcgCtlPresent) == 0 && !host) return MsrOutcome::kRefused;
      *value = m.mcg_ctl;
      return MsrOutcome::kDone;
    case kHwcr:
      *value = m.hwcr;
      return MsrOutcome::kDone;
    case kMtrrCap:
      *value = 0x508;
      return MsrOutcome::kDone;  // WC, fixed ranges, 8 variable ones
    case kSmbase:
      *value = m.smbase;
      return host ? MsrOutcome::kDone : MsrOutcome::kRefused;
    default:
      return MsrOutcome::kUnknown;
  }
}

// Registers of the local APIC, which belong to whoever has the controllers.
bool is_apic_msr(const Cpu& c, u32 index) {
  return c.policy->irqchip && c.policy->read_msr != nullptr && c.policy->write_msr != nullptr &&
         (index == kApicBase || index == kTscDeadline || (index >= 0x800 && index <= 0x8ff));
}

}  // namespace

u64 host_tsc() {
  return __builtin_ia32_rdtsc();
}

u64 next_random(Cpu& c) {
  c.random += host_tsc() | 1;
  u64 x = c.random * 0x9e3779b97f4a7c15;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

u64 read_tsc(const Cpu& c) {
  return host_tsc() + static_cast<u64>(c.tsc_offset);
}

MsrOutcome read_msr(Cpu& c, u32 index, u64* value, bool host) {
  *value = 0;
  if (is_apic_msr(c, index)) return c.policy->read_msr(c.policy->context, c.id, index, value);
  if (hidden_msr(c, index, host)) return MsrOutcome::kRefused;
  const u64* word = plain_msr(c, index);
  if (word == nullptr) word = mtrr_msr(c, index);
  if (word == nullptr) word = bank_msr(c, index);
  if (word == nullptr) word = address_msr(c, index);
  if (word == nullptr) word = sysenter_msr(c, index);
  if (word == nullptr) word = host_msr(c, index);
  if (word != nullptr) {
    *value = *word;
    return MsrOutcome::kDone;
  }
  const MsrOutcome special = get_special(c, index, value, host);
  if (special != MsrOutcome::kUnknown) return special;
  if (ignored_msr(index)) return MsrOutcome::kDone;
  const VmPolicy& p = *c.policy;
  return p.read_msr != nullptr ? p.read_msr(p.context, c.id, index, value) : MsrOutcome::kUnknown;
}

MsrOutcome write_msr(Cpu& c, u32 index, u64 value, bool host) {
  if (is_apic_msr(c, index)) return c.policy->write_msr(c.policy->context, c.id, index, value);
  if (hidden_msr(c, index, host)) return MsrOutcome::kRefused;
  if (index == kTscAux) value &= 0xffff'ffff;
  if (u64* word = plain_msr(c, index); word != nullptr) {
    *word = value;
    return MsrOutcome::kDone;
  }
  if (u64* word = mtrr_msr(c, index); word != nullptr) {
    if (!valid_mtrr(c, index, value)) return MsrOutcome::kRefused;
    *word = value;
    return MsrOutcome::kDone;
  }
  if (u64* word = bank_msr(c, index); word != nullptr) {
    if (!valid_bank_word(c, index, value, host)) return MsrOutcome::kRefused;
    *word = value;
    return MsrOutcome::kDone;
  }
  if (u64* word = sysenter_msr(c, index); word != nullptr) {
    *word = made_canonical(value);
    return MsrOutcome::kDone;
  }
  if (u64* word = address_msr(c, index); word != nullptr) {
    if (!is_canonical(value, (c.s.sys.cr4 & cr4::kLa57) != 0)) return MsrOutcome::kRefused;
    *word = value;
    c.update_view();
    return MsrOutcome::kDone;
  }
  if (u64* word = host_msr(c, index); word != nullptr) {
    if (!host) return MsrOutcome::kRefused;
    *word = value;
    return MsrOutcome::kDone;
  }
  const MsrOutcome special = set_special(c, index, value, host);
  if (special != MsrOutcome::kUnknown) return special;
  if (ignored_msr(index)) return MsrOutcome::kDone;
  const VmPolicy& p = *c.policy;
  return p.write_msr != nullptr ? p.write_msr(p.context, c.id, index, value) : MsrOutcome::kUnknown;
}

}  // namespace stagetwo::vcpu

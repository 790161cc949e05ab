// SPDX-License-Identifier: Apache-2.0
#include "vcpu/control_regs.h"

#include "vcpu/mem.h"

namespace stagetwo::vcpu {
namespace {

constexpr u64 kCr0Known = cr0::kPe | cr0::kMp | cr0::kEm | cr0::kTs | cr0::kEt | cr0::kNe |
                          cr0::kWp | cr0::kAm | cr0::kNw | cr0::kCd | cr0::kPg;

bool cr0_consistent(u64 value) {
  if ((value >> 32) != 0) return false;
  if ((value & cr0::kNw) != 0 && (value & cr0::kCd) == 0) return false;
  return (value & cr0::kPg) == 0 || (value & cr0::kPe) != 0;
}

// Analogue: kvm_vcpu_is_legal_cr3. In CR3 the bits above the 52 of a page-table entry are reserved
// too.
bool valid_root(const Cpu& c, u64 cr3) {
  constexpr u64 kEntryBits = (u64{1} << 52) - 1;
  return (cr3 & (c.reserved_gpa | ~kEntryBits)) == 0;
}

void paging_changed(Cpu& c) {
  c.flush_tlb();
  c.update_view();
}

}  // namespace

bool set_cr0(Cpu& c, u64 value) {
  SystemState& sys = c.s.sys;
  if (!cr0_consistent(value)) return false;
  value = (value & kCr0Known) | cr0::kEt;
  const u64 old = sys.cr0;
  const bool paging_on = (value & cr0::kPg) != 0 && (old & cr0::kPg) == 0;
  const bool paging_off = (value & cr0::kPg) == 0 && (old & cr0::kPg) != 0;
  if (paging_on && (sys.efer & efer::kLme) != 0) {
    if ((sys.cr4 & cr4::kPae) == 0 || sys.seg[kSegCs].l != 0) return false;
    sys.efer |= efer::kLma;
  }
  if (paging_off) {
    if (c.long64() || (sys.cr4 & cr4::kPcide) != 0) return false;
    sys.efer &= ~efer::kLma;
  }
  sys.cr0 = value;
  if (((old ^ value) & (cr0::kPg | cr0::kWp | cr0::kPe)) != 0) paging_changed(c);
  return true;
}

bool set_cr3(Cpu& c, u64 value) {
  if ((c.s.sys.cr4 & cr4::kPcide) != 0) value &= ~(u64{1} << 63);
  if (c.s.long_mode() && !valid_root(c, value)) return false;
  c.s.sys.cr3 = value;
  c.flush_tlb();
  return true;
}

bool set_cr4(Cpu& c, u64 value) {
  SystemState& sys = c.s.sys;
  if ((value & c.cr4_reserved) != 0) return false;
  if (c.s.long_mode()) {
    if ((value & cr4::kPae) == 0 || ((value ^ sys.cr4) & cr4::kLa57) != 0) return false;
  }
  const bool pcid_on = (value & cr4::kPcide) != 0 && (sys.cr4 & cr4::kPcide) == 0;
  if (pcid_on && (!c.s.long_mode() || (sys.cr3 & 0xfff) != 0)) return false;
  sys.cr4 = value;
  paging_changed(c);
  return true;
}

bool set_cr8(Cpu& c, u64 value) {
  if (value > 15) return false;
  // A lower priority may let an interrupt through: the controllers look between two runs.
  if (c.policy->irqchip && value < c.s.sys.cr8) {
    c.exit_requested.store(1);
    c.attention |= kAttendExit;
  }
  c.s.sys.cr8 = value;
  return true;
}

bool valid_system_state(const Cpu& c, const SystemState& s) {
  if ((s.efer & efer::kLme) != 0 && (s.cr0 & cr0::kPg) != 0) {
    if ((s.cr4 & cr4::kPae) == 0 || (s.efer & efer::kLma) == 0) return false;
    if (!valid_root(c, s.cr3)) return false;
  } else if ((s.efer & efer::kLma) != 0 || s.seg[kSegCs].l != 0) {
    return false;
  }
  return (s.cr4 & c.cr4_reserved) == 0 && cr0_consistent(s.cr0);
}

// --- CPUID ---------------------------------------------------------------------------------------

namespace {

const CpuidEntry* find_entry(const Cpu& c, u32 function, u32 index) {
  for (u32 i = 0; i < c.cpuid_count; ++i) {
    const CpuidEntry& e = c.cpuid[i];
    if (e.function == function && ((e.flags & 1) == 0 || e.index == index)) return &e;
  }
  return nullptr;
}

bool has_bit(u32 word, unsigned bit) {
  return (word >> bit & 1) != 0;
}

}  // namespace

CpuidEntry lookup_cpuid(const Cpu& c, u32 function, u32 index) {
  const CpuidEntry* found = find_entry(c, function, index);
  const CpuidEntry* basic = find_entry(c, 0, 0);
  const bool amd = c.features.amd;
  if (found == nullptr && !amd && basic != nullptr) {
    // Intel answers out-of-range leaves with the highest basic one.
    const CpuidEntry* range = find_entry(c, function & 0xffff0000, 0);
    if ((function & 0xc0000000) != 0x40000000 && (range == nullptr || function > range->eax)) {
      found = find_entry(c, basic->eax, index);
    }
  }
  CpuidEntry result{};
  if (found != nullptr) {
    result = *found;
    // Bits that follow the machine's state.
    if (function == 1) {
      result.ecx &= ~(1U << 27);
      if ((c.s.sys.cr4 & cr4::kOsxsave) != 0) result.ecx |= 1U << 27;
      result.edx &= ~(1U << 9);
      if ((c.s.sys.apic_base & (1 << 11)) != 0 && (found->edx >> 9 & 1) != 0) result.edx |= 1U << 9;
    }
    if (function == 7 && index == 0 && (c.s.sys.cr4 & cr4::kPke) != 0) result.ecx |= 1U << 4;
  }
  result.function = function;
  result.index = index;
  return result;
}

void apply_cpuid(Cpu& c) {
  const auto leaf = [&](u32 function, u32 index) {
    const CpuidEntry* e = find_entry(c, function, index);
    return e != nullptr ? *e : CpuidEntry{};
  };
  const CpuidEntry vendor = leaf(0, 0), one = leaf(1, 0), seven = leaf(7, 0);
  const CpuidEntry ext = leaf(0x80000001, 0), widths = leaf(0x80000008, 0);
  Features& f = c.features;
  f = Features{};
  f.amd = vendor.ebx == 0x68747541 || vendor.ebx == 0x6f677948;
  f.monitor = has_bit(one.ecx, 3);
  f.cx16 = has_bit(one.ecx, 13);
  f.crc32 = has_bit(one.ecx, 20);
  f.movbe = has_bit(one.ecx, 22);
  f.popcnt = has_bit(one.ecx, 23);
  f.xsave = has_bit(one.ecx, 26);
  f.rdrand = has_bit(one.ecx, 30);
  f.fsgsbase = has_bit(seven.ebx, 0);
  f.bmi1 = has_bit(seven.ebx, 3);
  f.invpcid = has_bit(seven.ebx, 10);
  f.rdseed = has_bit(seven.ebx, 18);
  f.adx = has_bit(seven.ebx, 19);
  f.clflushopt = has_bit(seven.ebx, 23);
  f.clwb = has_bit(seven.ebx, 24);
  f.rdpid = has_bit(seven.ecx, 22);
  f.lzcnt = has_bit(ext.ecx, 5);
  f.syscall = has_bit(ext.edx, 11);
  f.nx = has_bit(ext.edx, 20);
  f.ffxsr = has_bit(ext.edx, 25);
  f.rdtscp = has_bit(ext.edx, 27);
  f.long_mode = has_bit(ext.edx, 29);
  const u32 width = (widths.eax & 0xff) != 0 ? widths.eax & 0xff : 36;
  c.reserved_gpa = ~((u64{1} << width) - 1) & ((u64{1} << 52) - 1);
  // Analogue: __cr4_reserved_bits.
  u64 allowed = cr4::kVme | cr4::kPvi | cr4::kTsd | cr4::kDe | cr4::kPse | cr4::kPae | cr4::kMce |
                cr4::kPge | cr4::kPce | cr4::kOsfxsr | cr4::kOsxmmexcpt;
  const auto allow = [&](bool offered, u64 bit) { allowed |= offered ? bit : 0; };
  // Before KVM_SET_CPUID2 everything that is executed here may be set.
  allow(c.cpuid_count == 0, cr4::kFsgsbase | cr4::kSmep | cr4::kSmap | cr4::kUmip | cr4::kLa57);
  allow(f.xsave, cr4::kOsxsave);
  allow(f.fsgsbase, cr4::kFsgsbase);
  allow(has_bit(seven.ebx, 7), cr4::kSmep);
  allow(has_bit(seven.ebx, 20), cr4::kSmap);
  allow(has_bit(seven.ecx, 2), cr4::kUmip);
  allow(has_bit(seven.ecx, 3), cr4::kPke);
  allow(has_bit(seven.ecx, 16), cr4::kLa57);
  allow(has_bit(one.ecx, 17), cr4::kPcide);
  allow(has_bit(one.ecx, 5), cr4::kVmxe);
  c.cr4_reserved = ~allowed;
}

}  // namespace stagetwo::vcpu

// SPDX-License-Identifier: Apache-2.0
#include "abi/kvm/cpuid.h"

#include "abi/kvm/host_cpu.h"
#include "base/bits.h"
#include "base/check.h"

namespace stagetwo::abi_kvm {
namespace {

template <typename... Bits>
constexpr u32 bits(Bits... position) {
  return (u32{0} | ... | (u32{1} << position));
}

constexpr u32 kHighestBasic = 0xd;
constexpr u32 kHighestExtended = 0x80000008;
constexpr u32 kKvmBase = 0x40000000;
constexpr u32 kKvmFeatures = 0x40000001;

// CPUID 1 EDX: FPU DE PSE TSC MSR PAE MCE CX8 APIC SEP MTRR PGE MCA CMOV PAT PSE36 CLFSH FXSR SSE
// SSE2.
constexpr u32 kLeaf1Edx =
    bits(0, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15, 16, 17, 19, 24, 25, 26);
// CPUID 1 ECX: CX16 X2APIC MOVBE POPCNT HYPERVISOR.
constexpr u32 kLeaf1Ecx = bits(13, 21, 22, 23, 31);
// CPUID 7.0 EBX: FSGSBASE TSC_ADJUST SMEP ERMS INVPCID SMAP CLFLUSHOPT CLWB.
constexpr u32 kLeaf7Ebx = bits(0, 1, 7, 9, 10, 20, 23, 24);
// CPUID 7.0 ECX: UMIP LA57 RDPID.
constexpr u32 kLeaf7Ecx = bits(2, 16, 22);
// CPUID 0x80000001 ECX: LAHF_LM, ABM (LZCNT), PREFETCHW.
constexpr u32 kExtEcx = bits(0, 5, 8);
// CPUID 0x80000001 EDX: SYSCALL NX GBPAGES RDTSCP LM.
constexpr u32 kExtEdx = bits(11, 20, 26, 27, 29);
// AMD repeats these bits of leaf 1 there.
constexpr u32 kAmdRepeated = 0x0183f3ff;
// KVM_FEATURE_NOP_IO_DELAY.
constexpr u32 kKvmFeatureBits = bits(1);

void add_extended(CpuidTable& table) {
  const CpuidWords vendor = host_cpuid(0, 0);
  table.add(0x80000000, kHighestExtended, vendor.ebx, vendor.ecx, vendor.edx);
  u32 edx = kExtEdx;
  if (host_is_amd()) edx |= kLeaf1Edx & kAmdRepeated & ~bits(11);
  table.add(0x80000001, host_is_amd() ? host_cpuid(1, 0).eax : 0, 0, kExtEcx, edx);
  for (u32 function = 0x80000002; function <= 0x80000004; ++function) {
    const CpuidWords brand = host_cpuid(function, 0);
    table.add(function, brand.eax, brand.ebx, brand.ecx, brand.edx);
  }
  table.add(0x80000005, 0, 0, 0, 0);
  table.add(0x80000006, 0, 0, 0, 0);
  table.add(0x80000007, 0, 0, 0, bits(8));  // the time-stamp counter never stops
  const u32 physical = host_physical_bits();
  table.add(0x80000008, physical | (57 << 8) | (physical << 16), 0, 0, 0);
}

}  // namespace

void CpuidTable::add(u32 function, u32 eax, u32 ebx, u32 ecx, u32 edx) {
  ST_CHECK(count_ < rows_.size());
  rows_[count_++] = {.function = function,
                     .index = 0,
                     .flags = 0,
                     .eax = eax,
                     .ebx = ebx,
                     .ecx = ecx,
                     .edx = edx,
                     .padding = {}};
}

void CpuidTable::add_indexed(u32 function, u32 index, u32 eax, u32 ebx, u32 ecx, u32 edx) {
  add(function, eax, ebx, ecx, edx);
  rows_[count_ - 1].index = index;
  rows_[count_ - 1].flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
}

CpuidTable supported_cpuid() {
  CpuidTable table;
  const CpuidWords vendor = host_cpuid(0, 0);
  table.add(0, kHighestBasic, vendor.ebx, vendor.ecx, vendor.edx);
  // EBX: a cache line of 64 bytes (8 units of 8), one logical processor, APIC id 0.
  table.add(1, host_cpuid(1, 0).eax, 0x00010800, kLeaf1Ecx, kLeaf1Edx);
  table.add(2, 0, 0, 0, 0);
  table.add(3, 0, 0, 0, 0);
  table.add_indexed(4, 0, 0, 0, 0, 0);
  table.add(5, 0, 0, 0, 0);
  table.add(6, 4, 0, 0, 0);  // the APIC timer always runs
  table.add_indexed(7, 0, 0, kLeaf7Ebx, kLeaf7Ecx, 0);
  for (u32 function = 8; function <= 0xa; ++function) table.add(function, 0, 0, 0, 0);
  table.add_indexed(0xb, 0, 0, 0, 0, 0);
  table.add(0xc, 0, 0, 0, 0);
  table.add_indexed(0xd, 0, 0, 0, 0, 0);
  add_extended(table);
  table.add(kKvmBase, kKvmFeatures, 0x4b4d564b, 0x564b4d56, 0x4d);  // "KVMKVMKVM"
  table.add(kKvmFeatures, kKvmFeatureBits, 0, 0, 0);
  return table;
}

CpuidTable emulated_cpuid() {
  CpuidTable table;
  table.add(0, 7, 0, 0, 0);
  table.add(1, 0, 0, bits(22), 0);             // MOVBE
  table.add_indexed(7, 0, 0, 0, bits(22), 0);  // RDPID
  return table;
}

}  // namespace stagetwo::abi_kvm

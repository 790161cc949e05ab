// SPDX-License-Identifier: Apache-2.0
#include "abi/kvm/cpuid.h"

#include <gtest/gtest.h>

#include <set>

#include "abi/kvm/host_cpu.h"

namespace stagetwo::abi_kvm {
namespace {

const kvm_cpuid_entry2* find(const CpuidTable& table, u32 function) {
  for (const auto& entry : table.entries())
    if (entry.function == function) return &entry;
  return nullptr;
}

TEST(SupportedCpuid, NamesTheHostsVendor) {
  const CpuidTable table = supported_cpuid();
  const CpuidWords host = host_cpuid(0, 0);
  ASSERT_NE(find(table, 0), nullptr);
  EXPECT_EQ(find(table, 0)->ebx, host.ebx);
  EXPECT_EQ(find(table, 0)->ecx, host.ecx);
  EXPECT_EQ(find(table, 0)->edx, host.edx);
}

TEST(SupportedCpuid, HasEveryLeafUpToTheHighestOnce) {
  const CpuidTable table = supported_cpuid();
  std::set<u32> seen;
  for (const auto& entry : table.entries()) EXPECT_TRUE(seen.insert(entry.function).second);
  for (u32 leaf = 0; leaf <= find(table, 0)->eax; ++leaf) EXPECT_TRUE(seen.contains(leaf)) << leaf;
  for (u32 leaf = 0x80000000; leaf <= find(table, 0x80000000)->eax; ++leaf)
    EXPECT_TRUE(seen.contains(leaf)) << std::hex << leaf;
}

TEST(SupportedCpuid, OffersNothingTheInterpreterLacks) {
  const CpuidTable table = supported_cpuid();
  const u32 ecx = find(table, 1)->ecx;
  for (const unsigned feature : {0U /* SSE3 */, 5U /* VMX */, 26U /* XSAVE */, 28U /* AVX */})
    EXPECT_EQ(ecx >> feature & 1, 0U) << feature;
  EXPECT_EQ(find(table, 0x80000001)->ecx >> 2 & 1, 0U) << "SVM";
}

TEST(SupportedCpuid, OffersWhatA64BitGuestNeeds) {
  const CpuidTable table = supported_cpuid();
  const u32 edx = find(table, 0x80000001)->edx;
  for (const unsigned feature : {11U /* SYSCALL */, 20U /* NX */, 26U /* GBPAGES */, 29U /* LM */})
    EXPECT_EQ(edx >> feature & 1, 1U) << feature;
  EXPECT_EQ(find(table, 1)->ecx >> 31, 1U) << "a hypervisor is present";
}

TEST(SupportedCpuid, DoesNotPromiseMorePhysicalAddressBitsThanTheHost) {
  const u32 eax = find(supported_cpuid(), 0x80000008)->eax;
  EXPECT_EQ(eax & 0xff, host_physical_bits());
  const u32 linear = eax >> 8 & 0xff;
  EXPECT_TRUE(linear == 48 || linear == 57);
}

TEST(SupportedCpuid, CarriesTheKvmSignature) {
  const CpuidTable table = supported_cpuid();
  ASSERT_NE(find(table, 0x40000000), nullptr);
  EXPECT_EQ(find(table, 0x40000000)->eax, 0x40000001U);
  EXPECT_EQ(find(table, 0x40000000)->ebx, 0x4b4d564bU);
}

TEST(EmulatedCpuid, IsTheKernelsShortList) {
  const CpuidTable table = emulated_cpuid();
  ASSERT_EQ(table.entries().size(), 3U);
  EXPECT_EQ(table.entries()[0].eax, 7U);
  EXPECT_EQ(table.entries()[1].ecx, 1U << 22);
  EXPECT_EQ(table.entries()[2].flags, static_cast<u32>(KVM_CPUID_FLAG_SIGNIFCANT_INDEX));
}

}  // namespace
}  // namespace stagetwo::abi_kvm

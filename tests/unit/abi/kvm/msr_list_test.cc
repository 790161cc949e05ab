// SPDX-License-Identifier: Apache-2.0
#include "abi/kvm/msr_list.h"

#include <gtest/gtest.h>

#include <set>

#include "abi/kvm/host_cpu.h"

namespace stagetwo::abi_kvm {
namespace {

TEST(MsrList, NamesEveryRegisterOnce) {
  std::set<u32> seen;
  for (const u32 index : msr_index_list()) EXPECT_TRUE(seen.insert(index).second) << index;
  for (const u32 index : seen) EXPECT_TRUE(is_listed_msr(index));
  EXPECT_FALSE(is_listed_msr(0x12345));
}

TEST(MsrList, FeatureRegistersHaveAValueAndOthersNone) {
  for (const u32 index : feature_msr_list()) EXPECT_TRUE(feature_msr(index).has_value()) << index;
  EXPECT_FALSE(feature_msr(0x10).has_value());
}

TEST(MsrList, SerialisingLfenceIsAPropertyOfAmd) {
  EXPECT_EQ(feature_msr(0xc0011029).has_value(), host_is_amd());
}

TEST(MsrList, MicrocodeRevisionIsNotFixedByTheFirstRun) {
  EXPECT_FALSE(is_immutable_msr(0x8b));
  EXPECT_TRUE(is_immutable_msr(kMsrArchCapabilities));
  EXPECT_FALSE(is_immutable_msr(0x10));
}

}  // namespace
}  // namespace stagetwo::abi_kvm

// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include "abi/kvm/host_cpu.h"
#include "abi/kvm/kvm.h"

namespace stagetwo::abi_kvm {
namespace {

TEST(Parameters, EndWithANewline) {
  for (const char* path : {"kvm/parameters/force_emulation_prefix", "kvm/parameters/enable_pmu",
                           "kvm/parameters/eager_page_split", "kvm/parameters/tdp_mmu",
                           "kvm/parameters/nx_huge_pages"}) {
    ASSERT_FALSE(parameter(path).empty()) << path;
    EXPECT_EQ(parameter(path).back(), '\n') << path;
  }
}

TEST(Parameters, VendorModuleIsTheProcessors) {
  EXPECT_EQ(parameter("kvm_amd/parameters/npt").empty(), !host_is_amd());
  EXPECT_EQ(parameter("kvm_intel/parameters/ept").empty(), host_is_amd());
}

TEST(Parameters, PathMayBeAbsolute) {
  EXPECT_EQ(parameter("/sys/module/kvm/parameters/tdp_mmu"), parameter("kvm/parameters/tdp_mmu"));
}

TEST(Attach, KnowsTheKindsThatOtherProcessesMayUse) {
  host::DescriptorSpec spec;
  EXPECT_TRUE(attach("kvm", &spec));
  EXPECT_EQ(spec.shape, host::FileShape::kCharDevice);
  EXPECT_TRUE(attach("kvm-stats", &spec));
  EXPECT_EQ(spec.home, host::StateHome::kDescription);
  EXPECT_FALSE(attach("kvm-vm", &spec)) << "hangs off an address space";
  EXPECT_FALSE(attach("kvm-vcpu", &spec));
  EXPECT_FALSE(attach("", &spec));
}

}  // namespace
}  // namespace stagetwo::abi_kvm

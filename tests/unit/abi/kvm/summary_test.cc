// SPDX-License-Identifier: Apache-2.0
#include "abi/kvm/summary.h"

#include <gtest/gtest.h>

#include <string>

#include "abi/kvm/kvm.h"

namespace stagetwo::abi_kvm {
namespace {

std::string summary() {
  FixedString<512> line;
  append_summary(line);
  return std::string(line.view());
}

struct OneVcpu {
  Stats<VcpuStat> stats{vcpu_stat_descriptors()};
  SummaryEntry entry{stats};
};

TEST(Summary, AddsUpVcpusThatLiveAndVcpusThatAreGone) {
  EXPECT_EQ(summary(), "0 vCPUs, exits 0");
  OneVcpu first;
  first.stats.add(VcpuStat::kExits, 5);
  {
    OneVcpu second;
    OneVcpu third;
    second.stats.add(VcpuStat::kExits, 2);
    second.stats.add(VcpuStat::kPfFixed, 7);
    third.stats.add(VcpuStat::kExits, 100);
    EXPECT_EQ(summary(), "3 vCPUs, exits 107, pf_fixed 7");
  }
  EXPECT_EQ(summary(), "3 vCPUs, exits 107, pf_fixed 7");
  first.stats.add(VcpuStat::kHypercalls);
  EXPECT_EQ(summary(), "3 vCPUs, exits 107, hypercalls 1, pf_fixed 7");
}

}  // namespace
}  // namespace stagetwo::abi_kvm

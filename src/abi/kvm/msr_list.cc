// SPDX-License-Identifier: Apache-2.0
#include "abi/kvm/msr_list.h"

#include <algorithm>
#include <array>

#include "abi/kvm/host_cpu.h"

namespace stagetwo::abi_kvm {
namespace {

// Intel SDM volume 4; AMD APM volume 2 appendix A.
constexpr std::array<u32, 26> kIndices = {
    0x174,       // SYSENTER_CS
    0x175,       // SYSENTER_ESP
    0x176,       // SYSENTER_EIP
    0xc0000081,  // STAR
    0xc0000083,  // CSTAR
    0xc0000102,  // KERNEL_GS_BASE
    0xc0000084,  // SYSCALL_MASK
    0xc0000082,  // LSTAR
    0x10,        // TSC
    0x277,       // PAT
    0xc0000103,  // TSC_AUX
    0x1d9,       // DEBUGCTL
    0x3b,        // TSC_ADJUST
    0x6e0,       // TSC_DEADLINE
    0x10a,       // ARCH_CAPABILITIES
    0x345,       // PERF_CAPABILITIES
    0x1a0,       // MISC_ENABLE
    0x17a,       // MCG_STATUS
    0x17b,       // MCG_CTL
    0x9e,        // SMBASE
    0xce,        // PLATFORM_INFO
    0x140,       // MISC_FEATURES_ENABLES
    0x8b,        // UCODE_REV
    0xc0010015,  // HWCR
    0x3a,        // FEAT_CTL
    0x48,        // SPEC_CTRL
};

constexpr u32 kDeCfg = 0xc0011029;
constexpr u32 kUcodeRev = 0x8b;
constexpr u32 kArchCapabilities = kMsrArchCapabilities;
constexpr u32 kPerfCapabilities = 0x345;
constexpr std::array kFeatures = {kDeCfg, kUcodeRev, kArchCapabilities, kPerfCapabilities};

}  // namespace

std::span<const u32> msr_index_list() {
  return kIndices;
}

bool is_listed_msr(u32 index) {
  return std::ranges::find(kIndices, index) != kIndices.end();
}

bool is_immutable_msr(u32 index) {
  return index != kUcodeRev && std::ranges::find(kFeatures, index) != kFeatures.end();
}

std::span<const u32> feature_msr_list() {
  // DE_CFG exists on AMD alone, and is first for that reason.
  return std::span<const u32>(kFeatures).subspan(host_is_amd() ? 0 : 1);
}

std::optional<u64> feature_msr(u32 index) {
  const auto list = feature_msr_list();
  if (std::ranges::find(list, index) == list.end()) return std::nullopt;
  switch (index) {
    case kDeCfg:
      return u64{1} << 1;  // LFENCE waits for what is before it
    // RDCL, L1D flush, SSB, MDS, PSCHANGE, TAA: nothing speculates here.
    case kArchCapabilities:
      return 0x179;
    default:
      return 0;
  }
}

}  // namespace stagetwo::abi_kvm

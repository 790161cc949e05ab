// SPDX-License-Identifier: Apache-2.0
#include "abi/kvm/kvm.h"

#include <array>
#include <string_view>

#include "abi/kvm/host_cpu.h"

namespace stagetwo::abi_kvm {
namespace {

enum class Vendor : u8 { kAny, kAmd, kIntel };

struct Parameter {
  std::string_view path;
  std::string_view text;
  Vendor vendor;
};

// What programs read before they look at the device. The vendor module that exists is the one the
// processor has: a program that finds neither takes itself for being on unknown hardware.
constexpr std::array kParameters = {
    Parameter{"kvm/parameters/force_emulation_prefix", "0\n", Vendor::kAny},
    Parameter{"kvm/parameters/enable_pmu", "N\n", Vendor::kAny},
    Parameter{"kvm/parameters/eager_page_split", "Y\n", Vendor::kAny},
    Parameter{"kvm/parameters/tdp_mmu", "Y\n", Vendor::kAny},
    Parameter{"kvm/parameters/nx_huge_pages", "N\n", Vendor::kAny},
    Parameter{"kvm/parameters/ignore_msrs", "N\n", Vendor::kAny},
    Parameter{"kvm/parameters/halt_poll_ns", "0\n", Vendor::kAny},
    Parameter{"kvm_amd/parameters/npt", "Y\n", Vendor::kAmd},
    Parameter{"kvm_amd/parameters/avic", "N\n", Vendor::kAmd},
    Parameter{"kvm_amd/parameters/nested", "N\n", Vendor::kAmd},
    Parameter{"kvm_intel/parameters/ept", "Y\n", Vendor::kIntel},
    Parameter{"kvm_intel/parameters/unrestricted_guest", "Y\n", Vendor::kIntel},
    Parameter{"kvm_intel/parameters/nested", "N\n", Vendor::kIntel},
};

}  // namespace

std::string_view parameter(std::string_view path) {
  constexpr std::string_view prefix = "/sys/module/";
  if (path.starts_with(prefix)) path.remove_prefix(prefix.size());
  const bool amd = host_is_amd();
  for (const Parameter& row : kParameters) {
    if (row.path != path) continue;
    const bool here = row.vendor == Vendor::kAny || (row.vendor == Vendor::kAmd) == amd;
    return here ? row.text : std::string_view{};
  }
  return {};
}

}  // namespace stagetwo::abi_kvm

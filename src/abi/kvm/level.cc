// SPDX-License-Identifier: Apache-2.0
#include "abi/kvm/level.h"

#include <array>

#include "abi/kvm/uapi.h"
#include "sync/atomic.h"

namespace stagetwo::abi_kvm {
namespace {

constexpr u64 kMappable = GUEST_MEMFD_FLAG_MMAP;
constexpr u64 kShared = GUEST_MEMFD_FLAG_INIT_SHARED;

constexpr std::array kLevels = {
    Level{"6.12", 0, 0, false, false, true, false},
    // Pages of a VM with private memory do not begin shared.
    Level{"6.18", kMappable | kShared, kMappable, true, true, false, true},
};
constinit sync::Atomic<const Level*> chosen{&kLevels[0]};

}  // namespace

const Level& level() {
  return *chosen.load(sync::kAcquire);
}

bool set_level(std::string_view name) {
  for (const Level& one : kLevels) {
    if (one.name != name) continue;
    chosen.store(&one, sync::kRelease);
    return true;
  }
  return false;
}

}  // namespace stagetwo::abi_kvm

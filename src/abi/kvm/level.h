// SPDX-License-Identifier: Apache-2.0
#pragma once

// The one table of ABI levels (`--abi=…`): where Linux versions differ in what a client sees. Below
// this room nobody knows a version; what differs goes down as a policy.
//
// Locking: chosen once, before the first device is opened; read by anyone.

#include <string_view>

#include "base/types.h"

namespace stagetwo::abi_kvm {

struct Level {
  std::string_view name;
  // KVM_CREATE_GUEST_MEMFD: flags of a VM without private memory, and of one with it.
  u64 memfd_flags;
  u64 private_memfd_flags;
  // May slots of every VM have a guest_memfd, or only those of VMs with private memory?
  bool memfd_for_all;
  // KVM_CAP_GUEST_MEMFD_FLAGS is a capability.
  bool says_memfd_flags;
  // Its inode is a regular file's to the kernel's own ioctls (since 6.16 it is an anonymous one's).
  bool memfd_is_regular;
  // The exit of KVM_HC_MAP_GPA_RANGE clears hypercall.ret; else it keeps what was there.
  bool clears_hypercall_answer;
};

[[nodiscard]] const Level& level();
// "6.12" or "6.18". False: unknown, nothing changed.
bool set_level(std::string_view name);

}  // namespace stagetwo::abi_kvm

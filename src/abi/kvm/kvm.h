// SPDX-License-Identifier: Apache-2.0
#pragma once

// The façade of the room: /dev/kvm, and everything that grows out of it. The shim opens devices
// here and hands every later call on a descriptor to the description behind it.
//
// Linux analogue: the misc device "kvm" (kernel file: virt/kvm/kvm_main.c, kvm_dev_ioctl).
// Errnos are the kernel's; the order of checks is the kernel's; a refusal changes nothing.

#include <string_view>

#include "base/alloc.h"
#include "base/result.h"
#include "base/text.h"
#include "host/descriptor.h"

namespace stagetwo::abi_kvm {

inline constexpr u32 kMinor = 232;  // KVM_MINOR

// open("/dev/kvm", flags). Failure: EMFILE, ENFILE, ENOMEM.
[[nodiscard]] Result<int> open_device(int flags);

// Is this kind of description ours, and can a process that receives its descriptor use it? Null if
// not. Post: *spec describes it. See host::set_attacher.
[[nodiscard]] Box<host::Description> attach(std::string_view kind, host::DescriptorSpec* spec);

// How the kind of a guest_memfd begins: what its descriptor shows, beneath us, is a guest's memory.
inline constexpr std::string_view kGuestMemoryKind = "kvm-gmem-";

// Guests may become secure (POWER's, for guests of ours: docs/howto-secure-guests.md), with a pool
// of so many bytes for the pages that only they have; 0: they may not, and nothing of it is there.
// Before a VM that is to have it.
void offer_secure_guests(u64 pool_bytes);

// What this process's vCPUs did so far: "3 vCPUs, exits 120, io_exits 117". Statistics that are 0
// are left out. In a child of fork: not to be called, the parent's vCPUs are not its own.
void append_summary(TextWriter& to);

}  // namespace stagetwo::abi_kvm

// SPDX-License-Identifier: Apache-2.0
#pragma once

// The façade of the room: /dev/vfio/vfio, /dev/vfio/<group>, /dev/vfio/devices/vfio<N>. Linux
// analogue: vfio_fops, vfio_group_fops, vfio_device_fops (kernel files:
// drivers/vfio/{container,group,vfio_main}.c).
//
// The first check that fails answers, in the kernel's order.

#include <span>
#include <string_view>

#include "addr/addr.h"
#include "base/alloc.h"
#include "base/result.h"
#include "base/types.h"
#include "host/descriptor.h"

namespace stagetwo::vfio {
class Device;
}
namespace stagetwo::abi_vfio {

inline constexpr u32 kMinor = 196;       // VFIO_MINOR
inline constexpr u32 kGroupMajor = 511;  // the kernel takes a free one
inline constexpr u32 kNodeMajor = 510;   // the same
inline constexpr unsigned kMostGroups = 64;

// open("/dev/vfio/vfio", flags). Failure: EMFILE, ENFILE, ENOMEM.
[[nodiscard]] Result<int> open_container(int flags);
// Is there a node /dev/vfio/<group>?
[[nodiscard]] bool has_group(u32 group);
// Failure: ENODEV, EBUSY (it is open), EMFILE, ENFILE, ENOMEM.
[[nodiscard]] Result<int> open_group(u32 group, int flags);

// /dev/vfio/devices/vfio<number>; is it there: has_group(). Failure: as open_group() but EBUSY.
[[nodiscard]] Result<int> open_node(u32 number, int flags);

// May PASIDs be attached, as from 6.15 on? Default: no. `stagetwo run --abi=6.18`.
void set_newer_requests(bool on);

// The description of a received descriptor (host::set_attacher); empty: not of this room, or
// nothing of it can be found from here (another session's; it is over).
[[nodiscard]] Box<host::Description> attach(std::string_view kind, int fd,
                                            host::DescriptorSpec* spec);

// The configuration of a function was written: its BARs are there, or a touch of them is SIGBUS, as
// it says now. Of this process's mappings.
void follow_memory(vfio::Device& device);

// How many bytes from `at` on are a trapped part of a region that this process has mapped to be
// stored to: the kernel, to which such pages are not writable, cannot put there what a call reads.
// The common answer, 0, costs two loads.
[[nodiscard]] u64 trapped_bytes_at(Hva at);
// Stores them there, as the client would. How many: as far as that part goes; none where it is gone
// or the function's memory is off. Context: outside every section.
size_t put_to_device(Hva at, std::span<const u8> bytes);

void after_fork_child();

}  // namespace stagetwo::abi_vfio

// SPDX-License-Identifier: Apache-2.0
#pragma once

// Where this process has mapped regions of its devices. Such a mapping keeps its device open, as
// the kernel's keeps its file; and a store to a trapped part of it is found here by its address.
// Not for other rooms.
//
//   mmap(2) of a device's descriptor    note_mapping(): the device's memory in place of the memfd's
//   store to a trapped page             SIGSEGV, the instruction is done here, write() of the model
//   munmap(2), mmap over it             the bell: the row goes when the change is over
//
// I1  A row is there from before its mapping may be stored to until its pages are unmapped, by
//     whatever part of it (abi/vfio/mapping_table.h).
// Locking: a leaf around the rows; taken in signal handlers, by nobody who stores to client memory.
// In a child of fork: rows for what it has of them, and a subscription of its own.

#include "abi/vfio/files.h"

namespace stagetwo::abi_vfio {

// Pre: the client has mapped [at, at + size) from `offset` of the region on, within areas of it.
// Failure: ENOMEM.
[[nodiscard]] Result<void> note_mapping(const sync::Ref<OpenDevice>& device, Hva at, u64 size,
                                        int prot, unsigned region, u64 offset);
// How many there are, of all devices: for tests.
[[nodiscard]] size_t debug_mappings();
void mappings_after_fork_child();

}  // namespace stagetwo::abi_vfio

// SPDX-License-Identifier: Apache-2.0
#pragma once

// What all processes of a session share about mediated devices: a file of the session's directory,
// mapped by each (docs/decisions/0040-where-mediated-devices-live.md). Without a session it is a
// file of this process's own, which its children have, too. Not for other rooms.
//
// I1  A slot is in use iff its state is not kFree; what describes it was written before that.
// I2  `born` is different for every device there ever was in the session.
// Who holds what is no word in it but a lock on a byte of the file, of a description of its own: it
// goes with the last process that has it, kill -9 included (Claim).

#include "addr/addr.h"
#include "base/alloc.h"
#include "host/file_change.h"
#include "host/kept_fd.h"
#include "host/process_map.h"
#include "sync/process_mutex.h"
#include "vfio/group_link.h"
#include "vfio/mdev.h"
#include "vfio/open_files.h"
#include "vfio/uuid.h"

namespace stagetwo::vfio {

enum class SlotState : u32 { kFree, kActive, kRemoving };

struct Slot {
  sync::Atomic<SlotState> state;
  u32 type;  // of the parent's
  u64 born;
  Uuid uuid;
  char parent[Parent::kLongestName + 1];
  u32 units;
  sync::ProcessMutex lock;  // of the device's model
  alignas(64) u8 model[Model::kStateBytes];
  u64 openings;    // of the group's file there ever were
  GroupLink link;  // of the last one
  OpenFiles files;
  u8 unused[4096 - Model::kStateBytes - 128 - sizeof(u64) - sizeof(GroupLink) - sizeof(OpenFiles)];
};
static_assert(sizeof(Slot) == 4096);

inline constexpr unsigned kSlots = 64;  // as many as all parents have units

struct Registry {
  static constexpr u64 kMagic = 0x7665646d32737473;  // "sts2mdev"
  static constexpr u64 kVersion = 7;
  u64 magic;
  u64 version;
  u64 last_born;
  sync::ProcessMutex lock;  // of all but the models
  u8 unused[4096 - 64];
  Slot slots[kSlots];
};
static_assert(sizeof(Registry) == 4096 * (1 + kSlots));

// Behind it in the file: the memory of each device, zero where its slot is free.
inline constexpr u64 kMemoryAt = sizeof(Registry);
inline constexpr u64 memory_of(u32 slot) {
  return kMemoryAt + u64{slot} * Model::kMemoryBytes;
}
// The engine's own mapping. Pre: registry() was there. Failure: ENOMEM.
[[nodiscard]] Result<u8*> map_memory(u32 slot);
// A part of it in the place of a client's mapping. Failure: ENOMEM; that mapping stands.
[[nodiscard]] Result<void> show_memory(u32 slot, u64 offset, u64 size, int prot, Hva at);
// Pages behind the end of a file in that place; answers which. Failure: EMFILE, ENOMEM; the same.
[[nodiscard]] Result<host::FileId> show_nothing(u64 size, int prot, Hva at);
// Is it a mapping of the registry's file?
[[nodiscard]] bool is_registry(const host::Mapping& found);
void wipe_memory(u32 slot);

// Maps it. Failure: ENOMEM, EMFILE, EIO (not one of this version).
[[nodiscard]] Result<Registry*> registry();

// Pre: the registry's lock.
[[nodiscard]] u32 units_in_use(const Registry& shared, const Parent& parent);
[[nodiscard]] u32 instances_left(const Registry& shared, const TypeRef& type);

// A byte of the file that is somebody's. kOne: nobody else's at the same time; kFirst: nobody had
// it, and who is given the same descriptor has it from then on, too (kMany).
// kNode: has the device's own node open, bound or not; kBound: to an iommufd; kOwnNode: has bound
// it, which keeps the group's file out.
enum class ClaimKind : u32 { kGroup, kDevice, kBound, kRemover, kNode, kOwnNode };
enum class Share : u8 { kOne, kFirst, kMany };
using Claim = Box<host::HeldFd>;
// Failure: EBUSY (somebody has it), EMFILE, ENOMEM.
[[nodiscard]] Result<Claim> claim(ClaimKind kind, u64 born, Share share);
[[nodiscard]] bool is_claimed(ClaimKind kind, u64 born);
// Does anybody keep it from being removed?
[[nodiscard]] inline bool is_in_use(u64 born) {
  return is_claimed(ClaimKind::kDevice, born) || is_claimed(ClaimKind::kNode, born);
}

// Which registry it is, for a process that may have another. 0: none.
[[nodiscard]] u64 registry_identity();

void registry_after_fork_child();
// For tests: the next registry() maps afresh.
void debug_leave_registry();

}  // namespace stagetwo::vfio

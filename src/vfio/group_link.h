// SPDX-License-Identifier: Apache-2.0
#pragma once

// What a group that is open has in the place of a container, in the registry: whoever has a
// descriptor of the group, or of its device, finds it there, whichever process has set it.
//
//   const Opening opening = begin_opening(slot);   a fresh open; what the last one left is in it
//   set_link(slot, opening.number, link)           SET_CONTAINER
//   link_of(slot, opening.number)                  everything else
//   take_link(slot, opening.number)                UNSET_CONTAINER, the last close
//
// Analogue: container, iommufd and container_users of struct vfio_group (kernel file:
// drivers/vfio/group.c).
// I1  A link is of one opening: of an earlier one there is none, and nothing is changed by it.
// Locking: the registry's, for each call.

#include "base/result.h"
#include "base/types.h"

namespace stagetwo::vfio {

struct GroupLink {
  enum class Kind : u32 { kNone, kContainer, kIommufd };
  Kind kind = Kind::kNone;
  u32 process = 0;            // who has set it, and has the file open
  u64 device = 0, inode = 0;  // of the file
  friend bool operator==(const GroupLink&, const GroupLink&) = default;
};

struct Opening {
  u64 number;
  GroupLink before;  // of who died with the group open
};
// Pre: the caller has the group's claim, as the first. Failure: as registry().
[[nodiscard]] Result<Opening> begin_opening(u32 slot);
// Is it the last one?
[[nodiscard]] bool is_opening(u32 slot, u64 opening);
[[nodiscard]] GroupLink link_of(u32 slot, u64 opening);
// Failure: EINVAL (there is one, or the opening is over).
[[nodiscard]] Result<void> set_link(u32 slot, u64 opening, const GroupLink& link);
[[nodiscard]] GroupLink take_link(u32 slot, u64 opening);

}  // namespace stagetwo::vfio

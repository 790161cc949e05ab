// SPDX-License-Identifier: Apache-2.0
#pragma once

// What sysfs shows of mediated devices, as real files and links below `sys` in the session's
// directory, and which nodes /dev/vfio lists, below `dev` there (vfio/tree_files.h): whoever knows
// the way there lists, reads and follows them without our help. What is
// written to `create` and `remove` is taken elsewhere (abi/vfio/sysfs.h); the files stand here so
// that they are seen. Without a session there is no tree.
//
// Analogue: drivers/vfio/mdev/mdev_sysfs.c, and the iommu groups' part of drivers/iommu/iommu.c.
// What cannot be written (a full disk) is missing: the registry alone decides.
// Locking: the registry's. Not for other rooms.

#include "vfio/bus.h"
#include "vfio/registry.h"

namespace stagetwo::vfio {

inline constexpr std::string_view kTreeFolder = "sys";

// The parents and their types. False: there is no session.
bool tree_start(const Registry& shared);
void tree_add(const Registry& shared, const Listed& device);
// It is being removed: not a second time, and nobody opens it any more.
void tree_begin_removal(const Listed& device);
void tree_remove(const Listed& device);
void tree_count(const Registry& shared, const TypeRef& type);  // what is left of its parent's

}  // namespace stagetwo::vfio

// SPDX-License-Identifier: Apache-2.0
#pragma once

// The mediated devices of the session: made and removed by UUID, listed, held open. A device is its
// own IOMMU group; group and device are numbered as its slot is.
//
// Analogue: mdev_device_create, mdev_device_remove (kernel file: drivers/vfio/mdev/mdev_core.c),
// with the sysfs tree that goes with them (vfio/sysfs_tree.h).
// Differs: a removal whose remover has died is finished by the last close, or by whoever comes
// next. I1  A device that is open is not removed: the remover waits. I2  At most one removal of a
// device is under way. Locking: the registry's (rank kContainer), inside each function. Context:
// any thread, no lock below kContainer held. State: the session's (vfio/registry.h).

#include <optional>

#include "vfio/mdev.h"
#include "vfio/uuid.h"

namespace stagetwo::vfio {

// The major number of /dev/vfio/devices/vfioN; the kernel takes a free one.
inline constexpr u32 kNodeMajor = 510;

struct Listed {
  u32 slot = 0;
  u64 born = 0;
  Uuid uuid{};
  TypeRef type;  // empty: this process has no such parent
  bool removing = false;
  [[nodiscard]] u32 group() const { return slot; }
  [[nodiscard]] u32 number() const { return slot; }
};

// Which PCI functions the session has: names of parents, separated by commas ("ioat,ioat"). Kept;
// to be called before start_bus().
void want_functions(std::string_view names);
// The tree of sysfs, the registry, the functions wanted. Failure: as registry(); without a session
// there is no tree.
Result<void> start_bus();
// What was being removed by a remover that has died goes as soon as nobody holds it: whoever lets
// go of a device calls this, and whoever looks at the tree. 64 loads where nothing is. Context: no
// lock from the registry's on.
void finish_left();

// Failure, in this order: EEXIST, EUSERS or ENOSPC (vfio/mdev.h), ENOMEM.
Result<void> create_device(const TypeRef& type, const Uuid& uuid);
[[nodiscard]] u32 available_instances(const TypeRef& type);

// The first at or behind `slot`. Empty: no more.
[[nodiscard]] std::optional<Listed> device_from(u32 slot);
[[nodiscard]] std::optional<Listed> find_device(const Uuid& uuid);
[[nodiscard]] std::optional<Listed> device_at(u32 slot);  // one that is not being removed

// By which sysfs and VFIO_GROUP_GET_DEVICE_FD know it: a UUID, or a function's address on its bus.
void append_name(const Listed& device, TextWriter& out);

// From now on nobody opens it. Failure: ENODEV, EAGAIN (somebody does already).
class Removal;
[[nodiscard]] Result<Removal> begin_removal(const Uuid& uuid);
// Waits until nobody has it open and takes it away. Context: no lock.
void finish_removal(Removal removal);

void bus_after_fork_child();

}  // namespace stagetwo::vfio

#include "vfio/removal.h"

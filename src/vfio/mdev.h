// SPDX-License-Identifier: Apache-2.0
#pragma once

// Parents of mediated devices and the types they offer. A parent registers in each process; what
// devices there are stands in the session (vfio/bus.h).
//
// Analogue: mdev_register_parent, struct mdev_type (kernel file: include/linux/mdev.h).
// Locking: a leaf around the table. Lifetime: a registered parent is for ever.

#include <string_view>

#include "base/text.h"
#include "vfio/model.h"

namespace stagetwo::vfio {

struct PciIdentity;

struct Type {
  std::string_view name;    // "1"; its folder in sysfs is PARENT-name
  std::string_view pretty;  // what `name` says there
  u32 units;                // how many of the parent's it takes
};

// Who counts what is left: the core (over: EUSERS) or the parent's driver (over: ENOSPC).
enum class Counting : u8 { kCore, kDriver };

struct Parent {
  static constexpr size_t kLongestName = 23;
  std::string_view name;
  std::string_view description;  // empty: the driver has none
  u32 units;
  Counting counting;
  // What the IOMMU knows the parent by, when it can tell its devices' requests apart by PASID: a
  // container they join has a domain then. 0 bits: isolation is the model's own business.
  u16 source = 0;
  u8 pasid_bits = 0;
  // Its devices are PCI functions of this identity and no mediated devices: they stand on the PCI
  // bus of the session from its beginning (vfio/bus.h), not on the bus of mediated devices.
  const PciIdentity* function = nullptr;
  std::span<const Type> types;
  Result<Box<Model>> (*make)(const Type& type, const ModelContext& context);
};

inline constexpr unsigned kMaxParents = 16;

// Failure: EINVAL (a name that is too long, or no type), EEXIST, ENOSPC.
[[nodiscard]] Result<void> register_parent(const Parent& parent);
// The nth; nullptr: there are no more. Those of this room are there before any other.
[[nodiscard]] const Parent* parent_at(unsigned index);
[[nodiscard]] const Parent* find_parent(std::string_view name);
struct TypeRef {
  const Parent* parent = nullptr;
  u32 type = 0;
  explicit operator bool() const { return parent != nullptr; }
  [[nodiscard]] const Type& get() const { return parent->types[type]; }
};
// "serial-1". Empty: there is none, or it is a function's.
[[nodiscard]] TypeRef find_type(std::string_view folder);
// "ioat". Empty: there is no such PCI function.
[[nodiscard]] TypeRef find_function(std::string_view name);
void append_folder(const TypeRef& type, TextWriter& out);

}  // namespace stagetwo::vfio

// SPDX-License-Identifier: Apache-2.0
#pragma once

// The table of objects by their types, and which process this is: what of Locked is not called but
// put where it is used. Included by iommu/locked.h alone.

#include "base/process_stamp.h"
#include "iommu/locked.h"

namespace stagetwo::iommu {

inline bool Locked::is_this_process(u32 process) const {
  return process == c_.process_ && c_.stamp_ == stamp_of_process();
}
inline Result<u32> Locked::this_process() {
  if (c_.process_ != kProcesses && is_this_process(c_.process_)) [[likely]]
    return c_.process_;
  return find_this_process();
}

inline void Locked::uncharge(host::PinCharge mode, u64 pages) {
  if (guard_.notes()) [[unlikely]]
    return uncharged_.add(mode, false, pages);
  host::uncharge_pins(mode, pages);
}
inline void Locked::uncharge_dead(host::PinCharge mode, u64 pages) {
  if (guard_.notes()) [[unlikely]]
    return uncharged_.add(mode, true, pages);
  host::uncharge_pins_of_the_dead(mode, pages);
}

template <typename T>
Result<T*> Locked::find(u32 id) const {
  Object* const object = ST_TRY(find(id));
  if (!TypeOf<T>::is(object->type)) return refuse(ENOENT);
  return reinterpret_cast<T*>(object);
}

template <typename T>
Result<T*> Locked::find_made(u32 id) const {
  Object* const object = object_at(id);
  if (object == nullptr || !TypeOf<T>::is(object->type)) return refuse(ENOENT);
  return reinterpret_cast<T*>(object);
}

template <typename T>
Result<T*> Locked::add(ObjectType type, const char* site) {
  T* const made = ST_TRY(arena().make<T>(site));
  made->object.type = type;
  if (const auto inserted = insert_object(&made->object); !inserted) {
    arena().destroy(made);
    return refuse(inserted.error());
  }
  return made;
}

template <typename T>
void Locked::remove(T* object) {
  erase_object(&object->object);
  arena().destroy(object);
}

}  // namespace stagetwo::iommu

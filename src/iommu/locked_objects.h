// SPDX-License-Identifier: Apache-2.0
#pragma once

// The table of objects by their types; included by iommu/locked.h alone.

#include "iommu/locked.h"

namespace stagetwo::iommu {

template <typename T>
Result<T*> Locked::find(u32 id) const {
  Object* const object = ST_TRY(find(id));
  if (!TypeOf<T>::is(object->type)) return refuse(ENOENT);
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

// SPDX-License-Identifier: Apache-2.0
#pragma once

// Which struct an object is, by its type. Part of locked.h.

#include "iommu/objects.h"

namespace stagetwo::iommu {

template <typename T>
struct TypeOf;
template <>
struct TypeOf<Ioas> {
  static bool is(ObjectType t) { return t == ObjectType::kIoas; }
};
template <>
struct TypeOf<Hwpt> {
  static bool is(ObjectType t) {
    return t == ObjectType::kHwptPaging || t == ObjectType::kHwptNested;
  }
};
template <>
struct TypeOf<Device> {
  static bool is(ObjectType t) { return t == ObjectType::kDevice; }
};
template <>
struct TypeOf<TestDevice> {
  static bool is(ObjectType t) { return t == ObjectType::kTestDevice; }
};
template <>
struct TypeOf<Access> {
  static bool is(ObjectType t) { return t == ObjectType::kAccess; }
};
template <>
struct TypeOf<FaultQueue> {
  static bool is(ObjectType t) { return t == ObjectType::kFault; }
};

}  // namespace stagetwo::iommu

// SPDX-License-Identifier: Apache-2.0
#pragma once

// Links between what stands in an arena (arena.h, I2): every process may have it at another
// address. Locking: the arena's. A link is noted before it is changed (kept.h).

#include "base/types.h"
#include "iommu/kept.h"

namespace stagetwo::iommu {

// A link inside an arena: the distance from itself. Not to be copied but by get().
template <typename T>
class RelPtr {
 public:
  constexpr RelPtr() = default;
  RelPtr(const RelPtr&) = delete;
  RelPtr& operator=(const RelPtr&) = delete;
  RelPtr& operator=(T* to) {
    undo::note(&delta_, sizeof(delta_));
    set_unnoted(to);
    return *this;
  }
  void set_unnoted(T* to) { delta_ = to == nullptr ? 0 : address(to) - address(this); }  // kept.h
  [[nodiscard]] T* get() const {
    if (delta_ == 0) return nullptr;
    return reinterpret_cast<T*>(static_cast<std::uintptr_t>(address(this) + delta_));
  }
  operator T*() const { return get(); }
  T* operator->() const { return get(); }

 private:
  template <typename U>
  static s64 address(const U* at) {
    return static_cast<s64>(reinterpret_cast<std::uintptr_t>(at));
  }
  s64 delta_ = 0;
};

// Blocks that are used one after the other stand one behind the other, as a rule: asks the
// processor for those that come after `next` does, which were last used long ago. A wrong guess
// costs nothing.
inline void prefetch_ahead(const void* block, const void* next) {
  constexpr u64 kBlocks = 8, kLine = 64;
  const u64 at = reinterpret_cast<u64>(block), stride = reinterpret_cast<u64>(next) - at;
  __builtin_prefetch(reinterpret_cast<const void*>(at + kBlocks * stride), 1);
  __builtin_prefetch(reinterpret_cast<const void*>(at + kBlocks * stride + kLine), 1);
}

}  // namespace stagetwo::iommu

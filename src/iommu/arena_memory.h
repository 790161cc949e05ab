// SPDX-License-Identifier: Apache-2.0
#pragma once

// Page tables in an arena: an entry holds an offset of it. Part of domain.cc and walk.cc.

#include "iommu/arena.h"
#include "pt/format.h"

namespace stagetwo::iommu {

template <typename Word>
struct ArenaMemory : pt::DirectMemory<Word> {
  explicit ArenaMemory(const Arena& of) : arena(&of) {}
  sync::Atomic<Word>* entries(u64 offset) const {
    return static_cast<sync::Atomic<Word>*>(arena->at(offset));
  }
  const Arena* arena;
};

}  // namespace stagetwo::iommu

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
  // Writes are noted (kept.h).
  static void store(sync::Atomic<Word>* entry, Word word) {
    undo::note(entry, sizeof(Word));
    Direct::store(entry, word);
  }
  static Word exchange(sync::Atomic<Word>* entry, Word word) {
    undo::note(entry, sizeof(Word));
    return Direct::exchange(entry, word);
  }
  static bool compare_exchange(sync::Atomic<Word>* entry, Word& expected, Word word) {
    undo::note(entry, sizeof(Word));
    return Direct::compare_exchange(entry, expected, word);
  }
  static Word fetch_and(sync::Atomic<Word>* entry, Word mask) {
    undo::note(entry, sizeof(Word));
    return Direct::fetch_and(entry, mask);
  }
  static Word fetch_or(sync::Atomic<Word>* entry, Word bits) {
    undo::note(entry, sizeof(Word));
    return Direct::fetch_or(entry, bits);
  }
  const Arena* arena;

 private:
  using Direct = pt::DirectMemory<Word>;
};

}  // namespace stagetwo::iommu

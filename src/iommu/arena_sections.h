// SPDX-License-Identifier: Apache-2.0
#pragma once

// Sections of an arena: its lock, its head, and what of it is not called but put where it is used.
// Included by iommu/arena.h alone, whose rules hold here.

#include "iommu/arena.h"

namespace stagetwo::iommu {

// One that notes.
class Arena::Section {
 public:
  void begin(const Arena& arena), end();
  static void note(u8* base, u64 offset, u64 bytes);

 private:
  const Arena* arena_;
  unsigned place_;  // among those of the process
};

struct Arena::Header {
  static constexpr u64 kMagic = 0x756d6d6f69327473;  // "st2iommu"
  static constexpr u64 kVersion = 4;
  static constexpr unsigned kOrders = 34;
  u64 magic;
  u64 version;
  sync::ProcessMutex lock;
  u32 broken;
  sync::Atomic<u32> processes;  // that have ever taken the lock
  Kept<u64> heap_end;           // the first byte never used
  Kept<u64> kept_back;          // so much behind it is not for everybody
  Kept<s64> blocks;
  Kept<u64> free_lists[kOrders];  // offsets; a free block's first word is the next one's
  // Freed by the section under way or the one before, and where each list ends; bits: by order.
  Kept<u64> limbo[kOrders], limbo_last[kOrders], limbo_orders;
  Kept<u32> unsettled;  // see Guard::recovered()
  // Of the section under way: bytes of its notes, and where the heap ended.
  u64 notes, heap_before;
  u32 noted;  // sections note
};

inline Arena::Header& Arena::header() const {
  static_assert(sizeof(Header) <= kRoot);
  return *reinterpret_cast<Header*>(base_);
}

// Whoever takes one takes the next one soon, and it was last used long ago.
inline void* Arena::take(unsigned order, const char* site) {
  if (failpoint::should_fail(site)) [[unlikely]]
    return nullptr;
  return take_unasked(order);
}

inline void* Arena::take_unasked(unsigned order) {
  Header& h = header();
  const u64 offset = h.free_lists[order];
  if (offset == 0) [[unlikely]]
    return take_new(order);
  u8* const block = base_ + offset;
  u64 next = 0;
  memcpy(&next, block, sizeof(u64));
  if (undo::sections.load(sync::kRelaxed) != 0) [[unlikely]]
    note_taken(block, order);
  h.free_lists[order].set_unnoted(next);
  prefetch_ahead(block, base_ + next);
  h.blocks.set_unnoted(h.blocks + 1);
  return block;
}

inline void Arena::give(void* block, unsigned order) {
  if (undo::sections.load(sync::kRelaxed) != 0) [[unlikely]]
    return give_later(block, order);
  Header& h = header();
  const u64 next = h.free_lists[order];
  memcpy(block, &next, sizeof(u64));
  h.free_lists[order].set_unnoted(offset_of(block));
  h.blocks.set_unnoted(h.blocks - 1);
}

class TA_SCOPED Arena::Guard {
 public:
  explicit Guard(const Arena& arena) TA_ACQ(arena.header().lock)
      : guard_(of(arena).lock, sync::Rank::kIoas), header_(arena.header()) {
    if (guard_.died()) [[unlikely]]
      arena.recover();
    if (header_.processes.load(sync::kRelaxed) > 1 || debug_note_always) [[unlikely]] {
      section_.begin(arena);
      notes_ = true;
    }
  }
  ~Guard() TA_REL() {
    if (notes_) [[unlikely]]
      section_.end();
  }
  [[nodiscard]] bool ok() const { return header_.broken == 0; }
  // A holder died and what it did is undone; what stands beside the arena is to be looked at.
  [[nodiscard]] bool recovered() const { return header_.unsettled != 0; }
  void settled() { header_.unsettled = 0; }
  [[nodiscard]] bool notes() const { return notes_; }

 private:
  static Header& of(const Arena& arena) {
    const u32 stamp = stamp_of_process();
    if (arena.stamp_.load(sync::kRelaxed) != stamp) [[unlikely]]
      arena.note_process(stamp);
    return arena.header();
  }

  sync::ProcessMutexGuard guard_;
  Header& header_;
  bool notes_ = false;
  Section section_;
};

template <typename F>
void Arena::debug_each_free(F&& fn) const {
  const Header& h = header();
  for (unsigned order = 0; order < Header::kOrders; ++order) {
    for (u64 list : {h.free_lists[order].get(), h.limbo[order].get()}) {
      for (u64 at = list; at != 0; memcpy(&at, base_ + at, sizeof(u64))) fn(at, u64{1} << order);
    }
  }
}

inline u64 Arena::debug_kept_from() {
  return offsetof(Header, heap_end);
}
inline u64 Arena::debug_kept_end() {
  return offsetof(Header, notes);
}
inline u64 Arena::debug_heap_end() const {
  return header().heap_end;
}

}  // namespace stagetwo::iommu

// SPDX-License-Identifier: Apache-2.0
// What a section of an arena overwrites, and putting it back (kept.h). A note is the old bytes, in
// whole words, then where they stood and how many they are: so notes are read from their end.
#include <string.h>
#include <sys/mman.h>

#include <algorithm>

#include "base/bits.h"
#include "base/plain_word.h"
#include "base/process_stamp.h"
#include "base/sys.h"
#include "iommu/arena.h"

namespace stagetwo::iommu {
namespace undo {

namespace {

// Where the arenas stand whose sections note; 0: a free place. An arena has one section at a time,
// and only the thread that has it writes its words.
constexpr unsigned kMostSections = 64;
constinit sync::Atomic<u8*> bases[kMostSections] = {};

struct NoteEnd {
  u64 offset;
  u64 bytes;
};

// An engine may mark a word of a page table meanwhile.
void copy(void* to, const void* from, u64 bytes) {
  const bool is_word = bytes == sizeof(u64) && reinterpret_cast<u64>(from) % sizeof(u64) == 0 &&
                       reinterpret_cast<u64>(to) % sizeof(u64) == 0;
  if (!is_word) {
    memcpy(to, from, bytes);
    return;
  }
  copy_word(static_cast<u64*>(to), static_cast<const u64*>(from));
}

u64 in_words(u64 bytes) {
  return (bytes + sizeof(u64) - 1) & ~(sizeof(u64) - 1);
}

}  // namespace

void note_in_section(const void* at, size_t bytes) {
  for (const auto& place : bases) {
    u8* const base = place.load(sync::kRelaxed);
    if (base == nullptr) continue;
    const u64 offset = reinterpret_cast<u64>(at) - reinterpret_cast<u64>(base);
    if (offset < Arena::kUndo && bytes <= Arena::kUndo - offset) {
      return Arena::Section::note(base, offset, bytes);
    }
  }
}

namespace {
bool is_noting(const u8* base) {
  for (const auto& place : bases) {
    if (place.load(sync::kRelaxed) == base) return true;
  }
  return false;
}
}  // namespace

}  // namespace undo

// Who comes first after a fork, or by a descriptor it was sent, says that it is there.
void Arena::note_process(u32 stamp) const {
  if (stamp_.exchange(stamp, sync::kRelaxed) != stamp) header().processes.fetch_add(1);
}

// With no place left it does not note, as one that nobody shares.
void Arena::Section::begin(const Arena& arena) {
  arena_ = &arena;
  Header& h = arena.header();
  h.heap_before = h.heap_end;
  for (place_ = 0; place_ < undo::kMostSections; ++place_) {
    u8* free = nullptr;
    if (undo::bases[place_].compare_exchange(free, arena.base_, sync::kRelaxed)) break;
  }
  h.noted = place_ < undo::kMostSections ? 1 : 0;
  in_program_order();
  undo::sections.fetch_add(1, sync::kRelaxed);
  if (debug_hooks.begin != nullptr) debug_hooks.begin(arena);
  const_cast<Arena&>(arena).settle_limbo();
}

void Arena::Section::end() {
  if (debug_hooks.end != nullptr) debug_hooks.end(*arena_);
  Header& h = arena_->header();
  const u64 notes = h.notes;
  in_program_order();
  h.notes = 0;
  in_program_order();
  undo::sections.fetch_sub(1, sync::kRelaxed);
  if (place_ < undo::kMostSections) undo::bases[place_].store(nullptr, sync::kRelaxed);
  if (notes > kUndoKept) {
    // Memory is given back but for a beginning.
    const u64 rest = (notes - kUndoKept + kPageBytes - 1) & ~(kPageBytes - 1);
    static_cast<void>(sys::madvise(arena_->base_ + kUndo + kUndoKept, rest, MADV_REMOVE));
  }
}

void Arena::Section::note(u8* base, u64 offset, u64 bytes) {
  Header& h = *reinterpret_cast<Header*>(base);
  const u64 words = undo::in_words(bytes);
  if (words + sizeof(undo::NoteEnd) > kFileBytes - kUndo - h.notes) {
    h.noted = 0;  // no room: who dies now leaves it broken
    return;
  }
  u8* const to = base + kUndo + h.notes;
  undo::copy(to, base + offset, bytes);
  const undo::NoteEnd end{offset, bytes};
  memcpy(to + words, &end, sizeof(end));
  in_program_order();
  h.notes += words + sizeof(end);
  in_program_order();
}

// Everything is as it was before the section began. Pre: the lock.
void Arena::put_back() const {
  Header& h = header();
  const u64 grown = h.heap_end;
  // Memory that nobody has had reads as zero (I1).
  if (grown > h.heap_before) {
    u8* const first = base_ + h.heap_before;
    if (!sys::madvise(first, grown - h.heap_before, MADV_REMOVE)) {
      memset(first, 0, grown - h.heap_before);
    }
  }
  restore_notes();
  in_program_order();
  h.notes = 0;
}

void Arena::restore_notes() const {
  for (u64 at = header().notes; at != 0;) {
    undo::NoteEnd end{};
    memcpy(&end, base_ + kUndo + at - sizeof(end), sizeof(end));
    at -= sizeof(end) + undo::in_words(end.bytes);
    undo::copy(base_ + end.offset, base_ + kUndo + at, end.bytes);
  }
}

// The last holder died inside. Broken, if it had not noted what it did.
void Arena::recover() const {
  if (header().noted == 0) {
    header().broken = 1;
    return;
  }
  put_back();
  header().unsettled = 1;
}

// Before a block is taken from its list.
void Arena::note_taken(const void* block, unsigned order) const {
  const Header& h = header();
  undo::note(block, sizeof(u64));
  undo::note(&h.free_lists[order], sizeof(u64));
  undo::note(&h.blocks, sizeof(u64));
}

// What a section frees nobody gets in the same section: it may still be wanted back.
void Arena::give_later(void* block, unsigned order) {
  Header& h = header();
  if (!undo::is_noting(base_)) {
    // Another arena's section notes.
    if (order >= kReturned) empty_block(block, order);
    const u64 next = h.free_lists[order];
    memcpy(block, &next, sizeof(u64));
    h.free_lists[order] = offset_of(block);
    --h.blocks;
    return;
  }
  undo::note(block, sizeof(u64));
  const u64 next = h.limbo[order];
  memcpy(block, &next, sizeof(u64));
  h.limbo[order] = offset_of(block);
  if (next == 0) h.limbo_last[order] = offset_of(block);
  h.limbo_orders |= u64{1} << order;
  --h.blocks;
}

void Arena::settle_limbo() {
  Header& h = header();
  for (unsigned order = 0; h.limbo_orders != 0 && order < Header::kOrders; ++order) {
    if (h.limbo[order] == 0) continue;
    for (u64 at = h.limbo[order]; order >= kReturned && at != 0;) {
      u64 next = 0;
      memcpy(&next, base_ + at, sizeof(u64));
      undo::note(base_ + at, sizeof(u64));
      empty_block(base_ + at, order);
      memcpy(base_ + at, &next, sizeof(u64));
      at = next;
    }
    u8* const last = base_ + h.limbo_last[order];
    undo::note(last, sizeof(u64));
    const u64 behind = h.free_lists[order];
    memcpy(last, &behind, sizeof(u64));
    h.free_lists[order] = h.limbo[order];
    h.limbo[order] = 0;
    h.limbo_last[order] = 0;
  }
  if (h.limbo_orders != 0) h.limbo_orders = 0;
}

}  // namespace stagetwo::iommu

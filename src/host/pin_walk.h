// SPDX-License-Identifier: Apache-2.0
#pragma once

// Finding pinned pages by what the client has where. Part of pin_table.h.

#include <algorithm>

#include "host/pin_table.h"

namespace stagetwo::host {

// Does the slot stand for a page the client has, or will have if the change that holds it fails?
inline bool is_at_client(u64 word) {
  const bool is_lost = (word & kPageLost) != 0 && (word & kHeldDepth) == 0;
  return word != 0 && (word & kStored) == 0 && !is_lost;
}

// At the client's address, but not where its slot says: it was moved by mremap.
inline bool is_stray(const PinBlock& block, u32 slot, u64 word) {
  const u64 home = block.key.index * kBlockBytes + u64{slot} * kPageSize;
  return block.key.is_private() && is_at_client(word) && (word & kPageMask) != home;
}

// One more bit of a slot's word: it is the client's own copy of a file's page.
inline constexpr u64 kOfFile = 1 << 10;

constexpr u64 rights_bits(Prot prot) {
  return (prot.read ? 0 : kNoRead) | (prot.write ? 0 : kNoWrite);
}

template <typename F>
void PinTable::each_home(HvaRange range, F&& fn) {
  const auto look = [&](PinBlock* block, u32 first, u32 end) {
    for (u32 slot = first; slot < end; ++slot) {
      const u64 word = block->words[slot].load(sync::kRelaxed);
      if (!is_at_client(word)) continue;
      if (range.contains(Hva(word & kPageMask))) fn(block, slot);
    }
  };
  const u64 first = range.start().raw() / kBlockBytes;
  const u64 last = range.empty() ? first : (range.end().raw() - 1) / kBlockBytes;
  const bool by_key = strays_ == 0 && last - first < blocks_.size();
  for (u64 index = first; by_key && index <= last; ++index) {
    PinBlock** chain = blocks_.find({0, 0, index});
    const u64 base = index * kBlockBytes;
    const u64 from = std::max(base, range.start().raw()) - base;
    const u64 to = std::min(base + kBlockBytes, range.end().raw()) - base;
    for (PinBlock* block = chain == nullptr ? nullptr : *chain; block != nullptr;) {
      PinBlock* next = block->next_same;
      look(block, static_cast<u32>(from / kPageSize), static_cast<u32>(to / kPageSize));
      block = next;
    }
  }
  for (u32 number = 0; !by_key && number < made_numbers_; ++number) {
    PinBlock* block = block_of(number);
    if (block != nullptr && block->key.is_private()) look(block, 0, kBlockPages);
  }
}

template <typename F>
void PinTable::each_of(const PinnedChange& change, F&& fn) {
  if (change.file_.inode == 0) return each_home(change.range_, fn);
  for (u32 number = 0; number < made_numbers_; ++number) {
    PinBlock* block = block_of(number);
    if (block == nullptr || block->key.inode != change.file_.inode ||
        block->key.device != change.file_.device) {
      continue;
    }
    for (u32 slot = 0; slot < kBlockPages; ++slot) {
      const u64 page = block->key.index * kBlockPages + slot;
      const u64 word = block->words[slot].load(sync::kRelaxed);
      const bool mine = page >= change.file_.first && page < change.file_.end;
      if (mine && is_at_client(word)) fn(block, slot);
    }
  }
}

// Neighbours are gathered into one piece: consecutive slots, addresses and equal bits.
template <typename F>
unsigned PinTable::collect(const PinnedChange& change, Piece* out, unsigned room, F&& wanted) {
  const sync::MutexGuard guard(lock_);
  unsigned count = 0;
  each_of(change, [&](PinBlock* block, u32 slot) {
    const u64 word = block->words[slot].load(sync::kRelaxed);
    if ((word & kHeldDepth) != change.depth_ || !wanted(word)) return;
    Piece* last = count == 0 ? nullptr : &out[count - 1];
    if (last != nullptr && last->block == block && last->first + last->pages == slot &&
        last->word + last->pages * kPageSize == word) {
      ++last->pages;
    } else if (count < room) {
      out[count++] = {block, slot, 1, word};
    }
  });
  return count;
}

}  // namespace stagetwo::host

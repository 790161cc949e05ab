// SPDX-License-Identifier: Apache-2.0
// Entering pages that are present into blocks, and giving slots and blocks back.
#include "host/pin_table.h"

#include <algorithm>

#include "base/check.h"
#include "base/guard.h"
#include "host/page_owner.h"
#include "host/pin_walk.h"
#include "host/shared_objects.h"

namespace stagetwo::host {
namespace {

constexpr u32 kMostPins = ~u32{0};

// The bits of a slot whose page is reached at home.
u64 home_bits(const Mapping& mapping) {
  return rights_bits(mapping.prot) | (mapping.file_backed ? kOfFile : 0);
}

}  // namespace

bool PinTable::Sink::add(Frame frame, u64 pages) {
  const bool follows =
      done.runs != 0 && runs[done.runs - 1].first + runs[done.runs - 1].pages == frame;
  if (!follows && done.runs == room) return false;
  if (!follows) runs[done.runs++] = {frame, 0};
  runs[done.runs - 1].pages += pages;
  done.pages += pages;
  return true;
}

// The ordinary case, a block at a time: private pages at home that have a slot of their own in the
// only block of their address, free or pinned there already. Answers the first it did not enter.
// Pre: within a block's bytes.
Hva PinTable::enter_home(HvaRange piece, u64 bits, Sink* sink) {
  const PinKey key{0, 0, piece.start().raw() / kBlockBytes};
  PinBlock** const chain = blocks_.find(key);
  if (strays_ != 0 || (chain != nullptr && (*chain)->next_same != nullptr)) return piece.start();
  PinBlock* block = chain == nullptr ? nullptr : *chain;
  if (block == nullptr) {
    const auto made = make_block(key);
    if (!made) return piece.start();
    block = *made;
  }
  const u32 first = static_cast<u32>(piece.start().raw() / kPageSize % kBlockPages);
  const u32 end = first + static_cast<u32>(piece.size() / kPageSize);
  u32 slot = first;
  u32 fresh = 0;
  for (; slot < end; ++slot) {
    const u64 word = block->words[slot].load(sync::kRelaxed);
    if (word != 0 && (!is_at_client(word) || block->counts[slot] == 0)) break;
    if (block->counts[slot] == kMostPins) break;
    fresh += word == 0;
  }
  if (slot == first || !sink->add(frame_of(block->number, first), slot - first)) {
    if (block->used == 0) free_block(block);
    return piece.start();
  }
  for (u32 i = first; i < slot; ++i) {
    ++block->counts[i];
    if (block->words[i].load(sync::kRelaxed) != 0) continue;
    const u64 home = key.index * kBlockBytes + u64{i} * kPageSize;
    // No device knows the frame yet.
    block->words[i].store(home | bits, sync::kRelease);
  }
  block->used += fresh;
  pinned_ += fresh;
  last_home_ = block;
  return piece.start() + u64{slot - first} * kPageSize;
}

// What pin_known() does, for a page like the one before.
std::optional<Frame> PinTable::pin_known_page(Hva at) {
  const sync::MutexGuard guard(lock_);
  PinBlock* const block = last_home_;
  const bool ordinary = block != nullptr && block->key.index == at.raw() / kBlockBytes &&
                        strays_ == 0 && known_.contains(at) && !owners_active();
  if (!ordinary) return std::nullopt;
  const u32 slot = static_cast<u32>(at.raw() / kPageSize % kBlockPages);
  sync::Atomic<u64>& word = block->words[slot];
  const u64 now = word.load(sync::kRelaxed);
  u32& count = block->counts[slot];
  if (now != 0 && (!is_at_client(now) || count == 0 || count == kMostPins)) return std::nullopt;
  if (now == 0) {
    word.store(at.raw(), sync::kRelease);  // no device knows the frame yet
    ++block->used;
    ++pinned_;
  }
  ++count;
  last_end_ = at + kPageSize;
  return frame_of(block->number, slot);
}

// Failure: not a page was entered. Fewer than asked is none.
Result<void> PinTable::enter(Wanted* wanted, Sink* sink) {
  const bool file = rules_of(kind_of(wanted->mapping)).has_alias;
  const u64 before = sink->done.pages;
  Hva at = wanted->piece.start();
  sink->done.shared = sink->done.shared || file;
  if (!file) at = enter_home(wanted->piece, home_bits(wanted->mapping), sink);
  for (; at < wanted->piece.end(); at += kPageSize) {
    Place place = file ? find_file(wanted->mapping, at) : find_home(at);
    const bool is_new = place.block == nullptr || place.block->counts[place.slot] == 0;
    if (is_new) {
      PinKey key{0, 0, at.raw() / kBlockBytes};
      u32 slot = static_cast<u32>(at.raw() / kPageSize % kBlockPages);
      if (file) {
        const u64 page = file_page(wanted->mapping, at);
        key = {wanted->mapping.device, wanted->mapping.inode, page / kBlockPages};
        slot = static_cast<u32>(page % kBlockPages);
      }
      const auto found = free_place(key, slot);
      if (!found) return before == sink->done.pages ? refuse(found.error()) : Result<void>{};
      place = *found;
    }
    PinBlock& block = *place.block;
    const auto word = word_for(place, wanted, at);
    const bool full = !word || block.counts[place.slot] == kMostPins ||
                      !sink->add(frame_of(block.number, place.slot));
    if (full) {
      if (block.used == 0) free_block(&block);
      const bool none = before == sink->done.pages && (!word || sink->done.runs < sink->room);
      return none ? Result<void>(refuse(ENOMEM)) : Result<void>{};
    }
    if (is_new) {
      ++block.used;
      ++pinned_;
    }
    ++block.counts[place.slot];
    if (block.words[place.slot].load(sync::kRelaxed) != *word) block.words[place.slot].store(*word);
  }
  return {};
}

// The word the slot has when it is pinned once more. Failure: ENOMEM, it has no alias that would
// do; the one made for it is taken when it does.
Result<u64> PinTable::word_for(const Place& place, Wanted* wanted, Hva at) {
  PinBlock& block = *place.block;
  const u64 now = block.words[place.slot].load(sync::kRelaxed);
  if (!rules_of(kind_of(wanted->mapping)).has_alias) {
    return now != 0 ? now : at.raw() | home_bits(wanted->mapping);
  }
  const bool write = wanted->how.write;
  if (now != 0 && (!write || (now & kNoWrite) == 0)) return now;
  for (size_t i = block.aliases.size(); i > 0; --i) {
    const PinAlias& alias = block.aliases[i - 1];
    const u64 page = block.key.index * kBlockPages + place.slot;
    const u64 offset = (page - alias.page) * kPageSize;
    if (page < alias.page || offset >= alias.map.bytes) continue;
    if (write && !alias.map.writable) continue;
    return (alias.map.at.raw() + offset) | kAlias | (alias.map.writable ? 0 : kNoWrite);
  }
  if (wanted->alias.bytes == 0) return refuse(ENOMEM);
  const u64 first = file_page(wanted->mapping, wanted->alias_page);
  if (!block.aliases.push_back({wanted->alias, first})) return refuse(ENOMEM);
  wanted->alias = {};
  return word_for(place, wanted, at);  // ends: the alias begins no later than this page
}

PinTable::Place PinTable::find_home(Hva at) {
  Place found;
  each_home(HvaRange(at, kPageSize), [&](PinBlock* block, u32 slot) { found = {block, slot}; });
  return found;
}

// A slot of the page in use, else a free one of a block that is there.
PinTable::Place PinTable::find_file(const Mapping& mapping, Hva at) {
  const u64 page = file_page(mapping, at);
  const u32 slot = static_cast<u32>(page % kBlockPages);
  PinBlock** chain = blocks_.find({mapping.device, mapping.inode, page / kBlockPages});
  Place free;
  for (PinBlock* block = chain == nullptr ? nullptr : *chain; block != nullptr;
       block = block->next_same) {
    const u64 word = block->words[slot].load(sync::kRelaxed);
    if (is_at_client(word)) return {block, slot};
    if (word == 0) free = {block, slot};
  }
  return free;
}

PinnedPages PinTable::pinned_in(HvaRange range) {
  PinnedPages found;
  const auto note = [&found](Hva at) {
    if (found.pages++ == 0 || at < found.first) found.first = at;
  };
  {
    const sync::MutexGuard guard(lock_);
    each_home(range, [&](PinBlock* block, u32 slot) {
      if (block->counts[slot] != 0) note(Hva(block->words[slot].load(sync::kRelaxed) & kPageMask));
    });
  }
  // Pages of shared memory are known by their files.
  for (Hva from = range.start(); from < range.end();) {
    const auto mapping = next_file_mapping(from, true);
    if (!mapping || mapping->range.start() >= range.end()) break;
    const Hva end = std::min(mapping->range.end(), range.end());
    const sync::MutexGuard guard(lock_);
    for (Hva at = std::max(from, mapping->range.start()); at < end; at += kPageSize) {
      const Place place = find_file(*mapping, at);
      if (place.block != nullptr && place.block->counts[place.slot] != 0) note(at);
    }
    from = end;
  }
  return found;
}

Result<PinTable::Place> PinTable::free_place(PinKey key, u32 slot) {
  PinBlock** chain = blocks_.find(key);
  for (PinBlock* block = chain == nullptr ? nullptr : *chain; block != nullptr;
       block = block->next_same) {
    if (block->words[slot].load(sync::kRelaxed) == 0) return Place{block, slot};
  }
  return Place{ST_TRY(make_block(key)), slot};
}

Result<PinBlock*> PinTable::make_block(PinKey key) {
  last_home_ = nullptr;
  // Every number there is has room among the free ones: giving it back needs no memory.
  if (free_numbers_.empty()) {
    if (made_numbers_ == kDirectories * kDirectoryBlocks) return refuse(ENOMEM);
    ST_TRY(free_numbers_.reserve(made_numbers_ + 1));
    auto& directory = directories_[made_numbers_ / kDirectoryBlocks];
    if (directory.load(sync::kRelaxed) == nullptr) {
      directory.store(ST_TRY(make<Directory>("host.pin_directory")), sync::kRelease);
    }
    static_cast<void>(free_numbers_.push_back(made_numbers_++));
  }
  const Hva window = ST_TRY(windows_.take());
  const u32 number = free_numbers_.back();
  const auto block = make<PinBlock>("host.pin_block", key, number, window);
  if (!block) {
    windows_.give(window);
    return block;
  }
  if (!key.is_private()) (*block)->object = alone_with(key.device, key.inode);
  if (PinBlock** chain = blocks_.find(key)) {
    (*block)->next_same = *chain;
    *chain = *block;
  } else if (const auto added = blocks_.insert(key, *block); !added) {
    destroy(*block);
    windows_.give(window);
    return refuse(added.error());
  }
  free_numbers_.pop_back();
  entry_of(number).store(*block, sync::kRelease);
  return block;
}

void PinTable::unlink(PinBlock* block) {
  PinBlock** link = blocks_.find(block->key);
  if (*link == block && block->next_same == nullptr) {
    blocks_.erase(block->key);
    return;
  }
  while (*link != block) link = &(*link)->next_same;
  *link = block->next_same;
}

// Pre: no slot of it is in use.
void PinTable::free_block(PinBlock* block) {
  last_home_ = nullptr;
  unlink(block);
  for (const PinAlias& alias : block->aliases) pin_store::drop_alias(alias.map);
  windows_.give(block->window);
  entry_of(block->number).store(nullptr, sync::kRelaxed);
  static_cast<void>(free_numbers_.push_back(block->number));
  destroy(block);
}

// Pre: its count is 0 and nobody holds it.
void PinTable::release(PinBlock* block, u32 slot) {
  const u64 word = block->words[slot].load(sync::kRelaxed);
  if ((word & kStored) != 0) {
    pin_store::drop(Hva(word & kPageMask), kPageSize);
    --stored_;
  } else if (strays_ != 0 && is_stray(*block, slot, word)) {
    --block->strays;
    --strays_;
  }
  block->words[slot].store(0, sync::kRelaxed);
  --pinned_;
  if (--block->used == 0) free_block(block);
}

void PinTable::unpin(FrameRun run) {
  const sync::MutexGuard guard(lock_);
  const u64 end = static_cast<u64>(run.first) + run.pages;
  for (u64 frame = static_cast<u64>(run.first); frame < end; ++frame) {
    PinBlock* const block = block_of(static_cast<u32>(frame / kBlockPages));
    const u32 slot = static_cast<u32>(frame % kBlockPages);
    ST_DCHECK(block != nullptr && block->counts[slot] != 0);
    if (--block->counts[slot] != 0) continue;
    // A change that has it in hand gives it back.
    const bool held = (block->words[slot].load(sync::kRelaxed) & kHeldDepth) != 0;
    if (!ST_GUARD(pins_unpin_held, held)) release(block, slot);
  }
}

}  // namespace stagetwo::host

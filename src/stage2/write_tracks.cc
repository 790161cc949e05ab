// SPDX-License-Identifier: Apache-2.0
#include "stage2/write_tracks.h"

#include "base/alloc.h"
#include "base/check.h"
#include "stage2/memslots.h"

namespace stagetwo::stage2 {

Result<WriteTracks*> WriteTracks::create(GfnRange frames) {
  WriteTracks* tracks = ST_TRY(make<WriteTracks>("stage2.write_tracks"));
  tracks->first_ = frames.start();
  u64 counts[kLevels];
  u64 total = 0;
  for (unsigned level = 1; level <= kLevels; ++level) {
    counts[level - 1] = index_of(level, frames.start(), frames.end() - 1) + 1;
    total += counts[level - 1];
  }
  tracks->bytes_ = total * sizeof(sync::Atomic<u32>);
  const Result<void*> pages = map_pages(tracks->bytes_, "stage2.write_track_pages");
  if (!pages) {
    stagetwo::destroy(tracks);
    return refuse(pages.error());
  }
  // Fresh pages are zero, which is an Atomic<u32> of zero.
  auto* next = static_cast<sync::Atomic<u32>*>(*pages);
  for (unsigned i = 0; i < kLevels; ++i) {
    tracks->counters_[i] = next;
    next += counts[i];
  }
  return tracks;
}

void WriteTracks::destroy(WriteTracks* tracks) {
  if (tracks == nullptr) return;
  unmap_pages(tracks->counters_[0], tracks->bytes_);
  stagetwo::destroy(tracks);
}

Result<bool> WriteTracks::add(Gfn gfn) {
  constexpr u32 kMost = 0xffff;  // the kernel's counters are this wide
  const u32 before = count(1, gfn);
  if (before == kMost) return refuse(EOVERFLOW);
  for (unsigned level = 1; level <= kLevels; ++level) {
    if (level > 1 && before != 0) break;
    counters_[level - 1][index_of(level, first_, gfn)].fetch_add(1, sync::kRelaxed);
  }
  total_ += before == 0;
  return before == 0;
}

bool WriteTracks::remove(Gfn gfn) {
  const u32 before = count(1, gfn);
  ST_CHECK(before != 0);
  for (unsigned level = 1; level <= kLevels; ++level) {
    if (level > 1 && before != 1) break;
    counters_[level - 1][index_of(level, first_, gfn)].fetch_sub(1, sync::kRelaxed);
  }
  total_ -= before == 1;
  return before == 1;
}

// --- the slots' side ---

Result<void> Memslots::track_writes(u32 address_space, Gfn gfn) {
  const sync::MutexGuard guard(slots_lock_);
  const Slot* slot = slot_at(address_space, gfn);
  if (slot == nullptr) return refuse(EINVAL);
  WriteTracks* tracks = slot->tracks.get();
  if (tracks == nullptr) {
    tracks = ST_TRY(WriteTracks::create(slot->gfns()));
    slot->tracks.set(tracks);
  }
  if (!ST_TRY(tracks->add(gfn))) return {};
  tracked_.fetch_add(1, sync::kSeqCst);
  const HvaRange page(slot->gfn_to_hva(gfn), kPageSize);
  host_->close_range(page);
  host_->zap_frames(address_space, {gfn, 1});
  host_->flush_and_wait();
  host_->open_range(page);
  return {};
}

Result<void> Memslots::untrack_writes(u32 address_space, Gfn gfn) {
  const sync::MutexGuard guard(slots_lock_);
  const Slot* slot = slot_at(address_space, gfn);
  WriteTracks* tracks = slot == nullptr ? nullptr : slot->tracks.get();
  if (tracks == nullptr || !tracks->is_tracked(gfn)) return refuse(EINVAL);
  if (tracks->remove(gfn)) tracked_.fetch_sub(1, sync::kSeqCst);
  return {};
}

// The slot goes, and with it what was tracked in it, as the kernel's metadata of a slot does.
void Memslots::forget_tracks(const Slot& slot) {
  WriteTracks* tracks = slot.tracks.get();
  if (tracks == nullptr) return;
  tracked_.fetch_sub(tracks->total(), sync::kSeqCst);
  WriteTracks::destroy(tracks);
}

const Slot* Memslots::slot_at(u32 address_space, Gfn gfn) const {
  const SlotSet* set = set_.load(sync::kRelaxed);  // stored under this lock
  if (set == nullptr || address_space >= policy_.address_spaces) return nullptr;
  const SlotNode* node = find_containing(set->by_gfn[address_space], gfn.raw());
  return node == nullptr ? nullptr : node->slot;
}

}  // namespace stagetwo::stage2

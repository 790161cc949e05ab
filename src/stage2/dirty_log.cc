// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "base/bits.h"
#include "base/guard.h"
#include "base/trace.h"
#include "host/access.h"
#include "stage2/memslots.h"

// Marks: who makes them, who takes them, and what else is taken with them.
//
// A guest's store needs the right of its entry (W). While a slot has a log, whoever gives that
// right marks the page afterwards, in the section in which he gave it; so an entry with W stands
// for a marked page (the world checker asks). A harvest takes marks, then the rights of what was
// marked (protect_pages), then waits for whoever may still use one (flush_and_wait), then answers:
//
//   vCPU                                    | harvest
//   W, then the mark; stores                | takes the mark: the page is in this harvest
//                                           | takes W
//   stores again, by its cached translation | flush: waits
//   polls: drops the translation, acks      |
//   next store: no W: a fault, marks again  | returns: this harvest's pages hold every store so far
//
//   W                                       | takes the marks: not this page's
//   the mark; stores                        | returns; W stays; the next harvest has the page
//
// (tdp_protect.cc has the entries' side.) Manual protection leaves all of it to CLEAR. KVM's own
// accesses have no entry: they store and mark in one read section, for which the flush waits too.
//
// With rings the same bits say which pages are in some ring: a harvest of theirs is a reset.

namespace stagetwo::stage2 {

void Memslots::mark_dirty(const Slot& slot, Gfn gfn, DirtyRing* ring) {
  if (slot.dirty == nullptr) return;
  const u64 page = gfn - slot.base_gfn;
  sync::Atomic<u64>& word = slot.dirty->words[page / 64];
  const u64 bit = u64{1} << (page % 64);
  // Not asked first whether it is set: whoever takes the bit afterwards must see the right to store
  // that this mark is for, and only a write it reads from makes it so.
  if (!ST_GUARD(mark_is_a_write, true) && (word.load(sync::kRelaxed) & bit) != 0) return;
  const u64 before = word.fetch_or(bit, sync::kSeqCst);
  // With rings the bit says "in some ring": who sets it pushes, and a reset clears it.
  if (ring != nullptr && (before & bit) == 0) ring->push(slot.id, page);
}

void Memslots::mark_changed(u32 address_space, GfnRange frames) const {
  if (rings_only_.load(sync::kRelaxed)) return;
  const Reader section(*this);
  for (Gfn gfn = frames.start(); gfn < frames.end(); gfn += 1) {
    const Slot* const slot = section.find(address_space, gfn);
    if (slot != nullptr) mark_dirty(*slot, gfn);
  }
}

bool Memslots::begins_marked() const {
  return protect_.manual && protect_.initially_set;
}

void Memslots::set_dirty_protect(DirtyProtect protect) {
  const sync::MutexGuard guard(slots_lock_);
  protect_ = protect;
}

// --- rings ---

void Memslots::use_dirty_rings() {
  const sync::MutexGuard guard(slots_lock_);
  rings_only_.store(true, sync::kRelaxed);
}

void Memslots::add_ring(DirtyRing& ring) {
  const sync::MutexGuard guard(slots_lock_);
  ring.next_ = rings_;
  rings_ = &ring;
}

void Memslots::remove_ring(DirtyRing& ring) {
  const sync::MutexGuard guard(slots_lock_);
  DirtyRing** at = &rings_;
  while (*at != &ring) at = &(*at)->next_;
  *at = ring.next_;
}

// The slot and the pages are what the client left in its ring.
void Memslots::protect_ring_pages(u32 slot, u64 offset, u64 mask) {
  if (slot >> 16 >= policy_.address_spaces || (slot & 0xffff) >= kUserSlots) return;
  const Slot* found = slot_of(slot);
  if (found == nullptr || found->dirty == nullptr) return;
  const u64 last = static_cast<u64>(63 - __builtin_clzll(mask));
  if (offset >= found->page_count || last >= found->page_count - offset) return;
  DirtyBitmap& in_ring = *found->dirty;
  in_ring.words[offset / 64].fetch_and(~(mask << offset % 64), sync::kSeqCst);
  if (offset % 64 != 0 && mask >> (64 - offset % 64) != 0) {
    in_ring.words[offset / 64 + 1].fetch_and(~(mask >> (64 - offset % 64)), sync::kSeqCst);
  }
  host_->protect_pages(*found, offset, &mask, 1, begins_marked());
}

u32 Memslots::reset_dirty_rings() {
  const sync::MutexGuard guard(slots_lock_);
  u32 taken = 0;
  for (DirtyRing* ring = rings_; ring != nullptr; ring = ring->next_) {
    taken += ring->reset([this](u32 slot, u64 offset, u64 mask)
                             TA_REQ(slots_lock_) { protect_ring_pages(slot, offset, mask); });
    trace::emit(trace::Event::kvm_dirty_ring_reset, trace::Room::stage2, ring->index());
  }
  if (ST_GUARD(ring_reset_flush, taken != 0)) host_->flush_and_wait();
  return taken;
}

// --- bitmaps ---

Result<Slot*> Memslots::logged_slot(u32 slot) const {
  Slot* found = slot_of(slot);
  if (found == nullptr || found->dirty == nullptr) return refuse(ENOENT);
  return found;
}

Result<void> Memslots::get_dirty_log(u32 slot, Hva bitmap) {
  const sync::MutexGuard guard(slots_lock_);
  if (rings_only_.load(sync::kRelaxed)) return refuse(ENXIO);
  if (slot >> 16 >= policy_.address_spaces || (slot & 0xffff) >= kUserSlots) return refuse(EINVAL);
  const Slot& logged = *ST_TRY(logged_slot(slot));
  DirtyBitmap& dirty = *logged.dirty;
  bool any = false;
  for (u64 i = 0; i < dirty.word_count; ++i) {
    u64 word = dirty.words[i].load(sync::kRelaxed);
    if (word != 0 && !protect_.manual) word = dirty.words[i].exchange(0, sync::kSeqCst);
    dirty.taken[i] = word;
    any |= word != 0;
  }
  if (any && !protect_.manual) {
    host_->protect_pages(logged, 0, dirty.taken, dirty.word_count, false);
    // Dirty (O5): who clears a mark takes the right away and waits for those who cached it.
    if (ST_GUARD(harvest_flush, true)) host_->flush_and_wait();
  }
  const size_t bytes = dirty.word_count * sizeof(u64);
  if (!host::is_user_range(bitmap, bytes) || host::copy_to(bitmap, dirty.taken, bytes) != bytes) {
    return refuse(EFAULT);
  }
  return {};
}

Result<void> Memslots::clear_dirty_log(u32 slot, u64 first_page, u32 page_count, Hva bitmap) {
  const sync::MutexGuard guard(slots_lock_);
  if (rings_only_.load(sync::kRelaxed)) return refuse(ENXIO);
  if (slot >> 16 >= policy_.address_spaces || (slot & 0xffff) >= kUserSlots) return refuse(EINVAL);
  if (first_page % 64 != 0) return refuse(EINVAL);
  const Slot& found = *ST_TRY(logged_slot(slot));
  if (first_page > found.page_count || page_count > found.page_count - first_page ||
      (page_count < found.page_count - first_page && page_count % 64 != 0)) {
    return refuse(EINVAL);
  }
  DirtyBitmap& dirty = *found.dirty;
  const u64 words = div_ceil<u64>(page_count, 64);
  const size_t bytes = words * sizeof(u64);
  // Of no pages nothing is read, wherever the pointer leads.
  if (bytes != 0 && (!host::is_user_range(bitmap, bytes) ||
                     host::copy_from(dirty.taken, bitmap, bytes) != bytes)) {
    return refuse(EFAULT);
  }
  bool any = false;
  for (u64 i = 0; i < words; ++i) {
    u64& mask = dirty.taken[i];
    if (mask != 0) mask &= dirty.words[first_page / 64 + i].fetch_and(~mask, sync::kSeqCst);
    any |= mask != 0;
  }
  if (any) {
    host_->protect_pages(found, first_page, dirty.taken, words, begins_marked());
    host_->flush_and_wait();
  }
  return {};
}

}  // namespace stagetwo::stage2

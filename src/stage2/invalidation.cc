// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "base/guard.h"
#include "base/trace.h"
#include "host/mapping_level.h"
#include "stage2/address_space.h"

// What takes translations away: a change of the client's addresses, and a change of slots. Both are
// the same shape: close → zap → flush → wait → change → open. Between closing and opening no fault
// installs an entry for the addresses (the gate tells it to retry), whatever slot it came by.
//
// A change that finds nothing mapped need not wait for a vCPU: no soft TLB holds what the table
// does not, but for what was taken out and not yet flushed, which zap_leafs() knows of
// (tdp_zap.cc). Read sections of KVM's own accesses it waits for in any case; they do not use the
// table.

namespace stagetwo::stage2 {
namespace {

u64 frame_of(Hva page) {
  return page.raw() >> kPageShift;
}

}  // namespace

// --- flushes ---

void GuestMemory::flush_tlbs() {
  const u64 ticket = lines_.bump_all();
  if (ST_GUARD(ack_wait, true)) lines_.wait_all(ticket);
}

void GuestMemory::synchronize() {
  flush_tlbs();
  tdp_.wait_for_shared();
  slots_.wait_for_readers();
}

// The flush and the read sections are behind the caller.
void GuestMemory::give_back(pt::Gather* removed) {
  if (removed->has_tables()) tdp_.wait_for_shared();
  tdp_.release(removed);
}

// --- the bell ---

void GuestMemory::close_range(HvaRange range) {
  if (range.empty()) return;
  gate_.begin(frame_of(range.start()), frame_of(range.end() - 1));
}

void GuestMemory::open_range(HvaRange range) {
  if (range.empty()) return;
  gate_.end(frame_of(range.start()), frame_of(range.end() - 1));
}

// The slots are asked in pieces: a zap may yield, and with it wait for read sections.
bool GuestMemory::zap_users(HvaRange range, pt::Gather* removed) {
  constexpr size_t kPiece = 32;
  Memslots::Users users[kPiece];
  Memslots::UserCursor cursor;
  size_t found = 0;
  bool flush_owed = false;
  do {
    {
      const Memslots::Reader section(slots_);
      found = section.find_users(range, &cursor, users, kPiece);
    }
    for (size_t i = 0; i < found; ++i) {
      flush_owed |= tdp_.zap_leafs(users[i].address_space, users[i].frames, removed, true);
    }
  } while (found == kPiece);
  return flush_owed;
}

bool GuestMemory::invalidate_range_start(const host::InvalidateEvent& event) {
  {
    const Memslots::Reader section(slots_);
    if (!section.overlaps(event.range)) return false;
  }
  trace::enter_room(trace::Room::stage2, 5, event.range.start().raw());
  trace::emit(trace::Event::kvm_unmap_hva_range, trace::Room::stage2, event.range.start().raw(),
              event.range.end().raw());
  invalidations_.fetch_add(1, sync::kRelaxed);
  close_range(event.range);

  pt::Gather removed;
  if (ST_GUARD(notifier_zap, true) && zap_users(event.range, &removed)) {
    tdp_.flush();
  } else {
    flushes_saved_.fetch_add(1, sync::kRelaxed);
  }
  if (ST_GUARD(reader_wait, true)) slots_.wait_for_readers();
  give_back(&removed);
  return true;
}

void GuestMemory::invalidate_range_end(const host::InvalidateEvent& event) {
  trace::enter_room(trace::Room::stage2, 11, event.range.start().raw());
  residency_.fetch_add(1, sync::kRelease);  // before the sequence: who sees that sees this
  open_range(event.range);
}

// --- changes of slots: under slots_lock ---

void GuestMemory::zap_frames(u32 address_space, GfnRange frames) {
  static_cast<void>(tdp_.zap_leafs(address_space, frames, &removed_by_slots_, true));
}

// Analogue: kvm_arch_flush_shadow_memslot (kernel file: x86.c), quirk SLOT_ZAP_ALL.
void GuestMemory::zap_slot(const Slot& slot) {
  if (WriteTracker* tracker = tracker_.load(sync::kSeqCst)) tracker->on_slot_deleted(slot.gfns());
  if (!slot_zap_all_.load(sync::kRelaxed)) return zap_frames(slot.id >> 16, slot.gfns());
  tdp_.invalidate_all_roots();
  roots_invalidated_ = true;
}

void GuestMemory::protect_pages(const Slot& slot, u64 first_page, const u64* masks, u64 count,
                                bool split) {
  if (split && eager_split_.load(sync::kRelaxed)) {
    const u64 pages = std::min(count * 64, slot.page_count - first_page);
    tdp_.try_split_huge(slot, GfnRange(slot.base_gfn + first_page, pages), 1);
  }
  tdp_.write_protect_masked(slot, first_page, masks, count);
}

// Analogue: kvm_mmu_slot_apply_flags (kernel file: x86.c).
void GuestMemory::logging_changed(const Slot&, const Slot& fresh, bool all_marked) {
  // Faults that passed the gate before it closed know the old slot: they may still install a right
  // to store that nobody marks, and use the slot, which ends with this change.
  if (ST_GUARD(slot_users_wait, true)) tdp_.wait_for_shared();
  if ((fresh.flags & kLogDirtyPages) == 0) return recover_huge(fresh);
  // Large entries too stay as they are where every page counts as written.
  if (all_marked) return tdp_.write_protect_slot(fresh, 2);
  if (eager_split_.load(sync::kRelaxed)) tdp_.try_split_huge(fresh, fresh.gfns(), 1);
  tdp_.write_protect_slot(fresh, 1);
}

// Where the host has huge pages under a table of small entries, the table goes: the next access
// maps the huge page. What it has is asked once for each place a large entry could stand.
void GuestMemory::recover_huge(const Slot& slot) {
  constexpr u64 kSpan = pt::span_of<Format>(2);
  const Gfn end = slot.gfns().end();
  for (Gfn gfn = slot.base_gfn; gfn < end;) {
    const u64 step = kSpan - (gfn.raw() & (kSpan - 1));
    if (slot.max_level(gfn) > 1) {
      const unsigned level = host::mapping_level(slot.gfn_to_hva(gfn));
      if (level > 1) tdp_.recover_huge(slot, GfnRange(gfn, std::min(step, end - gfn)), level);
    }
    gfn += step;
  }
}

void GuestMemory::flush_and_wait() {
  tdp_.flush();
  if (ST_GUARD(reader_wait, true)) slots_.wait_for_readers();
  give_back(&removed_by_slots_);
}

// After the flush, so that running vCPUs wait for the invalidation and not for the taking apart.
void GuestMemory::slots_changed() {
  if (roots_invalidated_) tdp_.zap_invalidated_roots();
  roots_invalidated_ = false;
}

void GuestMemory::generation_wraps() {
  ST_MARK(stage2_generation_wraps);
  tdp_.invalidate_all_roots();
  flush_and_wait();
  tdp_.zap_invalidated_roots();
}

}  // namespace stagetwo::stage2

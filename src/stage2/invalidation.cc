// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <utility>

#include "base/guard.h"
#include "base/trace.h"
#include "stage2/address_space.h"
#include "stage2/slot_users.h"

// What takes translations away: a change of the client's addresses, and a change of slots. Both are
// the same shape: close → zap → flush → wait → change → open. Between closing and opening no fault
// installs an entry for the addresses (the gate tells it to retry), whatever slot it came by.
//
// A change that finds nothing mapped need not wait for a vCPU: no soft TLB holds what the table
// does not, but for what was taken out and not yet flushed, which zap_leafs() and in_use() know of
// (tdp_zap.cc, tdp_roots.cc). It makes a vCPU that is not scheduled no slot update's business
// unless it may hold the slot. Read sections of KVM's own accesses it waits for in any case; they
// do not use the table, but ask the gate:
//
//   own access                           | start
//   section: cell + 1 (seq_cst)          | gate: count + 1 (seq_cst)
//   gate: count (seq_cst)                | cells (seq_cst): 0 -> nobody
//   count up -> retry                    |
//
// Not both miss the other. A section that walks the table without a lock (fast_page_fault) asks no
// gate; what it finds in a leaf that is gone it can only exchange against the leaf, which fails, or
// report as spurious, and then translates again. But a table that is gone it must not walk, and it
// reads its way by acquiring loads alone: then the wait is the one that marks the cells.

namespace stagetwo::stage2 {
namespace {

u64 frame_of(Hva page) {
  return page.raw() >> kPageShift;
}

}  // namespace

// --- flushes ---

void GuestMemory::flush_tlbs() {
  if (!ST_GUARD(tlb_flush, true)) return;
  if (ST_GUARD(ack_wait, true)) {
    lines_.barrier();
  } else {
    static_cast<void>(lines_.bump_all());
  }
}

void GuestMemory::wait_for_sections() {
  tdp_.wait_for_shared();
  slots_.wait_for_readers();
}

void GuestMemory::synchronize() {
  flush_tlbs();
  wait_for_sections();
}

// Reuse of a table (O7): the flush and the read sections are behind the caller; what is left are
// walks under the shared lock.
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

bool GuestMemory::zap_users(HvaRange range, pt::Gather* removed, bool may_yield) {
  // The addresses are the client's: private pages of the same frames are others.
  const Half half = private_.of_notifiers();
  return any_user(slots_, range, [&](u32 address_space, GfnRange frames) {
    return tdp_.zap_leafs(address_space, frames, removed, may_yield, half);
  });
}

bool GuestMemory::overlaps_slots(HvaRange range) {
  const Memslots::Reader section(slots_);
  return section.overlaps(range);
}

bool GuestMemory::invalidate_range_start(const host::InvalidateEvent& event) {
  if (!overlaps_slots(event.range)) return false;
  trace::enter_room(trace::Room::stage2, 5, event.range.start().raw());
  trace::emit(trace::Event::kvm_unmap_hva_range, trace::Room::stage2, event.range.start().raw(),
              event.range.end().raw());
  invalidations_.fetch_add(1, sync::kRelaxed);
  close_range(event.range);

  pt::Gather removed;
  if (ST_GUARD(notifier_zap, true) && zap_users(event.range, &removed, event.blockable)) {
    tdp_.flush();
  } else {
    flushes_saved_.fetch_add(1, sync::kRelaxed);
  }
  if (ST_GUARD(reader_wait, true)) {
    // Whoever reads on after this found the gate closed, unless it walks the table without a lock.
    if (ST_GUARD(walkers_wait, removed.has_tables())) {
      slots_.wait_for_readers();
    } else {
      slots_.wait_for_accesses();
    }
  }
  give_back(&removed);
  return true;
}

// Every vCPU has answered a request, or has let go, within the time one that is scheduled needs. No
// lock that is taken below is ever held by a sleeper, so that a vCPU which is not scheduled is all
// there is to wait for.
bool GuestMemory::vcpus_answer() {
  return lines_.passes_soon(lines_.bump_all());
}

host::TryStart GuestMemory::try_invalidate_range_start(const host::InvalidateEvent& event) {
  if (!overlaps_slots(event.range)) return host::TryStart::kNotMine;
  if (!vcpus_answer()) return host::TryStart::kWouldWait;
  return invalidate_range_start(event) ? host::TryStart::kEngaged : host::TryStart::kNotMine;
}

// As if every slot had gone; what would come later waits for the end of the process. The
// destructor, which takes the tables apart itself, has said so before.
void GuestMemory::release() {
  if (released_.exchange(true)) return;
  const host::InvalidateEvent event{host::kWholeAddressSpace, host::EventKind::kRelease};
  if (invalidate_range_start(event)) invalidate_range_end(event);
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
void GuestMemory::zap_slot(const Slot& slot, bool goes) {
  // The bell is not answered for addresses that no slot uses, so nothing is known of their pages
  // from here on. Whoever reads this number finds the slot INVALID.
  if (goes) residency_.fetch_add(1, sync::kRelease);
  if (WriteTracker* tracker = tracker_.load(sync::kSeqCst)) tracker->on_slot_deleted(slot.gfns());
  const u32 address_space = slot.id >> 16;
  if (!slot_zap_all_.load(sync::kRelaxed)) return zap_frames(address_space, slot.gfns());
  tdp_.invalidate_all_roots();
  roots_invalidated_ = true;
  nothing_to_flush_ = !ST_GUARD(slot_in_use, tdp_.in_use(address_space, slot.gfns()));
}

void GuestMemory::flush_and_wait() {
  if (!std::exchange(nothing_to_flush_, false)) tdp_.flush();
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

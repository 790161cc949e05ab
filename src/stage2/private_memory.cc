// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "base/guard.h"
#include "base/trace.h"
#include "host/pin.h"
#include "stage2/address_space.h"
#include "stage2/file_pages.h"

// A frame has a host address of the client's (shared) and, where its slot has a file, one of the
// engine's (private); the attribute says which a fault takes, and an entry says of which it is. A
// conversion closes both for its frames, takes the half that is left out of the table, and only
// then changes the answer:
//
//   vCPU, fault                            | conversion to private
//   snapshot s                             |
//   the frame is shared: page H            |
//                                          | gate: count up; zaps shared entries; flush, wait
//   mmu_lock shared: count != 0 -> retry   | attributes: private
//                                          | gate: sequence up, count down
//   (or later: s is old -> retry)          |
//
//   snapshot s'                            |
//   the frame is private: page P           | gate: count still up
//   count != 0 -> retry                    | end
//
// So between the last use of the one half and the first of the other nobody uses either, and who
// reads an answer before its time installs nothing. A large entry over the edge of the range goes
// with the frames inside it; one that a neighbour's fault would make meanwhile is refused, because
// the gate is asked for all it covers (stale_range).
//
// A notifier of a host address names the shared half, an object that gives pages up the private
// one: the other half of the frame is left alone.

namespace stagetwo::stage2 {
namespace {

u64 frame_of(Hva page) {
  return page.raw() >> kPageShift;
}

GfnRange overlap(GfnRange a, GfnRange b) {
  const Gfn first = std::max(a.start(), b.start());
  return {first, std::min(a.end(), b.end()) - first};
}

}  // namespace

// --- faults ---

// Analogue: kvm_gmem_get_pfn (kernel file: guest_memfd.c), as far as it needs no page.
FaultOutcome PrivateMemory::look_up(Fault& fault, const Slot& slot) {
  if (slot.file == nullptr || !slot.file->is_open()) return refuse_fault(fault, EFAULT);
  fault.from_file = true;
  fault.slot_flags = slot.flags;
  fault.page = slot.file->gfn_to_hva(fault.gfn);
  fault.map_writable = !slot.is_write_tracked(fault.gfn);
  fault.max_level = 1;  // pages of a file are single
  return FaultOutcome::kFixed;
}

// --- the object's bell ---

Result<void> PrivateMemory::bind(Slot* slot, const Region& region) {
  slot->file =
      ST_TRY(FilePages::bind(*this, *region.file, *slot, region.memfd_offset, region.file_only));
  slot->file_only = region.file_only;
  files_.fetch_add(1, sync::kRelease);
  return {};
}

void PrivateMemory::unbind(Slot* slot) {
  if (slot->file != nullptr) {
    given_up_.all();
    files_.fetch_sub(1, sync::kRelease);
  }
  FilePages::unbind(slot->file);
  slot->file = nullptr;
}

void PrivateMemory::pages_going(GfnRange frames, HvaRange pages, Half half) {
  trace::emit(trace::Event::kvm_unmap_hva_range, trace::Room::stage2, pages.start().raw(),
              pages.end().raw());
  vm_.invalidations_.fetch_add(1, sync::kRelaxed);
  vm_.close_range(pages);
  pt::Gather removed;
  if (ST_GUARD(punch_zap, true) && vm_.tdp_.zap_leafs(0, frames, &removed, true, half)) {
    vm_.tdp_.flush();
  } else {
    vm_.flushes_saved_.fetch_add(1, sync::kRelaxed);
  }
  if (ST_GUARD(reader_wait, true)) vm_.slots_.wait_for_readers();
  vm_.give_back(&removed);
}

void PrivateMemory::pages_gone(HvaRange pages) {
  given_up_.all();
  pages_left(pages);
}

void PrivateMemory::pages_left(HvaRange pages) {
  vm_.residency_.fetch_add(1, sync::kRelease);  // before the sequence: who sees that sees this
  vm_.open_range(pages);
}

HvaRange PrivateMemory::pages_under_limit(const Slot* slot) {
  if (slot == nullptr || slot->file == nullptr || slot->file_only) return {};
  return slot->file->hvas();
}

// The next slot from *at on that has some of the pages; *at is behind it then.
bool PrivateMemory::find_user(u32 space, HvaRange pages, Gfn* at, GfnRange* frames) const {
  const Memslots::Reader section(vm_.slots_);
  for (;;) {
    const Slot* slot = section.find_from(space, *at);
    if (slot == nullptr) return false;
    *at = slot->gfns().end();
    if (slot->file == nullptr || !slot->file->is_open()) continue;
    if (!slot->file->hvas().overlaps(pages)) continue;
    *frames = slot->file->gfns_of(pages);
    return true;
  }
}

// --- attributes ---

// fn(slot, frames) for the slots that have some of the frames. Context: under slots_lock.
template <typename F>
void PrivateMemory::for_each_slot(GfnRange frames, F&& fn) {
  // Slots live until slots_lock is given back, so fn() may block.
  for (u32 space = 0; space < kMaxAddressSpaces; ++space) {
    Gfn at = frames.start();
    while (at < frames.end()) {
      const Slot* slot = nullptr;
      {
        const Memslots::Reader section(vm_.slots_);
        slot = section.find_from(space, at);
      }
      if (slot == nullptr || slot->base_gfn >= frames.end()) break;
      fn(*slot, overlap(frames, slot->gfns()));
      at = slot->gfns().end();
    }
  }
}

// One closing, whatever the number of slots. False: no slot has any of the frames.
bool PrivateMemory::close_frames(GfnRange frames) {
  bool closed = false;
  const auto close = [&](Hva first, u64 count) {
    const u64 page = frame_of(first);
    closed ? vm_.gate_.extend(page, page + count - 1) : vm_.gate_.begin(page, page + count - 1);
    closed = true;
  };
  for_each_slot(frames, [&](const Slot& slot, GfnRange part) {
    close(slot.gfn_to_hva(part.start()), part.size());
    if (slot.file != nullptr) close(slot.file->gfn_to_hva(part.start()), part.size());
  });
  return closed;
}

void PrivateMemory::zap_half(GfnRange frames, Half half) {
  pt::Gather removed;
  bool flush_owed = false;
  for_each_slot(frames, [&](const Slot& slot, GfnRange part) {
    flush_owed |= vm_.tdp_.zap_leafs(slot.id >> 16, part, &removed, true, half);
  });
  if (flush_owed) vm_.tdp_.flush();
  if (ST_GUARD(reader_wait, true)) vm_.slots_.wait_for_readers();
  vm_.give_back(&removed);
}

// What is all shared again may be large again: tables of small entries around the range go, where
// the host has a large page.
void PrivateMemory::recover_shared(GfnRange frames) {
  const u64 span = pt::span_of<Format>(2);
  const u64 first = frames.start().raw() & ~(span - 1);
  const u64 end = (frames.end().raw() + span - 1) & ~(span - 1);
  const GfnRange blocks(Gfn(first), end - first);
  for_each_slot(blocks, [&](const Slot& slot, GfnRange part) { vm_.recover_huge(slot, part); });
}

Result<void> PrivateMemory::convert(GfnRange frames, bool to_private) {
  if (attributes_.all_are(frames, to_private)) return {};
  ST_TRY(attributes_.reserve());
  const bool closed = ST_GUARD(convert_closes, true) && close_frames(frames);
  if (ST_GUARD(convert_zaps, true)) zap_half(frames, to_private ? Half::kShared : Half::kPrivate);
  attributes_.set(frames, to_private);
  if (!to_private) given_up_.all();
  trace::emit(trace::Event::st_attributes, trace::Room::stage2, frames.start().raw(),
              frames.end().raw() - 1, to_private ? 1 : 0);
  if (closed) vm_.gate_.end();
  if (closed && !to_private) recover_shared(frames);
  return {};
}

// A device keeps what it was given: the shared half of frames that are private now is still
// reached, as by KVM's own rules it may be. Whoever looks for mistakes of the VMM is told.
void PrivateMemory::tell_pinned(GfnRange frames) {
  for_each_slot(frames, [](const Slot& slot, GfnRange part) {
    if (slot.file == nullptr || slot.file_only) return;
    const auto pinned =
        host::pinned_in(HvaRange(slot.gfn_to_hva(part.start()), part.size() * kPageSize));
    if (pinned.pages == 0) return;
    trace::emit(trace::Event::st_pinned_private, trace::Room::stage2, part.start().raw(),
                pinned.first.raw(), pinned.pages);
  });
}

Result<void> PrivateMemory::set_attributes(GfnRange frames, bool to_private) {
  Result<void> done;
  vm_.slots_.between_updates([&] {
    done = convert(frames, to_private);
    if (done && to_private && trace::enabled()) tell_pinned(frames);
  });
  return done;
}

bool PrivateMemory::is_mixed(Gfn gfn, unsigned level) const {
  // Of frames that are kept each is somewhere else.
  if (is_kept()) return true;
  if (!on_) return false;
  const u64 span = pt::span_of<Format>(level);
  return ST_GUARD(mixed_is_small,
                  attributes_.is_mixed(GfnRange(Gfn(gfn.raw() & ~(span - 1)), span)));
}

bool GuestMemory::attributes_mixed(const Fault& fault, unsigned level) {
  return private_.is_mixed(fault.gfn, level);
}

}  // namespace stagetwo::stage2

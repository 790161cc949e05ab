// SPDX-License-Identifier: Apache-2.0
#include "stage2/address_space.h"

#include <algorithm>

#include "base/check.h"
#include "base/guard.h"
#include "base/trace.h"
#include "host/faultin.h"

// The theory is the kernel's: snapshot, translate without a lock, compare where a start would wait
// for us, install. There is no lock to install under; what a lock does there is done by "an
// invalidation waits for everybody who may have compared before it began":
//
//   vCPU thread                         | unmapping thread
//   snapshot s                          |
//   slot, faultin: page P of the hva    |
//                                       | gate.begin (count up, seq_cst)
//                                       | bump, wait: the line is OUTSIDE, nobody to wait for
//   line.enter (RUNNING, seq_cst)       |
//   install: count != 0 -> false        | munmap, mmap at the same address, gate.end (sequence up)
//
//   vCPU thread                         | unmapping thread
//   line.enter, install: count 0, s     |
//   uses P                              | gate.begin; bump; the line is RUNNING: wait
//   poll: acknowledge, drop P           | ... acknowledged: munmap
//
// KVM's own accesses (page walks, emulation, ioctls) hold a read section instead of a line; the
// start waits for those as well. Neither blocks in the kernel on what a resolver of the client must
// fill: the page was made present before, outside (docs/journeys/guest_fault.md).

namespace stagetwo::stage2 {
namespace {

u64 frame_of(Hva page) {
  return page.raw() >> kPageShift;
}

}  // namespace

GuestMemory::GuestMemory(const SlotPolicy& policy) : slots_(this, policy) {}

Result<Box<GuestMemory>> GuestMemory::create(const SlotPolicy& policy) {
  Box<GuestMemory> memory = ST_TRY(make_box<GuestMemory>("stage2.guest_memory", policy));
  ST_TRY(memory->slots_.init());
  ST_TRY(host::register_notifier(memory.get()));
  memory->registered_ = true;
  return memory;
}

GuestMemory::~GuestMemory() {
  if (registered_) host::unregister_notifier(this);
}

// --- the fault ---

FaultOutcome GuestMemory::look_up(Fault& fault) {
  fault.snapshot = gate_.snapshot();  // before anything else is looked up
  fault.mmio_generation = slots_.generation();
  fault.gfn = gpa_to_gfn(fault.gpa);
  const Memslots::Reader section(slots_);
  const Slot* slot = section.find(fault.address_space, fault.gfn);
  if (slot == nullptr) return FaultOutcome::kMmio;
  if ((slot->flags & kInvalid) != 0) return FaultOutcome::kRetry;
  if (fault.access == Access::kWrite && (slot->flags & kReadonly) != 0) return FaultOutcome::kMmio;
  fault.slot = slot;
  fault.slot_flags = slot->flags;
  fault.page = slot->gfn_to_hva(fault.gfn);
  fault.map_writable = (slot->flags & kReadonly) == 0 && !slot->is_write_tracked(fault.gfn);
  return FaultOutcome::kFixed;
}

FaultOutcome GuestMemory::answer(Fault& fault, bool host_writable) {
  fault.map_writable = fault.map_writable && host_writable;
  // A logging slot gives the right to store only to those who mark.
  const bool may_widen = fault.map_writable && (fault.slot_flags & kLogDirtyPages) == 0;
  fault.writable = fault.access == Access::kWrite || may_widen;
  return FaultOutcome::kFixed;
}

FaultOutcome GuestMemory::make_resident(Fault& fault, Mode mode, bool trust_cache) {
  const bool write = fault.access == Access::kWrite;
  const u64 sequence = fault.snapshot.sequence;
  if (trust_cache && resident_.contains(fault.page, sequence, write)) {
    return answer(fault, resident_.contains_writable(fault.page, sequence));
  }
  if (mode == Mode::kMustNotBlock) return FaultOutcome::kRetry;
  // Do not fight for a page that is being taken away.
  if (gate_.must_retry(fault.snapshot, frame_of(fault.page))) {
    retries_.fetch_add(1, sync::kRelaxed);
    sync::yield_thread();
    return FaultOutcome::kRetry;
  }
  populated_.fetch_add(1, sync::kRelaxed);
  const Result<void> present = host::faultin(fault.page, fault.access);
  if (gate_.must_retry(fault.snapshot, frame_of(fault.page))) {
    retries_.fetch_add(1, sync::kRelaxed);
    return FaultOutcome::kRetry;
  }
  if (!present) {
    return to_int(present.error()) == EHWPOISON ? FaultOutcome::kPoison : FaultOutcome::kToUser;
  }
  resident_.insert(fault.page, sequence, write);
  return answer(fault, write);
}

// Analogue: page_fault_handle_page_track (kernel file: mmu.c).
bool GuestMemory::is_write_tracked(const Fault& fault) const {
  if (fault.access != Access::kWrite || !slots_.tracks_writes()) return false;
  const Memslots::Reader section(slots_);
  const Gfn gfn = gpa_to_gfn(fault.gpa);
  const Slot* slot = section.find(fault.address_space, gfn);
  return slot != nullptr && (slot->flags & kInvalid) == 0 && slot->is_write_tracked(gfn);
}

FaultOutcome GuestMemory::handle_fault(Fault& fault) {
  trace::enter_room(trace::Room::stage2, 4, fault.gpa.raw());
  if (ST_GUARD(write_tracking, is_write_tracked(fault))) return FaultOutcome::kEmulate;
  const FaultOutcome found = look_up(fault);
  if (found != FaultOutcome::kFixed) return found;
  faults_.fetch_add(1, sync::kRelaxed);
  return make_resident(fault, Mode::kMayBlock, true);
}

bool GuestMemory::is_stale(const Fault& fault) {
  if (!ST_GUARD(stale_fault, gate_.must_retry(fault.snapshot, frame_of(fault.page)))) return false;
  retries_.fetch_add(1, sync::kRelaxed);
  trace::emit(trace::Event::st_gate_retry, trace::Room::stage2, fault.page.raw(),
              fault.snapshot.sequence);
  ST_MARK(stage2_stale_fault);
  return true;
}

bool GuestMemory::install(const Fault& fault) {
  trace::enter_room(trace::Room::stage2, 10, fault.gpa.raw());
  if (is_stale(fault)) return false;
  // The slot lives: whoever removes it raises the gate first and then waits for this line.
  if (fault.access == Access::kWrite) Memslots::mark_dirty(*fault.slot, fault.gfn, fault.ring);
  return true;
}

// --- KVM's own accesses ---

template <typename F>
FaultOutcome GuestMemory::transfer(Gpa gpa, size_t bytes, size_t* done, Access kind,
                                   u32 address_space, F&& copy) {
  size_t moved = 0;
  FaultOutcome outcome = FaultOutcome::kFixed;
  while (moved < bytes) {
    Fault fault{.gpa = gpa + moved, .access = kind, .address_space = address_space};
    const size_t chunk = std::min<size_t>(bytes - moved, kPageSize - page_offset(fault.gpa));
    outcome = with_page(fault, Mode::kMayBlock,
                        [&](Hva hva) { return copy(hva, moved, chunk) == chunk; });
    if (outcome != FaultOutcome::kFixed) break;
    moved += chunk;
  }
  if (done != nullptr) *done = moved;
  return outcome;
}

FaultOutcome GuestMemory::read(Gpa from, void* to, size_t bytes, size_t* done, u32 address_space) {
  return transfer(from, bytes, done, Access::kRead, address_space,
                  [to](Hva hva, size_t offset, size_t chunk) {
                    return host::copy_from(static_cast<u8*>(to) + offset, hva, chunk);
                  });
}

FaultOutcome GuestMemory::write(Gpa to, const void* from, size_t bytes, size_t* done,
                                u32 address_space) {
  return transfer(to, bytes, done, Access::kWrite, address_space,
                  [from](Hva hva, size_t offset, size_t chunk) {
                    return host::copy_to(hva, static_cast<const u8*>(from) + offset, chunk);
                  });
}

FaultOutcome GuestMemory::emulated_write(Gpa to, const void* from, size_t bytes,
                                         u32 address_space) {
  const FaultOutcome outcome = write(to, from, bytes, nullptr, address_space);
  if (outcome != FaultOutcome::kFixed) return outcome;
  const Memslots::Reader section(slots_);
  if (WriteTracker* tracker = tracker_.load(sync::kSeqCst)) tracker->on_write(to, from, bytes);
  return outcome;
}

Result<void> GuestMemory::attach_tracker(WriteTracker& tracker) {
  WriteTracker* none = nullptr;
  if (!tracker_.compare_exchange(none, &tracker, sync::kSeqCst)) return refuse(EBUSY);
  slots_.set_write_tracked(true);
  return {};
}

void GuestMemory::detach_tracker() {
  slots_.set_write_tracked(false);
  tracker_.store(nullptr, sync::kSeqCst);
  slots_.wait_for_readers();
}

FaultOutcome GuestMemory::try_read(Gpa from, void* to, size_t bytes, u32 address_space) {
  Fault fault{.gpa = from, .access = Access::kRead, .address_space = address_space};
  return with_page(fault, Mode::kMustNotBlock,
                   [&](Hva hva) { return host::copy_from(to, hva, bytes) == bytes; });
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

// The soft TLBs are the only caches, and they are empty after the flush that follows.
void GuestMemory::zap_slot(const Slot& slot) {
  if (WriteTracker* tracker = tracker_.load(sync::kSeqCst)) tracker->on_slot_deleted(slot.gfns());
}
void GuestMemory::zap_frames(u32, GfnRange) {}
void GuestMemory::logging_changed(const Slot&, const Slot&) {}
void GuestMemory::generation_wraps() {}

void GuestMemory::flush_and_wait() {
  const u64 ticket = lines_.bump_all();
  if (ST_GUARD(ack_wait, true)) lines_.wait_all(ticket);
  if (ST_GUARD(reader_wait, true)) slots_.wait_for_readers();
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
  flush_and_wait();
  return true;
}

void GuestMemory::invalidate_range_end(const host::InvalidateEvent& event) {
  trace::enter_room(trace::Room::stage2, 11, event.range.start().raw());
  open_range(event.range);
}

void GuestMemory::check_world() {
  slots_.check_world();
}

GuestMemory::Counts GuestMemory::counts() const {
  return {faults_.load(sync::kRelaxed), populated_.load(sync::kRelaxed),
          retries_.load(sync::kRelaxed), invalidations_.load(sync::kRelaxed)};
}

}  // namespace stagetwo::stage2

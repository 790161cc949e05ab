// SPDX-License-Identifier: Apache-2.0
#include "stage2/address_space.h"

#include <algorithm>
#include <type_traits>

#include "base/check.h"
#include "base/guard.h"
#include "base/trace.h"
#include "host/device_registers.h"
#include "host/faultin.h"
#include "host/mapping_level.h"
#include "host/memory_budget.h"
#include "mem/private_swap.h"

// The theory is the kernel's: snapshot, translate without a lock, compare under mmu_lock, install.
// A change of the address space raises the count of the gate, takes its entries out of the table
// with mmu_lock held alone, and then waits for whoever may have filled a TLB from one:
//
//   vCPU thread                         | unmapping thread
//   snapshot s                          |
//   slot, faultin: page P of the hva    |
//                                       | gate.begin (count up, seq_cst)
//                                       | mmu_lock alone: nothing to zap; unlock
//   mmu_lock shared: count != 0 -> retry| munmap, mmap at the same address, gate.end (sequence up)
//
//   vCPU thread                         | unmapping thread
//   mmu_lock shared: count 0, s         |
//   installs, unlock                    | gate.begin; mmu_lock alone: zaps the entry; unlock
//   line.enter, translate: a miss       |
//
//   vCPU thread                         | unmapping thread
//   line RUNNING, translate: a hit      |
//   uses P                              | gate.begin; zap; bump; the line is RUNNING: wait
//   poll: acknowledge, drop P           | ... acknowledged: munmap
//
// KVM's own accesses (emulation, ioctls, accessed bits of guest page tables) do not use the table:
// they hold a read section in which the gate accepted their snapshot; the start waits for those as
// well. Neither blocks in the kernel on what a resolver of the client must fill: the page was made
// present before, outside (docs/journeys/guest_fault.md).

namespace stagetwo::stage2 {
namespace {

u64 frame_of(Hva page) {
  return page.raw() >> kPageShift;
}

// As many levels as the guest's addresses need.
TdpPolicy tdp_policy(const SlotPolicy& policy, const NxPolicy& nx) {
  TdpPolicy tdp;
  tdp.nx_huge_pages = nx.enabled != nullptr && nx.enabled();
  tdp.root_level = policy.max_gfn < pt::frame_limit<Format>(4) ? 4 : 5;
  return tdp;
}

// A store that the host refuses because the page is a device's registers: nobody maps it to be
// written, in whichever way it is asked for.
bool is_register(const Fault& fault) {
  return fault.access == Access::kWrite && !fault.from_file &&
         host::device_bytes_at(fault.page + page_offset(fault.gpa)) != 0;
}

}  // namespace

GuestMemory::GuestMemory(const SlotPolicy& policy, const NxPolicy& nx)
    : private_(*this, policy.private_memory),
      slots_(this, private_.with_binder(policy)),
      tdp_(*this, tdp_policy(policy, nx)),
      nx_recovery_(tdp_, nx) {}

Result<Box<GuestMemory>> GuestMemory::create(const SlotPolicy& policy, const NxPolicy& nx) {
  Box<GuestMemory> memory = ST_TRY(make_box<GuestMemory>("stage2.guest_memory", policy, nx));
  ST_TRY(memory->slots_.init());
  ST_TRY(host::register_notifier(memory.get()));
  memory->registered_ = true;
  return memory;
}

GuestMemory::~GuestMemory() {
  nx_recovery_.stop();
  released_.store(true);
  if (registered_) host::unregister_notifier(this);  // waits for the ends of other threads' changes
  ST_CHECK(!gate_.active());                         // a begin without an end
}

Result<Box<MmuContext>> GuestMemory::new_context() {
  return make_box<MmuContext>("stage2.mmu_context", tdp_);
}

// --- the fault ---

Walk::Kind GuestMemory::translate(MmuContext& context, Fault& fault, unsigned step) {
  trace::enter_room(trace::Room::stage2, step, fault.gpa.raw());
  fault.gfn = gpa_to_gfn(fault.gpa);
  const Walk found = tdp_.walk(context, fault.address_space, fault.gfn, fault.access);
  fault.level = found.level;
  if (found.kind == Walk::Kind::kHit) {
    fault.page = found.page;
    fault.writable = found.writable;
    fault.is_private = found.is_private;
  }
  return found.kind;
}

FaultOutcome GuestMemory::look_up(Fault& fault, const Memslots::Reader& section) {
  const Slot* slot = section.find(fault.address_space, fault.gfn);
  fault.slot = slot;
  fault.from_file = false;
  fault.is_private = private_.is_private(fault);
  if (slot == nullptr) {
    return fault.is_private ? PrivateMemory::refuse_fault(fault, EFAULT) : FaultOutcome::kMmio;
  }
  if ((slot->flags & kInvalid) != 0) return FaultOutcome::kRetry;
  if (private_.is_kept() && !fault.own) [[unlikely]] {
    const FaultOutcome kept = private_.look_up_kept(fault, *slot);
    if (kept != FaultOutcome::kFixed || fault.home.raw() != 0) return kept;
  }
  if (fault.is_private || (slot->file_only && !fault.own))
    return PrivateMemory::look_up(fault, *slot);
  if (fault.access == Access::kWrite && (slot->flags & kReadonly) != 0) return FaultOutcome::kMmio;
  fault.slot_flags = slot->flags;
  fault.page = slot->gfn_to_hva(fault.gfn);
  fault.map_writable = (slot->flags & kReadonly) == 0 && !slot->is_write_tracked(fault.gfn);
  // Where a table of 4 KiB entries stands already, nobody asks for more: it is there because of
  // what the host has, or will be taken away by who makes the slot huge again.
  fault.max_level = fault.level == 1 ? u8{1} : static_cast<u8>(slot->max_level(fault.gfn));
  return FaultOutcome::kFixed;
}

// Before anything else is looked up: what changes after these is seen to have changed.
void GuestMemory::begin(Fault& fault) {
  fault.snapshot = gate_.snapshot();
  fault.residency = residency_.load(sync::kAcquire);
  fault.mmio_generation = slots_.generation();
  fault.gfn = gpa_to_gfn(fault.gpa);
}

FaultOutcome GuestMemory::make_resident(Fault& fault, ResidentCache& known, Mode mode,
                                        bool trust_cache, OwnedCount* populated) {
  // A kept page is there; whether it still is the answer, who installs it asks.
  if (fault.home.raw() != 0) [[unlikely]]
    return FaultOutcome::kFixed;
  // A file's page is had or not; there is nothing to read before it is.
  const Access access = fault.from_file ? Access::kWrite : fault.access;
  const bool write = access == Access::kWrite;
  if (released_.load(sync::kAcquire)) [[unlikely]] {
    // The process ends: its vCPUs see no error, they go with it.
    if (mode == Mode::kMayBlock) sync::yield_thread();
    return FaultOutcome::kRetry;
  }
  // Do not fight for a page that is being taken away.
  if (gate_.must_retry(fault.snapshot, frame_of(fault.page))) {
    retries_.fetch_add(1, sync::kRelaxed);
    if (mode == Mode::kMayBlock) sync::yield_thread();
    return FaultOutcome::kRetry;
  }
  const auto is_known = [&](bool writable) {
    return known.contains(fault.page, fault.residency, writable) ||
           (&known != &resident_ && resident_.contains(fault.page, fault.residency, writable));
  };
  if (trust_cache && is_known(write)) {
    fault.map_writable = fault.map_writable && is_known(true);
    return FaultOutcome::kFixed;
  }
  if (mode == Mode::kMustNotBlock) return FaultOutcome::kRetry;
  if (populated != nullptr) populated->raise();
  // A limit of memory is kept here, before the page comes: where huge pages may, for one of those.
  const u64 most = fault.max_level > 1 ? pt::span_of<Format>(2) : 1;
  const host::budget::Reach reach(most, fault.page);
  Result<void> present;
  // Sealed and away, it is not the kernel's to bring.
  if (fault.from_file) present = mem::private_pages::fetch(fault.page);
  const bool fetched = present.has_value();
  if (fetched) {
    present = host::faultin(fault.page + page_offset(fault.gpa), access, host::Ask::kTouch);
  }
  if (gate_.must_retry(fault.snapshot, frame_of(fault.page))) {
    retries_.fetch_add(1, sync::kRelaxed);
    return FaultOutcome::kRetry;
  }
  if (!present && fault.from_file) {
    // The mapping is ours and whole while the file is there, so what it lacks is memory; but for
    // bytes that were lost.
    const int error = to_int(present.error());
    const bool no_memory = fetched || error == ENOMEM;
    return PrivateMemory::refuse_fault(fault, error == EHWPOISON ? error
                                              : no_memory        ? ENOMEM
                                                                 : EFAULT);
  }
  if (!present) {
    return to_int(present.error()) == EHWPOISON ? FaultOutcome::kPoison : FaultOutcome::kToUser;
  }
  known.insert(fault.page, fault.residency, write);
  fault.map_writable = fault.map_writable && write;
  return FaultOutcome::kFixed;
}

// What needs no page: no lock, one read section. False: go on. Analogue: the first steps of
// direct_page_fault (kernel file: mmu.c), write tracking before all others.
bool GuestMemory::decide_early(MmuContext& context, Fault& fault, FaultOutcome* outcome) {
  const Memslots::Reader section(slots_);
  *outcome = look_up(fault, section);
  if (*outcome == FaultOutcome::kMemoryFault) return true;
  // No slot: there will be an entry that says so. A READONLY one: it is mapped, its stores are not.
  if (*outcome != FaultOutcome::kFixed) return fault.slot != nullptr;
  if (fault.access != Access::kWrite) return false;
  if (ST_GUARD(write_tracking, slots_.tracks_writes() && fault.slot->is_write_tracked(fault.gfn))) {
    // KVM's own store would go to the client's address.
    *outcome =
        fault.is_private ? PrivateMemory::refuse_fault(fault, EFAULT) : FaultOutcome::kEmulate;
    return true;
  }
  return tdp_.fast_page_fault(context, fault, outcome);
}

FaultOutcome GuestMemory::resolve(MmuContext& context, Fault& fault) {
  if (!context.has_root(fault.address_space) || fault.prefetch) {
    if (!tdp_.load_root(context, fault.address_space)) return FaultOutcome::kNoMemory;
  }
  begin(fault);
  FaultOutcome outcome = FaultOutcome::kRetry;
  if (decide_early(context, fault, &outcome)) {
    return fault.is_later ? private_.bring(fault) : outcome;
  }
  if (!context.top_up()) return FaultOutcome::kNoMemory;
  if (fault.slot != nullptr) {
    outcome = make_resident(fault, context.resident, Mode::kMayBlock, true, &context.populated);
    if (outcome == FaultOutcome::kToUser && is_register(fault)) return FaultOutcome::kEmulate;
    if (outcome != FaultOutcome::kFixed) return outcome;
    if (fault.max_level > 1) {
      fault.max_level =
          static_cast<u8>(std::min<unsigned>(fault.max_level, host::mapping_level(fault.page)));
    }
  }
  trace::enter_room(trace::Room::stage2, 9, fault.gpa.raw());
  outcome = tdp_.page_fault(context, fault);
  if (fault.huge_page_disallowed) [[unlikely]]
    nx_recovery_.start();
  return outcome;
}

FaultOutcome GuestMemory::handle_fault(MmuContext& context, Fault& fault) {
  trace::enter_room(trace::Room::stage2, 5, fault.gpa.raw());
  if (!fault.prefetch) context.counts.taken.raise();
  const FaultOutcome outcome = resolve(context, fault);
  // As the kernel counts (kernel file: mmu_internal.h, kvm_mmu_do_page_fault).
  if (outcome == FaultOutcome::kFixed) {
    context.counts.fixed.raise();
  } else if (fault.prefetch) {
    return outcome;
  } else if (outcome == FaultOutcome::kEmulate || outcome == FaultOutcome::kMmio) {
    context.counts.emulate.raise();
  } else if (outcome == FaultOutcome::kSpurious) {
    context.counts.spurious.raise();
  }
  return outcome;
}

bool GuestMemory::must_retry(const Fault& fault, HvaRange range) {
  // Changes name the frame, wherever its page is kept.
  if (fault.home.raw() != 0) [[unlikely]]
    range = HvaRange(fault.home, kPageSize);
  if (!gate_.must_retry(fault.snapshot, frame_of(range.start()), frame_of(range.end() - 1))) {
    return false;
  }
  retries_.fetch_add(1, sync::kRelaxed);
  return true;
}

void GuestMemory::mark_dirty(MmuContext& context, const Slot& slot, Gfn gfn) {
  Memslots::mark_dirty(slot, gfn, context.ring);
}

bool GuestMemory::is_logged(u32 address_space, Gfn gfn) {
  const Memslots::Reader section(slots_);
  const Slot* slot = section.find(address_space, gfn);
  return slot != nullptr && (slot->flags & kLogDirtyPages) != 0;
}

// --- KVM's own accesses ---

FaultOutcome GuestMemory::find_resident(Fault& fault, Mode mode, bool trust_cache) {
  begin(fault);
  {
    const Memslots::Reader section(slots_);
    const FaultOutcome found = look_up(fault, section);
    const bool can_wait = fault.is_later && mode == Mode::kMayBlock;
    if (found != FaultOutcome::kFixed && !can_wait) return found;
  }
  if (!fault.is_later) [[likely]]
    return make_resident(fault, resident_, mode, trust_cache);
  // A keeper may take as long as it likes (a guest that rests on its way to be secure is brought no
  // page), and whose thread this is may have a signal to answer. kSpurious: not now either.
  const FaultOutcome brought = private_.bring(fault);
  if (brought != FaultOutcome::kRetry) return brought;
  begin(fault);
  const Memslots::Reader section(slots_);
  static_cast<void>(look_up(fault, section));
  return fault.is_later ? FaultOutcome::kSpurious : FaultOutcome::kRetry;
}

bool GuestMemory::is_stale(const Fault& fault) {
  if (!ST_GUARD(stale_access, must_retry(fault, HvaRange(fault.page, 1)))) return false;
  trace::emit(trace::Event::st_gate_retry, trace::Room::stage2, fault.page.raw(),
              fault.snapshot.sequence);
  ST_MARK(stage2_stale_access);
  return true;
}

// Registers of a device hear a store outside every section, once, from whatever they are told while
// the slot and the mapping stand: as a store that a processor has sent to the bus. False: they are
// none.
bool GuestMemory::write_to_device(Fault fault, const u8* from, size_t size, FaultOutcome* out) {
  begin(fault);
  {
    const Memslots::Reader section(slots_);
    if (look_up(fault, section) != FaultOutcome::kFixed || !is_register(fault)) return false;
  }
  const size_t put = host::put_to_device(fault.page + page_offset(fault.gpa), {from, size});
  *out = put == size ? FaultOutcome::kFixed : FaultOutcome::kToUser;
  const Memslots::Reader section(slots_);
  const Slot* const slot = section.find(fault.address_space, fault.gfn);
  if (put != 0 && slot != nullptr) Memslots::mark_dirty(*slot, fault.gfn, fault.ring);
  return true;
}

template <typename F>
FaultOutcome GuestMemory::transfer(const Fault& like, size_t bytes, size_t* done, F&& copy) {
  size_t moved = 0;
  FaultOutcome outcome = FaultOutcome::kFixed;
  while (moved < bytes) {
    Fault fault = like;
    fault.gpa = like.gpa + moved;
    const size_t chunk = std::min<size_t>(bytes - moved, kPageSize - page_offset(fault.gpa));
    const auto elsewhere = [&] {
      if constexpr (std::is_invocable_v<F&, size_t>) {
        return write_to_device(fault, copy(moved), chunk, &outcome);
      }
      return false;
    };
    if (!elsewhere()) {
      outcome = with_page(fault, Mode::kMayBlock,
                          [&](Hva hva) { return copy(hva, moved, chunk) == chunk; });
    }
    // The slot was away when registers were looked for, and is there again.
    if (outcome == FaultOutcome::kToUser && is_register(fault)) continue;
    if (outcome != FaultOutcome::kFixed) break;
    moved += chunk;
  }
  if (done != nullptr) *done = moved;
  return outcome;
}

FaultOutcome GuestMemory::read(Gpa from, void* to, size_t bytes, size_t* done, u32 address_space) {
  const Fault like{
      .gpa = from, .access = Access::kRead, .address_space = address_space, .own = true};
  return transfer(like, bytes, done, [to](Hva hva, size_t offset, size_t chunk) {
    return host::copy_from(static_cast<u8*>(to) + offset, hva, chunk);
  });
}

FaultOutcome GuestMemory::read_as_guest(Gpa from, void* to, size_t bytes) {
  const Fault like{.gpa = from, .access = Access::kRead};
  return transfer(like, bytes, nullptr, [to](Hva hva, size_t offset, size_t chunk) {
    return host::copy_from(static_cast<u8*>(to) + offset, hva, chunk);
  });
}

FaultOutcome GuestMemory::write(Gpa to, const void* from, size_t bytes, size_t* done,
                                u32 address_space, DirtyRing* ring) {
  const Fault like{.gpa = to,
                   .access = Access::kWrite,
                   .address_space = address_space,
                   .own = true,
                   .ring = ring};
  // What a page is given, and what a device is told.
  struct Store {
    const u8* from;
    size_t operator()(Hva hva, size_t offset, size_t chunk) const {
      return host::copy_to(hva, from + offset, chunk);
    }
    const u8* operator()(size_t offset) const { return from + offset; }
  };
  return transfer(like, bytes, done, Store{static_cast<const u8*>(from)});
}

FaultOutcome GuestMemory::emulated_write(Gpa to, const void* from, size_t bytes, DirtyRing* ring,
                                         u32 address_space) {
  const FaultOutcome outcome = write(to, from, bytes, nullptr, address_space, ring);
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

// --- what there is ---

const Slot* GuestMemory::audit_slot(u32 address_space, Gfn gfn) {
  const Memslots::Reader section(slots_);
  return section.find(address_space, gfn);
}

// Under slots_lock: `taken` is then nobody's.
void GuestMemory::audit_right(const Slot& slot, u64 page) {
  slot.dirty->taken[page / 64] |= u64{1} << (page % 64);
}

void GuestMemory::check_world() {
  slots_.check_world();
  slots_.between_updates([this] {
    const auto each_word = [this](auto&& fn) {
      const Memslots::Reader section(slots_);
      section.for_each_user(host::kWholeAddressSpace, [&](const Slot& slot, GfnRange) {
        if (slot.dirty == nullptr) return;
        for (u64 i = 0; i < slot.dirty->word_count; ++i) fn(*slot.dirty, i);
      });
    };
    each_word([](DirtyBitmap& dirty, u64 i) { dirty.taken[i] = 0; });
    tdp_.check_world();
    // What gives a right marks the page in the same section; nobody takes marks meanwhile.
    if (ST_GUARD(audit_waits, true)) slots_.wait_for_readers();
    each_word([](DirtyBitmap& dirty, u64 i) {
      ST_CHECK((dirty.taken[i] & ~dirty.words[i].load(sync::kRelaxed)) == 0);
    });
  });
}

GuestMemory::Counts GuestMemory::counts() const {
  return {retries_.load(sync::kRelaxed), invalidations_.load(sync::kRelaxed),
          flushes_saved_.load(sync::kRelaxed)};
}

}  // namespace stagetwo::stage2

// SPDX-License-Identifier: Apache-2.0
#include "abi/kvm/secure_vm.h"

#include <algorithm>

#include "abi/kvm/kvm.h"
#include "base/process_page.h"
#include "base/trace.h"
#include "sync/futex.h"
#include "uv/hypervisor.h"

// Slots. stage2 has the last word on what a slot may be, so it is asked first; what the guest
// cannot have is taken back from it:
//
//   set_region                         | a vCPU
//   stage2 has the slot                |
//                                      | a secure guest's: find() says it is in no slot: MMIO
//   the guest has it: zeros            |
//                                      | finds it
//   stage2 has it no more              |
//                                      | no slot: MMIO
//   the guest has it no more: wiped    |
//
// A slot that moves stays the guest's: were it taken out and put in again, it would be gone where
// its pages cannot be taken once more.

namespace stagetwo::abi_kvm {

struct SecureMachine {
  u32 stamp = 0;  // of the process it works in: a child of fork has none of its memory
  uv::ProcessMemory real;
  uv::Hypervisor hypervisor;
  uv::Ultravisor ultravisor;
  sync::Mutex lock{sync::Rank::kLeaf};
  u64 lpids TA_GUARDED(lock) = 0;  // bit n: lpid n + 1 is taken
  static_assert(uv::Ultravisor::kMostGuests == 64);
};

namespace {

sync::Atomic<u64> offered_bytes{0};
sync::Atomic<SecureMachine*> the_machine{nullptr};
// The process in which somebody makes it just now. A child of fork in which it is another's makes
// its own: nobody there goes on with what a thread of the parent had begun.
sync::Atomic<u32> making{0};

// May as much more be locked? Each vCPU is to have some for its decoded code, or it cannot run.
bool leaves_room(u64 bytes) {
  return mem::SecureMemory::map(bytes, mem::SecureMemory::Want::kSecretOrLocked, "abi.code_room")
      .has_value();
}

// As much of the pool as may be locked: half, and half again. Empty: not even a little.
Box<SecureMachine> open_machine(u64 bytes) {
  constexpr u32 kFewestPages = 64;
  constexpr u64 kCodeRoom = 64 * kPageSize;
  auto pages = static_cast<u32>(std::min<u64>(bytes / kPageSize, u64{1} << 30));
  for (;; pages /= 2) {
    auto made = make_box<SecureMachine>("abi.secure_machine");
    if (!made) return {};
    uv::UltravisorOptions options;
    options.pool_pages = std::max(pages, kFewestPages);
    options.esm_pages = 64;  // some milliseconds
    SecureMachine& fresh = **made;
    if (fresh.ultravisor.open(options, &fresh.hypervisor, &fresh.real) && leaves_room(kCodeRoom)) {
      return std::move(*made);
    }
    if (pages <= kFewestPages) return {};
  }
}

SecureMachine* machine() {
  const u64 bytes = offered_bytes.load(sync::kRelaxed);
  if (bytes == 0) return nullptr;
  const u32 stamp = process_stamp();
  for (;;) {
    SecureMachine* const now = the_machine.load(sync::kAcquire);
    if (now != nullptr && now->stamp == stamp) return now;
    u32 maker = making.load(sync::kAcquire);
    if (maker == stamp) {
      sync::yield_thread();  // progress: another thread of this process is at it
    } else if (making.compare_exchange(maker, stamp)) {
      break;
    }
  }
  SecureMachine* machine = the_machine.load(sync::kAcquire);
  if (machine == nullptr || machine->stamp != stamp) {
    Box<SecureMachine> made = open_machine(bytes);
    if (made) made->stamp = stamp;
    // Never ends: guests find it from everywhere.
    machine = made ? made.release() : nullptr;
    if (machine != nullptr) the_machine.store(machine, sync::kRelease);
  }
  making.store(0, sync::kRelease);
  return machine;
}

// 0: all are taken.
u32 take_lpid(SecureMachine* machine) {
  const sync::MutexGuard guard(machine->lock);
  if (~machine->lpids == 0) return 0;
  const auto free = static_cast<u32>(__builtin_ctzll(~machine->lpids));
  machine->lpids |= u64{1} << free;
  return free + 1;
}
void give_lpid(SecureMachine* machine, u32 lpid) {
  const sync::MutexGuard guard(machine->lock);
  machine->lpids &= ~(u64{1} << (lpid - 1));
}

}  // namespace

void offer_secure_guests(u64 pool_bytes) {
  offered_bytes.store(pool_bytes, sync::kRelaxed);
}

bool SecureVm::offered() {
  return machine() != nullptr;
}

// ---- life -------------------------------------------------------------------------------------

Box<SecureVm> SecureVm::create(stage2::GuestMemory& memory) {
  SecureMachine* const here = machine();
  const u32 lpid = here != nullptr ? take_lpid(here) : 0;
  if (lpid == 0) return {};
  auto made = make_box<SecureVm>("abi.secure_vm", *here, lpid, memory);
  if (!made) {
    give_lpid(here, lpid);
    return {};
  }
  SecureVm* const vm = made->get();
  if (!here->hypervisor.add(&vm->guest_) || !here->ultravisor.set_table(lpid, vm)) return {};
  memory.private_memory().set_keeper(vm);
  return std::move(*made);
}

SecureVm::SecureVm(SecureMachine& machine, u32 lpid, stage2::GuestMemory& memory)
    : machine_(machine),
      lpid_(lpid),
      memory_(memory),
      guest_(lpid, kPageSize, &pages_, &machine.ultravisor) {
  pages_.set_guest(&guest_);
  guest_.set_log(this);
}

SecureVm::~SecureVm() {
  // No vCPU runs, so it is not refused.
  static_cast<void>(guest_.svm_off());
  {
    const sync::MutexGuard guard(lock_);
    for (const Known& known : slots_) {
      if (known.fits) pages_.forget(known.base);
    }
  }
  static_cast<void>(machine_.ultravisor.set_table(lpid_, nullptr));
  machine_.hypervisor.remove(&guest_);
  give_lpid(&machine_, lpid_);
}

Result<void> SecureVm::enable() {
  const sync::MutexGuard guard(lock_);
  if (std::ranges::any_of(slots_, [](const Known& known) { return !known.fits; })) {
    return refuse(EINVAL);
  }
  enabled_ = true;
  guest_.enable();
  return {};
}

// ---- slots ------------------------------------------------------------------------------------

SecureVm::Known* SecureVm::find_slot(u32 slot) {
  for (Known& known : slots_) {
    if (known.slot == slot) return &known;
  }
  return nullptr;
}

u32 SecureVm::free_uv_slot() const {
  u32 id = 0;
  while (std::ranges::any_of(slots_, [&](const Known& k) { return k.fits && k.uv_slot == id; })) {
    ++id;
  }
  return id;
}

bool SecureVm::is_anothers(HvaRange at) const {
  return std::ranges::any_of(
      slots_, [&](const Known& known) { return known.is_mapped && known.at.overlaps(at); });
}

// Of two slots with the same memory the later has no memory that could become secure: a page leaves
// for one page of the guest, and the kernel's answer to the other is PARAMETER, too, because what
// it finds there is no page it may move (MIGRATE_VMA_SELECT_SYSTEM). So the slot is there, and it
// is UV_ESM that fails; a guest that is secure does not get such a slot.
Result<void> SecureVm::plug(Known known, bool can_be_secure) {
  ST_TRY(slots_.reserve(slots_.size() + 1));
  if (can_be_secure) {
    known.uv_slot = free_uv_slot();
    const bool takes_memory = !is_anothers(known.at);
    Result<void> done;
    if (takes_memory) done = pages_.map(known.base, known.at);
    if (done) done = guest_.add_slot(known.uv_slot, known.base, known.at.size());
    if (!done) pages_.forget(known.base);
    known.is_mapped = takes_memory && done;
    known.fits = done.has_value();
    if (!done && enabled_) return done;
  }
  if (!known.fits && enabled_) return refuse(EINVAL);
  return slots_.push_back(known);
}

void SecureVm::unplug(u32 slot) {
  Known* const known = find_slot(slot);
  if (known == nullptr) return;
  if (known->fits) {
    guest_.remove_slot(known->uv_slot);
    pages_.forget(known->base);
  }
  slots_.erase(static_cast<size_t>(known - slots_.begin()));
  // Its memory may be another's now. No memory for that: UV_ESM fails as before.
  for (Known& other : slots_) {
    if (!other.fits || other.is_mapped || is_anothers(other.at)) continue;
    other.is_mapped = pages_.map(other.base, other.at).has_value();
  }
}

// Its memory and its length stay what they were.
Result<void> SecureVm::move(Known* known, const stage2::Region& region) {
  const Result<u32> moved = guest_.move_slot(known->uv_slot, free_uv_slot(), Gpa(region.gpa));
  if (moved) {
    known->base = Gpa(region.gpa);
    known->flags = region.flags;
    known->uv_slot = *moved;
    return {};
  }
  stage2::Region back = region;
  back.gpa = known->base.raw();
  back.flags = known->flags;
  static_cast<void>(memory_.slots().set_region(back));
  return refuse(moved.error());
}

Result<void> SecureVm::set_region(const stage2::Region& region) {
  const sync::MutexGuard guard(lock_);
  ST_TRY(memory_.slots().set_region(region));
  Known now{region.slot, region.flags, 0, Gpa(region.gpa), {}, false};
  bool is_there = false, can_be_secure = false;
  memory_.slots().with_slot(region.slot, [&](const stage2::Slot* slot) {
    is_there = slot != nullptr;
    if (!is_there) return;
    now.at = slot->hvas();
    can_be_secure = (region.slot >> 16) == 0 && slot->file == nullptr;
  });
  Known* const before = find_slot(region.slot);
  if (is_there && before != nullptr && before->at.start() == now.at.start() &&
      before->at.size() == now.at.size()) {
    // What it logs is no concern of ours.
    if (before->base == now.base) {
      before->flags = region.flags;
      return {};
    }
    if (before->fits) return move(before, region);
  }
  unplug(region.slot);
  if (!is_there) return {};
  const Result<void> plugged = plug(now, can_be_secure);
  if (plugged) return {};
  stage2::Region none = region;
  none.size = 0;
  none.flags = 0;
  static_cast<void>(memory_.slots().set_region(none));
  return plugged;
}

// ---- the guest --------------------------------------------------------------------------------

std::optional<u64> SecureVm::call(const vcpu::HypercallExit& call) {
  const bool is_secure = machine_.ultravisor.state(lpid_) == uv::SvmState::kSecure;
  const uv::Caller caller = is_secure ? uv::Caller::kSecureGuest : uv::Caller::kGuest;
  uv::Message message;
  message.call = static_cast<uv::Call>(call.nr);
  message.lpid = lpid_;
  std::copy_n(call.args, std::size(message.args), message.args);
  const bool of_hypervisor = call.nr < static_cast<u64>(uv::Call::kUvWritePate);
  const uv::Status answer = of_hypervisor ? machine_.hypervisor.call(message, caller)
                                          : machine_.ultravisor.call(message, caller);
  // Another vCPU is in UV_ESM: a guest that is neither normal nor secure does not run. Or this one
  // is in a call about many pages, and has a while to go.
  if (answer == uv::Status::kBusy) return std::nullopt;
  return uv::to_word(answer);
}

// ---- the table --------------------------------------------------------------------------------

stage2::FrameKeeper::Where SecureVm::find(Gfn gfn, Hva* page) {
  u8* at = nullptr;
  switch (machine_.ultravisor.translate(lpid_, gfn_to_gpa(gfn), &at)) {
    case uv::Where::kProcess:
      return Where::kProcess;
    case uv::Where::kSecure:
      *page = Hva(reinterpret_cast<std::uintptr_t>(at));
      return Where::kKept;
    case uv::Where::kLater:
      return Where::kLater;
    case uv::Where::kMmio:
      return Where::kMmio;
    case uv::Where::kStopped:
      break;
  }
  return Where::kStopped;
}

stage2::FaultOutcome SecureVm::bring(Gfn gfn) {
  switch (machine_.ultravisor.bring(lpid_, gfn_to_gpa(gfn))) {
    case uv::GuestAccess::kDone:
    case uv::GuestAccess::kRetry:
      return stage2::FaultOutcome::kRetry;
    case uv::GuestAccess::kMmio:
      return stage2::FaultOutcome::kMmio;
    case uv::GuestAccess::kFault:
      return stage2::FaultOutcome::kToUser;
    case uv::GuestAccess::kStopped:
      break;
  }
  return stage2::FaultOutcome::kMemoryFault;
}

bool SecureVm::keeps() {
  return machine_.ultravisor.state(lpid_) != uv::SvmState::kNone;
}

void SecureVm::going(u64 first, u64 count) {
  memory_.private_memory().frames_going(GfnRange(Gfn(first), count));
}
void SecureVm::gone() {
  memory_.private_memory().frames_gone();
}

void SecureVm::changed(Gpa page, u64 bytes) {
  memory_.slots().mark_changed(0, GfnRange(gpa_to_gfn(page), bytes >> kPageShift));
}

}  // namespace stagetwo::abi_kvm

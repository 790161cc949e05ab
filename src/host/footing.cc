// SPDX-License-Identifier: Apache-2.0
#include "host/footing.h"

#include <signal.h>
#include <sys/syscall.h>

#include <algorithm>

#include "base/guard.h"
#include "base/sys.h"
#include "host/access.h"
#include "host/blocked_faults.h"
#include "host/change.h"
#include "host/owner_table.h"

namespace stagetwo::host {
namespace {

// How far below the frame that entered the engine's own frames reach, a signal's among them, and
// how far above it what they were given stands.
constexpr u64 kDeep = 64 << 10;
constexpr u64 kAbove = 8 << 10;
// Of an alternate stack, whose end is its beginning.
constexpr u64 kAlternate = 64 << 10;

constinit Footings all;

struct Own {
  u32 hint = 0;
  bool knows_alternate = false;
  u8 pages_in_hand = 0;         // how many times over
  FootingSlot* slot = nullptr;  // while the thread is in the engine
  u64 alternate = 0;
  u64 data = 0;  // 0: not asked for yet
};
[[gnu::tls_model("initial-exec")]] thread_local Own own;

u64 alternate_stack() {
  if (own.knows_alternate) [[likely]]
    return own.alternate;
  stack_t now{};
  sys::call(SYS_sigaltstack, 0, sys::arg(&now));
  own.knows_alternate = true;
  own.alternate = 0;
  if ((now.ss_flags & SS_DISABLE) != 0 || now.ss_size == 0) return 0;
  const u64 start = reinterpret_cast<u64>(now.ss_sp);
  const Hva end = page_floor(Hva(start + now.ss_size - 1)) + kPageSize;
  const Hva first = page_floor(Hva(start));
  const Hva low = end - first > kAlternate ? end - kAlternate : first;
  own.alternate = packed(HvaRange(low, end - low));
  return own.alternate;
}

void touch(Hva page) {
  u8 any = 0;
  static_cast<void>(load(page, &any));  // where nothing is, nothing is stood on
}

// No handler's frame comes on a stack that may be absent, and the guarded accesses work.
class OnlyFaults {
 public:
  OnlyFaults() {
    constexpr u64 kFaults = u64{1} << (SIGSEGV - 1) | u64{1} << (SIGBUS - 1) |
                            u64{1} << (SIGILL - 1) | u64{1} << (SIGFPE - 1) |
                            u64{1} << (SIGTRAP - 1) | u64{1} << (SIGSYS - 1);
    constexpr u64 kLibcs = u64{1} << 31 | u64{1}
                                              << 32;  // set-id calls wait until all have answered
    const u64 others = ~(kFaults | kLibcs);
    change(&others, &before_);
  }
  ~OnlyFaults() { change(&before_, nullptr); }
  OnlyFaults(const OnlyFaults&) = delete;
  OnlyFaults& operator=(const OnlyFaults&) = delete;

 private:
  static void change(const u64* set, u64* old) {
    static_cast<void>(
        sys::call(SYS_rt_sigprocmask, SIG_SETMASK, sys::arg(set), sys::arg(old), sizeof(u64)));
  }
  u64 before_ = 0;
};

// From its end down: a stack is used so.
void fetch(HvaRange range) {
  OwnerTable* const table = owner_table();
  if (table == nullptr || range.empty()) return;
  const u64 pages = range.size() / kPageSize;
  const u64 ours = table->pages_of_owners(range);
  for (u64 i = pages; i-- > 0;) {
    if ((ours >> i & 1) != 0) touch(range.start() + i * kPageSize);
  }
}

// Nobody takes of the slot's windows any more. What the locks below are taken on is there first.
void look(FootingSlot* slot, const Standing& standing) {
  if (touches_are_signals()) return;
  const OnlyFaults only_faults;
  const u64 takings = all.wait_for_takers();
  const Hva here = page_floor(Hva(reinterpret_cast<u64>(__builtin_frame_address(0))));
  touch(here);
  touch(here - kPageSize);
  const HvaRange data = unpacked(standing.data);
  for (Hva at = data.start(); at < data.end(); at += kPageSize) touch(at);
  fetch(unpacked(standing.stack));
  fetch(unpacked(standing.alternate));
  if (slot != nullptr) Footings::note_looked(*slot, takings);
}

// The data of a thread of libc's is where its stack ends: above it is other memory.
HvaRange stack_at(const void* here, Hva data_end) {
  const Hva page = page_floor(Hva(reinterpret_cast<u64>(here)));
  Hva end = page + kPageSize + kAbove;
  if (page < data_end) end = std::min(end, data_end);
  return HvaRange(page - kDeep, end - (page - kDeep));
}

Standing standing_at(const void* here) {
  if (own.data == 0) [[unlikely]]
    own.data = packed(data_of_thread());
  const u64 data = own.data;
  return {packed(stack_at(here, unpacked(data).end())), data, alternate_stack()};
}

}  // namespace

// ---- the slots ------------------------------------------------------------------------------

FootingSlot* Footings::enter(const Standing& standing, u32* hint) {
  for (u32 tried = 0; tried <= kMost; ++tried) {
    const u32 place = tried == 0 ? *hint : tried - 1;
    FootingSlot& slot = slots_[place];
    u64 nobody = 0;
    if (slot.stack.load(sync::kRelaxed) != 0) continue;
    u32 used = used_.load();
    while (used <= place && !used_.compare_exchange(used, place + 1)) {
    }
    if (!slot.stack.compare_exchange(nobody, standing.stack)) continue;
    *hint = place;
    const bool mine = slot.data.load(sync::kRelaxed) == standing.data &&
                      slot.alternate.load(sync::kRelaxed) == standing.alternate;
    if (!mine) {
      slot.looked.store(0, sync::kRelaxed);
      slot.data.exchange(standing.data);
      slot.alternate.exchange(standing.alternate);
    }
    return &slot;
  }
  crowd_.fetch_add(1);
  return nullptr;
}

void Footings::leave(FootingSlot* slot) {
  if (slot != nullptr) [[likely]]
    return slot->stack.store(0, sync::kRelease);
  crowd_.fetch_sub(1);
}

bool Footings::is_known(const FootingSlot& slot) const {
  const u64 takings = takings_.load();
  if (takings == 0) return true;
  if (takings != slot.takings.load(sync::kRelaxed)) return false;
  const HvaRange now = unpacked(slot.stack.load(sync::kRelaxed));
  const HvaRange looked = unpacked(slot.looked.load(sync::kRelaxed));
  return looked.start() <= now.start() && now.end() <= looked.end();
}

u64 Footings::wait_for_takers() const {
  const u64 takings = takings_.load();
  if (ST_GUARD(footing_waits, true)) takers_.wait();
  return takings;
}

// With what it knew, as long as that holds.
void Footings::note_looked(FootingSlot& slot, u64 takings) {
  constexpr u64 kMostBytes = 1 << 20;
  HvaRange now = unpacked(slot.stack.load(sync::kRelaxed));
  const HvaRange before = unpacked(slot.looked.load(sync::kRelaxed));
  if (slot.takings.load(sync::kRelaxed) == takings && before.overlaps(now)) {
    const Hva start = std::min(before.start(), now.start());
    const u64 bytes = std::max(before.end(), now.end()) - start;
    if (bytes <= kMostBytes) now = HvaRange(start, bytes);
  }
  slot.looked.store(packed(now), sync::kRelaxed);
  slot.takings.store(takings, sync::kRelaxed);
}

void Footings::count_taking() {
  if (ST_GUARD(footing_counts, true)) takings_.fetch_add(1);
}

template <typename F>
void Footings::for_each(F&& see) const {
  const u32 used = used_.load();
  for (u32 i = 0; i < used; ++i) {
    const u64 stack = slots_[i].stack.load();
    if (stack == 0) continue;
    see(unpacked(stack));
    see(unpacked(slots_[i].data.load()));
    see(unpacked(slots_[i].alternate.load()));
  }
}

HvaRange Footings::first_in(HvaRange range) const {
  if (crowd_.load() != 0) return range;
  HvaRange first;
  for_each([&](HvaRange stood) {
    if (!stood.overlaps(range)) return;
    if (!first.empty() && first.start() <= stood.start()) return;
    const Hva start = std::max(stood.start(), range.start());
    first = HvaRange(start, std::min(stood.end(), range.end()) - start);
  });
  return first;
}

HvaRange Footings::clear_around(HvaRange piece, HvaRange span) const {
  Hva start = span.start();
  Hva end = span.end();
  for_each([&](HvaRange stood) {
    if (stood.empty()) return;
    if (stood.end() <= piece.start()) start = std::max(start, stood.end());
    if (stood.start() >= piece.end()) end = std::min(end, stood.start());
  });
  return HvaRange(start, end - start);
}

void Footings::reset() {
  const u32 used = used_.load();
  for (u32 i = 0; i < used; ++i) {
    slots_[i].stack.store(0, sync::kRelaxed);
    slots_[i].looked.store(0, sync::kRelaxed);
    slots_[i].takings.store(0, sync::kRelaxed);
  }
  used_.store(0);
  crowd_.store(0);
  takings_.store(0);
  takers_.reset();
}

Footings& footings() {
  return all;
}

HvaRange footing_at(const void* here) {
  return stack_at(here, data_of_thread().end());
}

// ---- a thread -------------------------------------------------------------------------------

void Footing::enter(const void* here) {
  const Standing standing = standing_at(here);
  slot_ = all.enter(standing, &own.hint);
  own.slot = slot_;
  entered_ = true;
  if (slot_ == nullptr || !all.is_known(*slot_)) [[unlikely]]
    look(slot_, standing);
}

void Footing::leave() {
  if (!entered_) return;
  entered_ = false;
  own.slot = nullptr;
  all.leave(slot_);
}

PagesInHand::PagesInHand() {
  ++own.pages_in_hand;
}
PagesInHand::~PagesInHand() {
  --own.pages_in_hand;
}
bool PagesInHand::any() {
  return own.pages_in_hand != 0;
}

void alternate_stack_changed() {
  own.knows_alternate = false;
}

void footing_discarded(u64 first, u64 size) {
  const auto range = pages_of(first, size);
  FootingSlot* const slot = own.slot;
  if (!range || slot == nullptr) return;
  const Standing standing{slot->stack.load(sync::kRelaxed), slot->data.load(sync::kRelaxed),
                          slot->alternate.load(sync::kRelaxed)};
  const bool met = unpacked(standing.stack).overlaps(*range) ||
                   unpacked(standing.data).overlaps(*range) ||
                   unpacked(standing.alternate).overlaps(*range);
  if (met) look(slot, standing);
}

void footings_after_fork_child() {
  own.slot = nullptr;
  all.reset();
}

}  // namespace stagetwo::host

// SPDX-License-Identifier: Apache-2.0
#include "uv/process_pages.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>

#include "base/alloc.h"
#include "base/check.h"
#include "base/sys.h"
#include "host/access.h"
#include "host/faultin.h"
#include "mem/secure_memory.h"
#include "sync/futex.h"

// A put and a touch of one page:
//
//   put (put_back, discard)            | touch (the owner's bring_back)
//   the guest's page is busy; due: f   |
//                                      | finds f due: puts it there; nothing is due
//   asks for the page: it is there     |
//   nothing is due: done               |
//
//   or                                 | asks the guest: kAgain, and is told to come again
//   due: f; asks for the page          | finds f due
//
// One of the two fills the page (host/page_owner.h), and whatever is due when it does is what is
// put.

namespace stagetwo::uv {
namespace {

constexpr u64 kChunk = 64;  // frames mapped at once
constexpr u64 kWarm = 64;   // frames that keep their memory

}  // namespace

ProcessPages::~ProcessPages() {
  if (hears_) host::unregister_notifier(this);
  const sync::MutexGuard guard(lock_);
  for (const u64 chunk : chunks_) unmap_pages(reinterpret_cast<void*>(chunk), kChunk * kPageSize);
}

// ---- where pages are --------------------------------------------------------------------------

Result<void> ProcessPages::map(Gpa base, HvaRange at) {
  if (page_offset(base) != 0 || page_offset(at.start()) != 0 || at.size() % kPageSize != 0 ||
      at.empty()) {
    return refuse(EINVAL);
  }
  Part part{base, at, Vec<Due>("uv.due")};
  ST_TRY(part.due.resize(at.size() / kPageSize));
  if (!hears_) ST_TRY(host::register_notifier(this));
  hears_ = true;
  const sync::MutexGuard guard(lock_);
  return parts_.push_back(std::move(part));
}

void ProcessPages::forget(Gpa base) {
  HvaRange at;
  {
    const sync::MutexGuard guard(lock_);
    Part* const part = find(base);
    if (part == nullptr) return;
    at = part->at;
  }
  static_cast<void>(host::bring_back_range(at));
  const sync::MutexGuard guard(lock_);
  parts_.erase(static_cast<size_t>(find(base) - parts_.begin()));
}

ProcessPages::Part* ProcessPages::find(Gpa page) {
  for (Part& part : parts_) {
    if (page >= part.base && page - part.base < part.at.size()) return &part;
  }
  return nullptr;
}
ProcessPages::Part* ProcessPages::find(Hva at) {
  for (Part& part : parts_) {
    if (part.at.contains(at)) return &part;
  }
  return nullptr;
}
ProcessPages::Due* ProcessPages::due_at(Hva at) {
  Part* const part = find(at);
  return part != nullptr ? &part->due[(at - part->at.start()) / kPageSize] : nullptr;
}
Hva ProcessPages::address(Gpa page) {
  const sync::MutexGuard guard(lock_);
  const Part* const part = find(page);
  return part != nullptr ? part->at.start() + (page - part->base) : Hva(0);
}
HvaRange ProcessPages::part_at(Hva at) {
  const sync::MutexGuard guard(lock_);
  const Part* const part = find(at);
  return part != nullptr ? part->at : HvaRange(at, kPageSize);
}
// What was due there; of an address that is nobody's, nothing.
ProcessPages::Due ProcessPages::swap_due(Hva at, Due fresh) {
  const sync::MutexGuard guard(lock_);
  Due* const due = due_at(at);
  return due != nullptr ? std::exchange(*due, fresh) : Due();
}

// ---- what the process gives up ------------------------------------------------------------------

// What owners take away is announced, too: a frame both sides use may go to the swap device. Not
// what is taken for the guest itself: it knows.

bool ProcessPages::overlap(HvaRange range, size_t* index, Gpa* start, u64* bytes) {
  const sync::MutexGuard guard(lock_);
  for (; *index < parts_.size(); ++*index) {
    const Part& part = parts_[*index];
    const Hva first = std::max(range.start(), part.at.start());
    const Hva end = std::min(range.end(), part.at.end());
    if (first >= end) continue;
    *start = part.base + (first - part.at.start());
    *bytes = end - first;
    ++*index;
    return true;
  }
  return false;
}

// One end, however many parts of the guest's memory the range has.
bool ProcessPages::invalidate_range_start(const host::InvalidateEvent& event) {
  if (event.owner == this || event.kind == host::EventKind::kRelease) return false;
  size_t index = 0;
  Gpa start;
  u64 bytes = 0;
  bool engaged = false;
  while (overlap(event.range, &index, &start, &bytes)) {
    engaged ? guest_->unmap_more(start, bytes) : guest_->unmap_begin(start, bytes);
    engaged = true;
  }
  return engaged;
}

host::TryStart ProcessPages::try_invalidate_range_start(const host::InvalidateEvent& event) {
  if (event.owner == this || event.kind == host::EventKind::kRelease) {
    return host::TryStart::kNotMine;
  }
  size_t index = 0;
  Gpa start;
  u64 bytes = 0;
  bool engaged = false;
  while (overlap(event.range, &index, &start, &bytes)) {
    if (!engaged) {
      if (!guest_->try_unmap_begin(start, bytes)) return host::TryStart::kWouldWait;
    } else if (!guest_->try_unmap_more(start, bytes)) {
      guest_->unmap_end();
      return host::TryStart::kWouldWait;
    }
    engaged = true;
  }
  return engaged ? host::TryStart::kEngaged : host::TryStart::kNotMine;
}

void ProcessPages::invalidate_range_end(const host::InvalidateEvent&) {
  guest_->unmap_end();
}

bool ProcessPages::borrows(HvaRange range) {
  size_t index = 0;
  Gpa start;
  u64 bytes = 0;
  return overlap(range, &index, &start, &bytes);
}

// ---- frames -----------------------------------------------------------------------------------

// They hold pages in clear on their way to secure memory.
Result<void> ProcessPages::more_frames() {
  const auto pages = map_pages(kChunk * kPageSize, "uv.frames");
  if (!pages) return refuse(pages.error());
  const u64 start = reinterpret_cast<std::uintptr_t>(*pages);
  static_cast<void>(sys::madvise(*pages, kChunk * kPageSize, MADV_DONTDUMP));
  host::prepare_places(HvaRange(Hva(start), kChunk * kPageSize));
  const sync::MutexGuard guard(lock_);
  // Every frame there is can be free: drop_frame() is never refused.
  auto good = chunks_.push_back(start);
  if (good) good = free_.reserve(chunks_.size() * kChunk);
  if (good) good = warm_.reserve(kWarm);
  if (!good) {
    if (chunks_.size() != 0 && chunks_.back() == start) chunks_.pop_back();
    unmap_pages(*pages, kChunk * kPageSize);
    return good;
  }
  for (u64 i = 0; i < kChunk; ++i) ST_CHECK(free_.push_back(start + i * kPageSize).has_value());
  return {};
}

u64 ProcessPages::new_frame() {
  {
    const sync::MutexGuard guard(lock_);
    if (!warm_.empty()) {
      const u64 frame = warm_.back();
      warm_.pop_back();
      return frame;
    }
  }
  return empty_frame();
}

// A place for a page to be moved to; as a frame, zeros.
u64 ProcessPages::empty_frame() {
  for (;;) {
    {
      const sync::MutexGuard guard(lock_);
      if (!free_.empty()) {
        const u64 frame = free_.back();
        free_.pop_back();
        return frame;
      }
    }
    if (!more_frames()) return 0;
  }
}

void ProcessPages::drop_frame(u64 frame) {
  if (frame == 0 || frame == kZeros) return;
  void* const at = reinterpret_cast<void*>(frame);
  mem::wipe(at, kPageSize);
  {
    const sync::MutexGuard guard(lock_);
    if (warm_.size() < kWarm) {
      ST_CHECK(warm_.push_back(frame).has_value());
      return;
    }
  }
  // Empty, so that a page can be moved there.
  static_cast<void>(sys::madvise(at, kPageSize, MADV_DONTNEED));
  const sync::MutexGuard guard(lock_);
  ST_CHECK(free_.push_back(frame).has_value());
}

u64 ProcessPages::frames_in_use() {
  const sync::MutexGuard guard(lock_);
  return chunks_.size() * kChunk - free_.size() - warm_.size();
}

// ---- taking -----------------------------------------------------------------------------------

Taken ProcessPages::take(Gpa page, u64* frame) {
  const Hva at = address(page);
  if (at.raw() == 0) return Taken::kHole;
  const u64 fresh = empty_frame();
  if (fresh == 0) return Taken::kBusy;
  static_cast<void>(swap_due(at, {fresh, false}));
  // The slot's memory is watched as one: it was for each page.
  const HvaRange span = part_at(at);
  const auto take = [&] {
    return host::take_away(HvaRange(at, kPageSize), this, this, host::Which::kAnonymous, &span);
  };
  auto taken = take();
  // Another owner has it: it was swapped, or is on a device.
  if (taken && *taken == 0 && host::bring_back(at) == host::BringBack::kBack) taken = take();
  if (!taken || *taken == 0) {
    static_cast<void>(swap_due(at, {}));
    drop_frame(fresh);
    return taken || taken.error() == Errno{ENOMEM} ? Taken::kBusy : Taken::kHole;
  }
  // Never touched, or zeros: nobody can tell, and nothing is to be moved.
  const auto* const bytes = reinterpret_cast<const u8*>(fresh);
  if (bytes[0] == 0 && std::memcmp(bytes, bytes + 1, kPageSize - 1) == 0) {
    drop_frame(fresh);
    return Taken::kUntouched;
  }
  *frame = fresh;
  return Taken::kFrame;
}

// Nothing is due any more when the page has left: a touch may come before take() goes on, and must
// not be given the bytes that have just been taken.
bool ProcessPages::take(const host::AbsentPage& page, host::PageExit& exit) {
  const u64 place = swap_due(page.at, {}).frame;
  // Nobody of ours asked for this one.
  if (place == 0) return false;
  if (exit.to(Hva(place))) return true;
  static_cast<void>(swap_due(page.at, {place, false}));
  return false;
}

// ---- putting ----------------------------------------------------------------------------------

// Whatever is due when the page is filled is put there. True: the frame is gone.
bool ProcessPages::put(Gpa page, u64 frame) {
  const Hva at = address(page);
  if (at.raw() == 0) return false;
  static_cast<void>(swap_due(at, {frame, false}));
  for (;;) {
    switch (host::bring_back(at)) {
      case host::BringBack::kRetry:
        sync::yield_thread();
        continue;
      case host::BringBack::kBack:
      case host::BringBack::kStuck:
      case host::BringBack::kNotAbsent:
      case host::BringBack::kLost:
        break;
    }
    // Still due: nothing stands in there any more, the process gave it up.
    return swap_due(at, {}).frame == 0;
  }
}

bool ProcessPages::put_back(Gpa page, u64 frame) {
  return put(page, frame);
}

void ProcessPages::discard(Gpa page) {
  if (put(page, kZeros)) return;
  // No stand-in: what is there is wiped, if anything is.
  const Hva at = address(page);
  static constexpr u8 kNothing[kPageSize] = {};
  if (at.raw() != 0) static_cast<void>(host::copy_to(at, kNothing, kPageSize));
}

host::BringBack ProcessPages::bring_back(const host::AbsentPage& page, host::PageEntry& entry) {
  const Hva at = page_floor(page.at);
  Gpa gpa;
  Due due;
  {
    const sync::MutexGuard guard(lock_);
    const Part* const part = find(at);
    if (part == nullptr) return host::BringBack::kLost;
    gpa = part->base + (at - part->at.start());
    due = *due_at(at);
  }
  if (due.frame == 0) {
    switch (guest_->touch_begin(gpa, &due.frame)) {
      case SecureGuest::Touch::kAgain:
      case SecureGuest::Touch::kNoStandIn:
        return host::BringBack::kRetry;
      case SecureGuest::Touch::kRefused:
        return host::BringBack::kLost;
      case SecureGuest::Touch::kFrame:
        break;
    }
    due.touched = true;
    static_cast<void>(swap_due(at, due));
  }
  static constexpr u8 kNothing[kPageSize] = {};
  // Copied rather than moved: moving would leave a place without memory, to be wiped with a fault,
  // given to the kernel, and filled again for the next page that leaves.
  const void* const bytes =
      due.frame == kZeros ? kNothing : reinterpret_cast<const void*>(due.frame);
  const bool put = entry.from_bytes(bytes);
  if (!put) return host::BringBack::kRetry;
  static_cast<void>(swap_due(at, {}));
  drop_frame(due.frame);
  if (due.touched) guest_->touch_end(gpa, 0, true);
  return host::BringBack::kBack;
}

// The process gave the address up while the page was absent. What a touch had on its way goes back
// to the guest.
void ProcessPages::discard(const host::AbsentPage& page) {
  const Hva at = page_floor(page.at);
  Gpa gpa;
  Due due;
  {
    const sync::MutexGuard guard(lock_);
    Part* const part = find(at);
    if (part == nullptr) return;
    gpa = part->base + (at - part->at.start());
    Due* const found = due_at(at);
    if (!found->touched) return;
    due = std::exchange(*found, Due());
  }
  guest_->touch_end(gpa, due.frame, false);
}

u64 ProcessPages::address_of(Gpa page) {
  const Hva at = address(page);
  if (at.raw() == 0 || !host::faultin(at, Access::kWrite)) return 0;
  return at.raw();
}

}  // namespace stagetwo::uv

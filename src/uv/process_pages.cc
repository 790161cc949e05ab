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
//
// Who takes pages in order is given the next ones from a run that left at once: a change of the
// address space for sixteen pages, not for each. Until they are asked for they are absent, with
// their own bytes due:
//
//   take: asks for the page            | touch
//   due, ahead: takes the frame        |
//                                      | nothing is due: asks the guest, whose page is busy
//
//   or                                 | finds the frame, has it in hand
//   in hand: answers BUSY              | puts it; nothing is due
//   asked again: takes the page        |
//
//   or                                 | take of the page before, with this one
//   nothing ahead; due: f              |
//                                      | the page leaves to the run: due, ahead
//   it does not leave, and f is not    |
//   due: takes what is                 |

namespace stagetwo::uv {
namespace {

constexpr u64 kChunk = 64;  // frames mapped at once
constexpr u64 kWarm = 64;   // frames that keep their memory

}  // namespace

ProcessPages::~ProcessPages() {
  if (hears_) host::unregister_notifier(this);
  const sync::MutexGuard guard(lock_);
  for (const u64 chunk : chunks_) unmap_pages(reinterpret_cast<void*>(chunk), kChunk * kPageSize);
  if (runs_ != 0) unmap_pages(reinterpret_cast<void*>(runs_), kRuns * kRun * kPageSize);
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
  if (give_to_run(frame, 1)) return;
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
  u64 in_use = chunks_.size() * kChunk - free_.size() - warm_.size();
  for (const u8 places : in_run_) in_use += places;
  return in_use;
}

// The places of a run, all empty. 0: all runs are in use, or there is no memory for any.
u64 ProcessPages::new_run() {
  constexpr u64 kBytes = kRuns * kRun * kPageSize;
  for (bool tried = false;; tried = true) {
    {
      const sync::MutexGuard guard(lock_);
      for (u64 i = 0; runs_ != 0 && i < kRuns; ++i) {
        if (in_run_[i] != 0) continue;
        in_run_[i] = kRun;
        return runs_ + i * kRun * kPageSize;
      }
      if (runs_ != 0 || tried) return 0;
    }
    const auto pages = map_pages(kBytes, "uv.frame_runs");
    if (!pages) return 0;
    const u64 start = reinterpret_cast<std::uintptr_t>(*pages);
    static_cast<void>(sys::madvise(*pages, kBytes, MADV_DONTDUMP));
    host::prepare_places(HvaRange(Hva(start), kBytes));
    const sync::MutexGuard guard(lock_);
    if (runs_ == 0) {
      runs_ = start;
    } else {
      unmap_pages(*pages, kBytes);
    }
  }
}

// Wiped or empty. False: not of a run.
bool ProcessPages::give_to_run(u64 frame, u64 count) {
  u64 run = 0;
  {
    const sync::MutexGuard guard(lock_);
    if (runs_ == 0 || frame - runs_ >= kRuns * kRun * kPageSize) return false;
    run = (frame - runs_) / (kRun * kPageSize);
    in_run_[run] = static_cast<u8>(in_run_[run] - count);
    if (in_run_[run] != 0) return true;
    in_run_[run] = 1;  // nobody's while it is emptied
    frame = runs_ + run * kRun * kPageSize;
  }
  static_cast<void>(sys::madvise(reinterpret_cast<void*>(frame), kRun * kPageSize, MADV_DONTNEED));
  const sync::MutexGuard guard(lock_);
  in_run_[run] = 0;
  return true;
}

// Empty places, of a run or one of the others.
void ProcessPages::give_places(u64 first, u64 count) {
  if (count == 0 || give_to_run(first, count)) return;
  const sync::MutexGuard guard(lock_);
  ST_CHECK(free_.push_back(first).has_value());
}

// ---- taking -----------------------------------------------------------------------------------

// Where the page and the next ones go. Pages one after the other, or nearly, by one thread or by
// several: twice as many each time.
u64 ProcessPages::places(Hva at, u64 alike, u64* pages) {
  constexpr u64 kNear = 8 * kPageSize;
  {
    const sync::MutexGuard guard(lock_);
    const u64 distance = at > last_taken_ ? at - last_taken_ : last_taken_ - at;
    window_ = distance <= kNear ? std::min(window_ * 2, kRun) : 1;
    last_taken_ = at;
    const Part* const part = find(at);
    const u64 left = part != nullptr ? (part->at.end() - at) / kPageSize : 1;
    *pages = std::min({window_, alike, left});
  }
  const u64 run = *pages > 1 ? new_run() : 0;
  if (run == 0) {
    *pages = 1;
    return empty_frame();
  }
  give_places(run + *pages * kPageSize, kRun - *pages);
  return run;
}

// kYes: *frame has the page's bytes. kNo: `otherwise` is due there, if it is anything.
ProcessPages::Ahead ProcessPages::take_ahead(Hva at, const Due& otherwise, u64* frame) {
  const sync::MutexGuard guard(lock_);
  Due* const due = due_at(at);
  if (due == nullptr) return Ahead::kNo;
  if (due->in_hand) return Ahead::kInHand;
  if (!due->ahead) {
    if (otherwise.frame != 0) *due = otherwise;
    return Ahead::kNo;
  }
  *frame = std::exchange(*due, Due()).frame;
  last_taken_ = at;
  return Ahead::kYes;
}

// Has the page left for `fresh`? If not, that may still be due, or the page have left, and be back,
// with another.
ProcessPages::Left ProcessPages::has_left(Hva at, u64 fresh) {
  const sync::MutexGuard guard(lock_);
  Due* const due = due_at(at);
  if (due == nullptr) return Left::kNo;
  if (due->gone) {
    *due = {};
    return Left::kYes;
  }
  return due->frame == fresh ? Left::kStillDue : Left::kNo;
}

void ProcessPages::withdraw(Hva at, u64 fresh) {
  const sync::MutexGuard guard(lock_);
  Due* const due = due_at(at);
  if (due != nullptr && due->frame == fresh) *due = {};
}

// The page leaves for `fresh`, and the next ones for the places behind it.
Taken ProcessPages::leave(Hva at, u64 fresh, u64 pages, u64* frame) {
  // The slot's memory is watched as one: it was for each page.
  const HvaRange span = part_at(at);
  const auto take = [&](u64 count) {
    return host::take_away(HvaRange(at, count * kPageSize), this, this, host::Which::kAnonymous,
                           &span);
  };
  auto taken = take(pages);
  Left left = has_left(at, fresh);
  // It may be one of the next ones that cannot be taken; or another owner has this one: it was
  // swapped, or is on a device.
  const bool by_itself = !taken && pages > 1;
  if (left == Left::kStillDue &&
      (by_itself || (taken && host::bring_back(at) == host::BringBack::kBack))) {
    taken = take(1);
    left = has_left(at, fresh);
  }
  *frame = fresh;
  if (left == Left::kYes) return Taken::kFrame;
  withdraw(at, fresh);
  give_places(fresh, pages);
  const Ahead ahead = take_ahead(at, {}, frame);
  if (ahead == Ahead::kYes) return Taken::kFrame;
  const bool may_come = left == Left::kNo || ahead == Ahead::kInHand || taken.has_value();
  return may_come || taken.error() == Errno{ENOMEM} ? Taken::kBusy : Taken::kHole;
}

Taken ProcessPages::take(Gpa page, u64 alike, u64* frame) {
  const Hva at = address(page);
  if (at.raw() == 0) return Taken::kHole;
  Taken taken = Taken::kFrame;
  Ahead ahead = take_ahead(at, {}, frame);
  // On its way with those before it, which another thread wanted?
  if (ahead == Ahead::kNo && host::is_absent(at)) ahead = take_ahead(at, {}, frame);
  if (ahead == Ahead::kNo) {
    u64 pages = 1;
    const u64 fresh = places(at, alike, &pages);
    if (fresh == 0) return Taken::kBusy;
    ahead = take_ahead(at, {.frame = fresh, .places = static_cast<u8>(pages)}, frame);
    if (ahead == Ahead::kNo) {
      taken = leave(at, fresh, pages, frame);
    } else {
      give_places(fresh, pages);
    }
  }
  if (ahead == Ahead::kInHand) return Taken::kBusy;
  if (taken != Taken::kFrame) return taken;
  // Never touched, or zeros: nobody can tell, and nothing is to be moved.
  const auto* const bytes = reinterpret_cast<const u8*>(*frame);
  if (bytes[0] != 0 || std::memcmp(bytes, bytes + 1, kPageSize - 1) != 0) return taken;
  drop_frame(std::exchange(*frame, 0));
  return Taken::kUntouched;
}

// Nothing is due any more when the page has left: a touch may come before take() goes on, and must
// not be given the bytes that have just been taken.
bool ProcessPages::take(const host::AbsentPage& page, host::PageExit& exit) {
  const Due due = swap_due(page.at, {});
  // Nobody of ours asked for this one.
  if (due.frame == 0) return false;
  if (exit.to(Hva(due.frame))) {
    static_cast<void>(swap_due(page.at, {.gone = true}));
    give_places(due.frame + kPageSize, due.places - 1U);
    return true;
  }
  static_cast<void>(swap_due(page.at, due));
  return false;
}

unsigned ProcessPages::take_run(const host::AbsentPage& first, unsigned pages,
                                host::PageExit& exit) {
  const Due due = swap_due(first.at, {});
  const unsigned moved = pages <= due.places && due.frame != 0 ? exit.run_to(Hva(due.frame)) : 0;
  if (moved == 0) {
    if (due.frame != 0) static_cast<void>(swap_due(first.at, due));
    return 0;
  }
  {
    const sync::MutexGuard guard(lock_);
    *due_at(first.at) = {.gone = true};
    for (unsigned i = 1; i < moved; ++i) {
      *due_at(first.at + i * kPageSize) = {.frame = due.frame + i * kPageSize, .ahead = true};
    }
  }
  give_places(due.frame + moved * kPageSize, due.places - moved);
  return moved;
}

void ProcessPages::leave_none_ahead() {
  for (size_t part = 0, page = 0;;) {
    Hva at;
    {
      const sync::MutexGuard guard(lock_);
      for (; part < parts_.size(); ++part, page = 0) {
        const Vec<Due>& due = parts_[part].due;
        while (page < due.size() && !due[page].ahead) ++page;
        if (page < due.size()) break;
      }
      if (part >= parts_.size()) return;
      at = parts_[part].at.start() + page * kPageSize;
    }
    // Somebody may ask for it meanwhile, or have it in hand.
    if (host::bring_back(at) != host::BringBack::kRetry) ++page;
  }
}

// ---- putting ----------------------------------------------------------------------------------

// Whatever is due when the page is filled is put there. True: the frame is gone.
bool ProcessPages::put(Gpa page, u64 frame) {
  const Hva at = address(page);
  if (at.raw() == 0) return false;
  u64 ahead = 0;
  for (;;) {
    const Ahead now = take_ahead(at, {.frame = frame}, &ahead);
    if (now == Ahead::kNo) break;
    if (now == Ahead::kInHand) sync::yield_thread();
  }
  drop_frame(ahead);
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
    Due* const now = due_at(at);
    now->in_hand = now->ahead;
    due = *now;
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
  if (!put) {
    due.in_hand = false;
    if (due.ahead) static_cast<void>(swap_due(at, due));
    return host::BringBack::kRetry;
  }
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
    if (!found->touched && !found->ahead) return;
    due = std::exchange(*found, Due());
  }
  if (due.ahead) return drop_frame(due.frame);
  guest_->touch_end(gpa, due.frame, false);
}

u64 ProcessPages::address_of(Gpa page) {
  const Hva at = address(page);
  if (at.raw() == 0 || !host::faultin(at, Access::kWrite)) return 0;
  return at.raw();
}

}  // namespace stagetwo::uv

// SPDX-License-Identifier: Apache-2.0
#include "uv/process_pages.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "host/access.h"
#include "host/faultin.h"
#include "host/process_map.h"
#include "sync/futex.h"
#include "uv/process_access.h"

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
//   in hand: waits                     | puts it; nothing is due
//   takes the page                     |
//
//   or                                 | take of the page before, with this one
//   nothing ahead; due: f              |
//                                      | the page leaves to the run: due, ahead
//   it does not leave, and f is not    |
//   due: takes what is                 |

namespace stagetwo::uv {
ProcessPages::~ProcessPages() {
  if (hears_) host::unregister_notifier(this);
}

// ---- where pages are --------------------------------------------------------------------------

Result<void> ProcessPages::map(Gpa base, HvaRange at) {
  if (base.raw() % page_bytes_ != 0 || page_offset(at.start()) != 0 ||
      at.size() % page_bytes_ != 0 || at.empty()) {
    return refuse(EINVAL);
  }
  Part part{base, at, Vec<Due>("uv.due"), Vec<u8>("uv.unasked")};
  ST_TRY(part.due.resize(at.size() / kPageSize));
  ST_TRY(part.unasked.resize(at.size() / page_bytes_));
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
  for (Hva page = at.start(); page < at.end(); page += page_bytes_) drop_kept(page);
  const sync::MutexGuard guard(lock_);
  parts_.erase(static_cast<size_t>(find(base) - parts_.begin()));
}

// A slot whose memory is another's (abi's Known::is_mapped) has no part.
void ProcessPages::moved(Gpa from, Gpa to, u64 /*bytes*/) {
  const sync::MutexGuard guard(lock_);
  Part* const part = find(from);
  if (part != nullptr && part->base == from) part->base = to;
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
void ProcessPages::set_due(Hva at, Due fresh) {
  const sync::MutexGuard guard(lock_);
  if (Due* const due = due_at(at)) *due = fresh;
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
  begin_loss(event);
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
  if (loses_unasked(event)) return host::TryStart::kWouldWait;
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

void ProcessPages::invalidate_range_end(const host::InvalidateEvent& event) {
  end_loss(event);
  guest_->unmap_end();
}

bool ProcessPages::borrows(HvaRange range) {
  size_t index = 0;
  Gpa start;
  u64 bytes = 0;
  return overlap(range, &index, &start, &bytes);
}

// ---- frames -----------------------------------------------------------------------------------

u64 ProcessPages::new_frame() {
  return frames_.full();
}
void ProcessPages::drop_frame(u64 frame) {
  frames_.drop(frame);
}
u64 ProcessPages::frames_in_use() {
  return frames_.in_use();
}

// ---- taking -----------------------------------------------------------------------------------

// Where the page and the next ones go. Pages one after the other, or nearly, by one thread or by
// several: twice as many each time.
u64 ProcessPages::places(Hva at, u64 alike, u64* pages) {
  constexpr u64 kNear = 8 * kPageSize;
  {
    const sync::MutexGuard guard(lock_);
    const u64 distance = at > last_taken_ ? at - last_taken_ : last_taken_ - at;
    window_ = distance <= kNear ? std::min(window_ * 2, ProcessFrames::kRun) : 1;
    last_taken_ = at;
    const Part* const part = find(at);
    const u64 left = part != nullptr ? (part->at.end() - at) / kPageSize : 1;
    *pages = std::min({window_, alike, left});
  }
  const u64 run = *pages > 1 ? frames_.run(*pages) : 0;
  if (run != 0) return run;
  *pages = 1;
  return frames_.empty();
}

// kYes: *frame has the page's bytes. kNo: `otherwise` is due there, if it is anything.
ProcessPages::Ahead ProcessPages::take_ahead(Hva at, const Due& otherwise, u64* frame) {
  const sync::MutexGuard guard(lock_);
  Due* const due = due_at(at);
  if (due == nullptr) return Ahead::kNo;
  if (due->what == Due::What::kInHand) return Ahead::kInHand;
  if (due->what != Due::What::kAhead) {
    if (otherwise.frame != 0) *due = otherwise;
    return Ahead::kNo;
  }
  *frame = std::exchange(*due, Due()).frame;
  last_taken_ = at;
  return Ahead::kYes;
}

// The same when nobody has it in hand: who has puts it, and waits for nobody. (Told to come again,
// UV_ESM gave up when the thread that had it was a forking one, and did not run for a while.)
bool ProcessPages::take_if_ahead(Hva at, const Due& otherwise, u64* frame) {
  for (;;) {
    const Ahead ahead = take_ahead(at, otherwise, frame);
    if (ahead != Ahead::kInHand) return ahead == Ahead::kYes;
    static_cast<void>(host::is_absent(at));  // looked at when it is not on its way
  }
}

// Has the page left for `fresh`? If not, that may still be due, or the page have left, and be back,
// with another. kStillDue, and `gives_up`: it is not due any more. It may be on its way there in
// another's hand, whose run began with it, and the place must not be another's until that is over:
//
//   take of this page                  | take of a page before, whose run begins with this one
//   due: a place                       |
//                                      | leaving; moves it there
//   does not have it itself: waits     |
//                                      | gone
ProcessPages::Left ProcessPages::has_left(Hva at, u64 fresh, bool gives_up) {
  for (;;) {
    {
      const sync::MutexGuard guard(lock_);
      Due* const due = due_at(at);
      if (due == nullptr) return Left::kNo;
      if (due->what == Due::What::kGone) {
        *due = {};
        return Left::kYes;
      }
      if (due->frame != fresh) return Left::kNo;
      if (due->what != Due::What::kLeaving) {
        if (gives_up) *due = {};
        return Left::kStillDue;
      }
    }
    sync::yield_thread();
  }
}

// A page that has not been taken: may it be later? Shared memory is never moved, as by the kernel
// (migrate_vma), nor a file's page where the process has no copy of its own.
bool ProcessPages::may_leave(Hva at, const Result<u64>& taken) {
  if (!taken) return taken.error() == Errno{ENOMEM};
  const auto mapping = host::mapping_at(at);
  if (!mapping || (!mapping->shared && !mapping->file_backed)) return true;
  host::PageState state;
  const bool looked = !mapping->shared && host::page_states(at, 1, &state);
  return looked && (state.swapped || (state.present && state.anonymous));
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
  Left left = has_left(at, fresh, false);
  // It may be one of the next ones that cannot be taken; or another owner has this one: it was
  // swapped, or is on a device.
  const bool by_itself = !taken && pages > 1;
  if (left == Left::kStillDue &&
      (by_itself || (taken && host::bring_back(at) == host::BringBack::kBack))) {
    taken = take(1);
  }
  if (left == Left::kStillDue) left = has_left(at, fresh, true);
  *frame = fresh;
  if (left == Left::kYes) return Taken::kFrame;
  frames_.give_places(fresh, pages);
  if (take_if_ahead(at, {}, frame)) return Taken::kFrame;
  return left == Left::kNo || may_leave(at, taken) ? Taken::kBusy : Taken::kHole;
}

Taken ProcessPages::take(Gpa page, u64 alike, u64* frame) {
  const Hva at = address(page);
  if (at.raw() == 0) return Taken::kHole;
  if (has_kept(at)) {
    *frame = copy_kept(at);
    return *frame != 0 ? Taken::kFrame : Taken::kBusy;
  }
  if (pieces() != 1) return zeros_or(take_pieces(at, frame), frame);
  bool is_here = take_if_ahead(at, {}, frame);
  // On its way with those before it, which another thread wanted?
  is_here = is_here || (host::is_absent(at) && take_if_ahead(at, {}, frame));
  if (is_here) return zeros_or(Taken::kFrame, frame);
  u64 pages = 1;
  const u64 fresh = places(at, alike, &pages);
  if (fresh == 0) return Taken::kBusy;
  is_here = take_if_ahead(at, {fresh, Due::What::kPlace, static_cast<u8>(pages)}, frame);
  if (!is_here) return zeros_or(leave(at, fresh, pages, frame), frame);
  frames_.give_places(fresh, pages);
  return zeros_or(Taken::kFrame, frame);
}

// Where these pages are, in one piece, if nothing is due at any of them; or nothing.
HvaRange ProcessPages::nobodys(Gpa first, u64 bytes) {
  const sync::MutexGuard guard(lock_);
  const Part* const part = find(first);
  if (part == nullptr || bytes > part->at.size() - (first - part->base)) return {};
  const u64 offset = first - part->base;
  const Due* const due = &part->due[offset / kPageSize];
  const auto is_due = [](const Due& one) { return one.what != Due::What::kNothing; };
  if (std::any_of(due, due + bytes / kPageSize, is_due)) return {};
  return HvaRange(part->at.start() + offset, bytes);
}

// Looked at first: it costs little, and where some have bytes, or are another owner's, the others
// would come back again.
bool ProcessPages::take_untouched(Gpa first, u64 pages) {
  const HvaRange range = nobodys(first, pages * page_bytes_);
  if (range.empty() || !host::is_untouched(range)) return false;
  const HvaRange span = part_at(range.start());
  const auto taken = host::take_away(range, this, this, host::Which::kMissing, &span);
  if (taken && *taken == range.size() / kPageSize) return true;
  for (Hva at = range.start(); at < range.end(); at += kPageSize) {
    static_cast<void>(host::leave_hole(at, this));
  }
  return false;
}

// Never touched, or zeros: nobody can tell, and nothing is to be moved.
Taken ProcessPages::zeros_or(Taken taken, u64* frame) {
  if (taken != Taken::kFrame) return taken;
  const auto* const bytes = reinterpret_cast<const u8*>(*frame);
  if (bytes[0] != 0 || std::memcmp(bytes, bytes + 1, page_bytes_ - 1) != 0) return taken;
  drop_frame(std::exchange(*frame, 0));
  return Taken::kUntouched;
}

// The place that was made ready for the page at `at`, if one was; the page is on its way from now
// on. `pages`: of a run, which is to have places for all.
ProcessPages::Due ProcessPages::begin_leaving(Hva at, u64 pages) {
  const sync::MutexGuard guard(lock_);
  Due* const due = due_at(at);
  if (due == nullptr || due->what != Due::What::kPlace || pages > due->places) return {};
  due->what = Due::What::kLeaving;
  return *due;
}

// `moved` pages have left, the first for who asked, and the pieces of one page, too. Nothing is due
// there any more: a touch may come before take() goes on, and must not be given the bytes that have
// just been taken.
void ProcessPages::end_leaving(Hva at, Due due, u64 moved) {
  {
    const sync::MutexGuard guard(lock_);
    due.what = Due::What::kPlace;
    *due_at(at) = moved == 0 ? due : Due{0, Due::What::kGone};
    for (u64 i = 1; i < moved; ++i) {
      const u64 place = due.frame + i * kPageSize;
      Due* const next = due_at(at + i * kPageSize);
      const bool asked = next->what == Due::What::kPlace && next->frame == place;
      *next = asked ? Due{0, Due::What::kGone} : Due{place, Due::What::kAhead};
    }
  }
  if (moved != 0 && pieces() == 1)
    frames_.give_places(due.frame + moved * kPageSize, due.places - moved);
}

bool ProcessPages::take(const SecurePageStandIn& page, host::PageExit& exit) {
  const Due due = begin_leaving(page.at, 1);
  // Nobody of ours asked for this one.
  if (due.frame == 0) return false;
  const bool moved = exit.to(Hva(due.frame));
  end_leaving(page.at, due, moved ? 1 : 0);
  return moved;
}

unsigned ProcessPages::take_run(const SecurePageStandIn& first, unsigned pages,
                                host::PageExit& exit) {
  const Due due = begin_leaving(first.at, pages);
  if (due.frame == 0) return 0;
  const unsigned moved = exit.run_to(Hva(due.frame));
  end_leaving(first.at, due, moved);
  return moved;
}

void ProcessPages::leave_none_ahead() {
  for (size_t part = 0, page = 0;;) {
    Hva at;
    {
      const sync::MutexGuard guard(lock_);
      for (; part < parts_.size(); ++part, page = 0) {
        const Vec<Due>& due = parts_[part].due;
        while (page < due.size() && !due[page].is_ahead()) ++page;
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
  if (pieces() != 1) return put_whole(at, frame);
  u64 ahead = 0;
  while (take_if_ahead(at, {frame, Due::What::kPut}, &ahead)) drop_frame(ahead);
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
    {
      const sync::MutexGuard guard(lock_);
      Due* const due = due_at(at);
      if (due == nullptr || due->what != Due::What::kPut || due->frame != frame) return true;
      *due = {};
    }
    if (!put_over(at, frame)) return false;
    if (frame != ProcessFrames::kZeros) drop_frame(frame);
    return true;
  }
}

// Where the process has mapped something else since, that is the guest's memory now: what is there
// is nobody's. False: nothing is mapped there that can be written to. Zeros, which wipe what the
// next life is not to find, do not ask whether the process may write there.
bool ProcessPages::put_over(Hva at, u64 bytes) {
  static constexpr u8 kNothing[kPageSize] = {};
  const void* const from =
      bytes == ProcessFrames::kZeros ? kNothing : reinterpret_cast<const void*>(bytes);
  if (host::copy_to(at, from, kPageSize) == kPageSize) return true;
  return bytes == ProcessFrames::kZeros && wipe_anyhow(at);
}

bool ProcessPages::put_back(Gpa page, u64 frame) {
  if (!put(page, frame)) return false;
  drop_kept(address(page));
  return true;
}

bool ProcessPages::has_places(Gpa first, u64 bytes) {
  for (u64 done = 0; done < bytes;) {
    const Hva at = address(first + done);
    if (at.raw() == 0) return false;
    const auto mapping = host::mapping_at(at);
    if (!mapping || !mapping->prot.write) return false;
    done += std::min(mapping->range.end(), part_at(at).end()) - at;
  }
  return true;
}

// The stand-in, which represents the secure page, leaves nothing behind, as though that had never
// been touched; what there is else, or where the process has no userfaultfd, is overwritten.
void ProcessPages::discard(Gpa page) {
  const Hva at = address(page);
  drop_kept(at);
  if (at.raw() == 0 || leave_hole(at)) return;
  static_cast<void>(put(page, ProcessFrames::kZeros));
}

bool ProcessPages::leave_hole(Hva at) {
  if (pieces() != 1) {
    settle(at);
  } else {
    u64 ahead = 0;
    if (take_if_ahead(at, {}, &ahead)) drop_frame(ahead);
  }
  bool all = true;
  for (u64 i = 0; i < pieces(); ++i) all = host::leave_hole(at + i * kPageSize, this) && all;
  return all;
}

// What a touch is to put there: what is due, or else the page, sealed now.
host::BringBack ProcessPages::due_for_touch(const SecurePageStandIn& page, Gpa* gpa, Due* due) {
  const Hva at = page_floor(page.at);
  {
    const sync::MutexGuard guard(lock_);
    const Part* const part = find(at);
    if (part == nullptr) return host::BringBack::kLost;
    *gpa = part->base + (at - part->at.start());
    Due* const now = due_at(at);
    if (now->what == Due::What::kAhead) now->what = Due::What::kInHand;
    *due = *now;
  }
  if (due->frame != 0 && due->what != Due::What::kPlace) return host::BringBack::kBack;
  u64 frame = 0;
  switch (guest_->touch_begin(*gpa, &frame)) {
    case SecureGuest::Touch::kAgain:
    case SecureGuest::Touch::kNoStandIn:
      return host::BringBack::kRetry;
    case SecureGuest::Touch::kRefused:
      return host::BringBack::kLost;
    case SecureGuest::Touch::kFrame:
      break;
  }
  note_sealed(at, frame, page.unasked);
  if (pieces() != 1) {
    *due = all_pieces_due(at, *gpa, frame);
  } else {
    *due = {frame, Due::What::kTouched};
    set_due(at, *due);
  }
  return host::BringBack::kBack;
}

host::BringBack ProcessPages::bring_back(const SecurePageStandIn& page, host::PageEntry& entry) {
  const Hva at = page_floor(page.at);
  Gpa gpa;
  Due due;
  const host::BringBack found = due_for_touch(page, &gpa, &due);
  if (found != host::BringBack::kBack) return found;
  static constexpr u8 kNothing[kPageSize] = {};
  // Copied rather than moved: moving would leave a place without memory, to be wiped with a fault,
  // given to the kernel, and filled again for the next page that leaves.
  const void* const bytes =
      due.frame == ProcessFrames::kZeros ? kNothing : reinterpret_cast<const void*>(due.frame);
  if (!entry.from_bytes(bytes)) {
    if (due.what == Due::What::kInHand) set_due(at, {due.frame, Due::What::kAhead});
    return host::BringBack::kRetry;
  }
  end_put(at, 1);
  if (due.what == Due::What::kTouched) guest_->touch_end(gpa, 0, true);
  if (pieces() != 1 && due.what == Due::What::kInHand) bring_other_pieces(at);
  return host::BringBack::kBack;
}

// The process gave the address up while the page was absent. What a touch had on its way goes back
// to the guest.
void ProcessPages::discard(const SecurePageStandIn& page) {
  const Hva at = page_floor(page.at);
  Gpa gpa;
  Due due;
  {
    const sync::MutexGuard guard(lock_);
    Part* const part = find(at);
    if (part == nullptr) return;
    gpa = part->base + (at - part->at.start());
    Due* const found = due_at(at);
    if (found->what != Due::What::kTouched && !found->is_ahead()) return;
    due = pieces() == 1 ? std::exchange(*found, Due()) : *found;
  }
  if (pieces() != 1) return end_put(at, 1);
  if (due.is_ahead()) return drop_frame(due.frame);
  guest_->touch_end(gpa, due.frame, false);
}

u64 ProcessPages::address_of(Gpa page) {
  const Hva at = address(page);
  if (at.raw() == 0) return 0;
  for (u64 i = 0; i < pieces(); ++i) {
    if (!host::faultin(at + i * kPageSize, Access::kWrite)) return 0;
  }
  drop_kept(at);
  return at.raw();
}

}  // namespace stagetwo::uv

// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <iterator>

#include "base/check.h"
#include "host/access.h"
#include "sync/futex.h"
#include "uv/process_pages.h"

// Pages of a guest that are several of the process's. All of one leave to one frame, and are put
// from one. A touch of the process is of one of its own pages: the guest's page is sealed into a
// frame, all of whose pieces are due from then on, and the guest may have it again:
//
//   touch of a piece                   | take of the page
//   sealed; all pieces are due, ahead  |
//   touch_end()                        | claims the page
//   puts its own, and the others       | has put what is still due
//                                      | all pieces leave
//
// A frame is dropped with its last piece. Nothing is taken ahead of being asked for.

namespace stagetwo::uv {

namespace {

constexpr u64 kMostPieces = 16;

}  // namespace

Hva ProcessPages::first_piece(Hva at) {
  const sync::MutexGuard guard(lock_);
  const Part* const part = find(at);
  return part != nullptr ? at - (at - part->at.start()) % page_bytes_ : at;
}

// All pieces but those of the mask.
void ProcessPages::set_pieces(Hva at, u64 frame, Due::What what, u64 but) {
  const bool zeros = frame == ProcessFrames::kZeros;
  const sync::MutexGuard guard(lock_);
  for (u64 i = 0; i < pieces(); ++i) {
    Due* const due = (but >> i & 1) == 0 ? due_at(at + i * kPageSize) : nullptr;
    if (due == nullptr) continue;
    *due = {zeros ? frame : frame + i * kPageSize, what, static_cast<u8>(pieces() - i)};
  }
}

// `count` pieces have what was due there, or want it no more; the last of a frame gives it back.
void ProcessPages::end_put(Hva at, u64 count) {
  const Hva first = first_piece(at);
  const auto frame_of = [&](const Due& due, Hva piece) {
    const bool has_one = due.frame > ProcessFrames::kZeros && due.what != Due::What::kPlace;
    return has_one ? due.frame - (piece - first) : 0;
  };
  u64 done = 0;
  {
    const sync::MutexGuard guard(lock_);
    for (u64 i = 0; i < count; ++i) {
      Due* const due = due_at(at + i * kPageSize);
      if (due == nullptr) return;
      if (const u64 frame = frame_of(*due, at + i * kPageSize)) done = frame;
      *due = {};
    }
    for (u64 i = 0; i < pieces() && done != 0; ++i) {
      const Hva piece = first + i * kPageSize;
      if (frame_of(*due_at(piece), piece) == done) return;
    }
  }
  drop_frame(done);
}

// What is due at the pieces of a page is put, but where the process gave the address up.
void ProcessPages::put_pieces(Hva at) {
  static_cast<void>(host::bring_back_ahead(HvaRange(at, page_bytes_)));
  for (u64 i = 0; i < pieces(); ++i) {
    while (host::bring_back(at + i * kPageSize) == host::BringBack::kRetry) sync::yield_thread();
  }
}

// What a touch has left due is put. Pre: the page is the caller's, so no touch begins.
void ProcessPages::settle(Hva at) {
  const auto is_due = [&](Hva piece) {
    const sync::MutexGuard guard(lock_);
    const Due* const due = due_at(piece);
    return due != nullptr && due->is_ahead();
  };
  for (u64 i = 0; i < pieces(); ++i) {
    const Hva piece = at + i * kPageSize;
    while (is_due(piece)) {
      // Not absent, and still due: it was given up.
      if (host::bring_back(piece) != host::BringBack::kRetry && is_due(piece)) end_put(piece, 1);
    }
  }
}

// ---- taking -----------------------------------------------------------------------------------

// Asks for the pieces that have not left yet. False: there is no more to be had.
bool ProcessPages::leave_pieces(Hva at, u64 frame, u64* left) {
  set_pieces(at, frame, Due::What::kPlace, *left);
  const HvaRange span = part_at(at);
  const auto taken =
      host::take_away(HvaRange(at, page_bytes_), this, this, host::Which::kAnonymous, &span);
  for (u64 i = 0; i < pieces(); ++i) {
    const u64 place = frame + i * kPageSize;
    if ((*left >> i & 1) != 0 || has_left(at + i * kPageSize, place, true) != Left::kYes) continue;
    *left |= u64{1} << i;
  }
  return may_leave(at, taken);
}

Taken ProcessPages::take_pieces(Hva at, u64* frame) {
  ST_CHECK(pieces() <= kMostPieces);
  settle(at);
  const u64 fresh = frames_.empty();
  if (fresh == 0) return Taken::kBusy;
  const u64 all = (u64{1} << pieces()) - 1;
  u64 left = 0;
  bool more = leave_pieces(at, fresh, &left);
  if (more && left != all) {
    // Another owner may have some: they were swapped, or are on a device.
    bool back = false;
    for (u64 i = 0; i < pieces(); ++i) {
      const bool here = (left >> i & 1) == 0;
      if (here && host::bring_back(at + i * kPageSize) == host::BringBack::kBack) back = true;
    }
    if (back) more = leave_pieces(at, fresh, &left);
  }
  if (left == all) {
    *frame = fresh;
    return Taken::kFrame;
  }
  if (left == 0) {
    drop_frame(fresh);
  } else {
    set_pieces(at, fresh, Due::What::kAhead, all & ~left);
    settle(at);
  }
  return more ? Taken::kBusy : Taken::kHole;
}

// ---- putting ----------------------------------------------------------------------------------

// True: the frame is gone, and what of it had no place any more, too.
bool ProcessPages::put_whole(Hva at, u64 frame) {
  settle(at);
  set_pieces(at, frame, Due::What::kPut, 0);
  put_pieces(at);
  const bool zeros = frame == ProcessFrames::kZeros;
  u64 over = 0, homeless = 0;
  for (u64 i = 0; i < pieces(); ++i) {
    {
      const sync::MutexGuard guard(lock_);
      Due* const due = due_at(at + i * kPageSize);
      if (due == nullptr || due->what != Due::What::kPut) continue;
      *due = {};
    }
    ++(put_over(at + i * kPageSize, zeros ? frame : frame + i * kPageSize) ? over : homeless);
  }
  if (homeless == pieces()) return false;
  // The last piece of a frame that was due there would have given it back.
  if (over + homeless != 0 && !zeros) drop_frame(frame);
  return true;
}

// The page has been sealed into a frame; the guest may have it again while its pieces are put.
ProcessPages::Due ProcessPages::all_pieces_due(Hva at, Gpa gpa, u64 frame) {
  const Hva first = first_piece(at);
  set_pieces(first, frame, Due::What::kAhead, 0);
  const Due own{frame + (at - first), Due::What::kInHand};
  set_due(at, own);
  guest_->touch_end(gpa, 0, true);
  return own;
}

// While they are at hand; what cannot be put now is put when it is touched.
void ProcessPages::bring_other_pieces(Hva at) {
  const Hva first = first_piece(at), next = at + kPageSize, end = first + page_bytes_;
  if (next < end) static_cast<void>(host::bring_back_ahead(HvaRange(next, end - next)));
  if (first < at) static_cast<void>(host::bring_back_ahead(HvaRange(first, at - first)));
}

// Pieces whose bytes stand one after the other.
unsigned ProcessPages::bring_back_run(const SecurePageStandIn& page, unsigned pages,
                                      host::PageEntry& entry) {
  if (pieces() == 1) return 0;
  const Hva at = page.at;
  const u64 most = (first_piece(at) + page_bytes_ - at) / kPageSize;
  Due first;
  u64 run = 0;
  {
    const sync::MutexGuard guard(lock_);
    for (; run < std::min<u64>(pages, most); ++run) {
      Due* const due = due_at(at + run * kPageSize);
      if (due == nullptr) return 0;
      if (run == 0) first = *due;
      const bool is_one = first.what == Due::What::kAhead || first.what == Due::What::kPut;
      if (!is_one || first.frame <= ProcessFrames::kZeros) return 0;
      if (due->what != first.what || due->frame != first.frame + run * kPageSize) break;
    }
    for (u64 i = 0; i < run && first.what == Due::What::kAhead; ++i) {
      due_at(at + i * kPageSize)->what = Due::What::kInHand;
    }
  }
  const unsigned put =
      entry.run_from_bytes(reinterpret_cast<const void*>(first.frame), static_cast<unsigned>(run));
  if (put < run && first.what == Due::What::kAhead) {
    const sync::MutexGuard guard(lock_);
    for (u64 i = put; i < run; ++i) due_at(at + i * kPageSize)->what = first.what;
  }
  if (put != 0) end_put(at, put);
  return put;
}

}  // namespace stagetwo::uv

// SPDX-License-Identifier: Apache-2.0
// What changes of the address space and forks do to pinned pages.
#include "host/pin_table.h"
#include "host/process_map.h"

#include <algorithm>

#include "base/guard.h"
#include "base/sys.h"
#include "base/trace.h"
#include "host/pin_walk.h"
#include "host/userfault.h"

// A change against a device:
//
//   change                                  | device
//   lock; word: held (seq_cst); unlock      | accesses.enter (seq_cst)
//   moves + 1 (seq_cst)                     | moves as before: where the page was said to be, it is
//   accesses.wait (loads the counts)        | word (seq_cst): held → leaves, waits for the turn
//   moves the page; the system call         | else loads and stores, leaves
//   lock; word: where it is now; turn + 1   |
//
// Either the change sees the device and waits, or the device sees "held". Tried and rejected:
// moving first and publishing afterwards: the device stores to the empty page left behind.
//
// Two changes that have pinned pages to see to: one is the mover, the other waits with nothing
// held, so that none restores a page where the other has put something else. A thread may be the
// mover twice (mremap over another mapping); what it holds is told by its depth.
//
// A change against an unpin: the slot that is held when its last pin goes is given back by the
// change, which knows where the page is.
//
// A change against a fork: a fork waits for the mover, and movers for a fork. A child would inherit
// the empty page left behind, and if the change is refused afterwards, for good.

namespace stagetwo::host {
namespace {

constexpr unsigned kPieces = 64;
// What a slot is only until the change is over.
constexpr u64 kMoving = kHeldDepth | kAside | kCopied | kPageLost;

}  // namespace

void PinTable::take_mover() {
  const int me = sys::current_tid();
  for (;;) {
    u32 seen = 0;
    {
      const sync::MutexGuard guard(lock_);
      if (mover_ == 0 || mover_ == me) {
        mover_ = me;
        ++mover_depth_;
        return;
      }
      seen = turn_.load(sync::kAcquire);
    }
    wait_turn(seen);
  }
}

void PinTable::give_mover() {
  const sync::MutexGuard guard(lock_);
  if (--mover_depth_ == 0) mover_ = 0;
  turn_over();
}

// Pinned pages, pins under way, or a change that may give back what this one takes.
bool PinTable::meets(const PinnedChange& change) {
  bool met = false;
  each_of(change, [&](PinBlock*, u32) { met = true; });
  for (Attempt* attempt = attempts_; attempt != nullptr; attempt = attempt->next) {
    if (change.file_.inode == 0 && !attempt->range.overlaps(change.range_)) continue;
    attempt->disturbed = true;
    met = true;
  }
  for (const PinnedChange* other = changes_; other != nullptr; other = other->next_) {
    met = met || (other != &change && other->met_ && other->range_.overlaps(change.range_));
  }
  return met;
}

void PinTable::open_change(PinnedChange* change) {
  {
    const sync::MutexGuard guard(lock_);
    ++changes_begun_;
    if (ST_GUARD(pins_known, change->file_.inode == 0 && known_.overlaps(change->range_))) {
      known_ = {};
    }
    change->met_ = meets(*change);
    change->next_ = changes_;
    changes_ = change;
  }
  if (!change->met_) return;
  take_mover();
  hold(*change);
  put_aside(*change);
}

void PinTable::hold(PinnedChange& change) {
  bool any = false;
  {
    const sync::MutexGuard guard(lock_);
    change.depth_ = mover_depth_;
    each_of(change, [&](PinBlock* block, u32 slot) {
      sync::Atomic<u64>& word = block->words[slot];
      const u64 now = word.load(sync::kRelaxed);
      if (block->counts[slot] == 0 || (now & kHeldDepth) != 0) return;
      word.store(now | change.depth_);
      any = true;
    });
  }
  if (ST_GUARD(pins_moves, any)) moves_.fetch_add(1);
  if (ST_GUARD(pins_devices, any)) accesses_.wait();
}

// The pages the change takes from the client's address go to the store before it does.
void PinTable::put_aside(PinnedChange& change) {
  const u64 stays = change.range_.start().raw() + change.kept_;
  const bool moves = change.what_ == Announced::kMoves;
  if (change.what_ == Announced::kProtects) return;
  const auto wanted = [&](u64 word) {
    return (word & (kAside | kPageLost)) == 0 && !(moves && (word & kPageMask) < stays);
  };
  Piece pieces[kPieces];
  while (const unsigned count = collect(change, pieces, kPieces, wanted)) {
    for (unsigned i = 0; i < count && !change.refused_; ++i) keep_piece(change, pieces[i]);
    if (change.refused_) return;
  }
}

namespace {

// A file's private mapping goes on to belong to the file; a mapping of which pages are moved away
// is no longer locked, and what it counts for (VmLck) may stay counted; and put back after a call
// that failed it is no longer watched by the client.
bool refuses_to_move(u64 word, HvaRange pages) {
  return (word & kOfFile) != 0 || is_locked(pages) || userfault::client_watches(pages.start());
}

}  // namespace

// Puts the pages of a piece into the store, a mapping at a time: of several, Linux 6.17 moves some
// and refuses the rest, and what was moved twice is gone.
void PinTable::keep_piece(PinnedChange& change, const Piece& piece) {
  for (u32 done = 0; done < piece.pages && !change.refused_;) {
    const u64 offset = u64{done} * kPageSize;
    const Hva from = Hva(piece.word & kPageMask) + offset;
    const u64 left = u64{piece.pages - done} * kPageSize;
    const u64 bytes = in_one_mapping(from, left);
    const u32 pages = static_cast<u32>(bytes / kPageSize);
    keep_part(change, {piece.block, piece.first + done, pages, piece.word + offset});
    done += pages;
  }
}

// All at once, or, where they are of a kind that does not move, one by one.
void PinTable::keep_part(PinnedChange& change, const Piece& piece) {
  const Hva from(piece.word & kPageMask);
  const Hva place = piece.block->window + u64{piece.first} * kPageSize;
  const u64 bytes = u64{piece.pages} * kPageSize;
  trace::emit(trace::Event::st_pin_aside, trace::Room::host, from.raw(), place.raw(), bytes);
  const bool may_move = !change.copies_ && change.file_.inode == 0 &&
                        !refuses_to_move(piece.word, HvaRange(from, bytes));
  if (may_move && pin_store::move_in(from, place, bytes)) {
    return publish(piece, piece.word | kAside);
  }
  for (u32 i = 0; i < piece.pages; ++i) {
    const u64 offset = u64{i} * kPageSize;
    const Piece page{piece.block, piece.first + i, 1, piece.word + offset};
    u64 bits = kAside;
    if (!may_move || piece.pages == 1 ||
        !pin_store::move_in(from + offset, place + offset, kPageSize)) {
      const auto copied = pin_store::copy_in(from + offset, place + offset, kPageSize);
      change.refused_ = !copied && to_int(copied.error()) != EFAULT;
      if (change.refused_) return;  // it is where it was
      bits |= copied ? kCopied : kPageLost;
    }
    publish(page, page.word | bits);
  }
}

namespace {

// Is it the mapping that was moved away, at another address?
bool is_like(const Mapping& now, Hva home, const Mapping& was, Hva place) {
  const bool same = now.prot == was.prot && now.device == was.device && now.inode == was.inode;
  if (!same || !now.file_backed) return same;
  return now.offset + (home - now.range.start()) == was.offset + (place - was.range.start());
}

}  // namespace

// Does the client have the mapping still that the page was taken from? A call that failed may have
// unmapped it all the same: mmap unmaps first and asks the file then. Answers of how many pages
// from `done` on `*stands` is true. A mapping that was made there meanwhile is told by its rights,
// its kind and its file.
u32 PinTable::see_home(const Piece& piece, u32 done, bool* stands) {
  const u64 offset = u64{done} * kPageSize;
  const Hva home = Hva(piece.word & kPageMask) + offset;
  const Hva place = piece.block->window + u64{piece.first} * kPageSize + offset;
  const auto now = shown_mapping_at(home);
  const auto was = shown_mapping_at(place);
  *stands = now && !now->shared;
  if ((piece.word & (kCopied | kPageLost)) != 0) {  // it was left there
    PageState state;
    *stands = *stands && page_states(home, 1, &state) && (state.present || state.swapped);
    return 1;
  }
  *stands = *stands && was && is_like(*now, home, *was, place);
  const u64 left = piece.pages - done;
  const u64 alike = now ? (now->range.end() - home) / kPageSize : 1;
  return static_cast<u32>(
      std::min({left, alike, was ? (was->range.end() - place) / kPageSize : 1}));
}

// The change failed: what it left alone goes back, the rest is the device's alone.
void PinTable::settle_failed(const PinnedChange& change, const Piece& piece) {
  const bool may_be_gone = change.file_.inode == 0 && change.what_ != Announced::kClears;
  for (u32 done = 0; done < piece.pages;) {
    bool stands = true;
    const u32 count =
        may_be_gone && ST_GUARD(pins_failed, true) ? see_home(piece, done, &stands) : piece.pages;
    const Piece part{piece.block, piece.first + done, count, piece.word + u64{done} * kPageSize};
    if (stands) {
      put_back(part);
    } else {
      keep_for_device(part);
    }
    done += count;
  }
}

void PinTable::put_back(const Piece& piece) {
  const Hva home(piece.word & kPageMask);
  const Hva place = piece.block->window + u64{piece.first} * kPageSize;
  const u64 bytes = u64{piece.pages} * kPageSize;
  const u64 how = piece.word & (kCopied | kPageLost);
  if (how == kCopied) pin_store::drop(place, bytes);
  if (how == 0) pin_store::move_back(place, home, bytes);
  publish(piece, piece.word & ~kMoving);
}

void PinTable::keep_for_device(const Piece& piece) {
  const Hva place = piece.block->window + u64{piece.first} * kPageSize;
  if ((piece.word & kPageLost) != 0) return publish(piece, (piece.word & kPageMask) | kPageLost);
  const bool settled = pin_store::settle(place, u64{piece.pages} * kPageSize);
  const u64 rights = settled ? 0 : piece.word & (kNoRead | kNoWrite);
  publish(piece, place.raw() | kStored | rights);
}

// The change is over: where the pages are now.
void PinTable::settle_piece(const PinnedChange& change, const Piece& piece) {
  if ((piece.word & kAside) != 0) {
    return change.succeeded_ ? keep_for_device(piece) : settle_failed(change, piece);
  }
  if (change.what_ == Announced::kProtects) return refresh(piece);
  const u64 moved = change.succeeded_ && change.what_ == Announced::kMoves
                        ? change.moved_to_ - change.range_.start()
                        : 0;
  publish(piece, (piece.word & ~kMoving) + moved);
}

// Rights have changed: what of the pages can be touched directly now.
void PinTable::refresh(const Piece& piece) {
  const Hva home(piece.word & kPageMask);
  const u64 word = piece.word & ~(kHeldDepth | kNoRead | kNoWrite);
  for (u32 done = 0; done < piece.pages;) {
    const u64 offset = u64{done} * kPageSize;
    const auto mapping = mapping_at(home + offset);
    u64 rights = kNoRead | kNoWrite;
    u64 pages = 1;
    if (mapping) {
      rights = rights_bits(mapping->prot);
      pages = (mapping->range.end() - (home + offset)) / kPageSize;
    }
    const u32 count = static_cast<u32>(std::min<u64>(pages, piece.pages - done));
    publish({piece.block, piece.first + done, count, piece.word + offset},
            (word + offset) | rights);
    done += count;
  }
}

void PinTable::publish(const Piece& piece, u64 word) {
  const sync::MutexGuard guard(lock_);
  PinBlock* block = piece.block;
  for (u32 i = 0; i < piece.pages; ++i) {
    const u32 slot = piece.first + i;
    const u64 before = block->words[slot].load(sync::kRelaxed);
    const u64 after = word + u64{i} * kPageSize;
    const int stray = int{is_stray(*block, slot, after)} - int{is_stray(*block, slot, before)};
    block->strays = static_cast<u32>(static_cast<int>(block->strays) + stray);
    strays_ = static_cast<u64>(static_cast<s64>(strays_) + stray);
    if ((after & kStored) != 0 && (before & kStored) == 0) ++stored_;
    block->words[slot].store(after);
    const bool is_over = (after & kHeldDepth) == 0;
    if (is_over && block->counts[slot] == 0)
      release(block, slot);  // the last one may end the block
  }
}

void PinTable::close_change(PinnedChange* change) {
  if (change->met_) {
    Piece pieces[kPieces];
    while (const unsigned count = collect(*change, pieces, kPieces, [](u64) { return true; })) {
      for (unsigned i = 0; i < count; ++i) settle_piece(*change, pieces[i]);
    }
  }
  {
    const sync::MutexGuard guard(lock_);
    PinnedChange** link = &changes_;
    while (*link != change) link = &(*link)->next_;
    *link = change->next_;
    turn_over();
  }
  if (change->met_) give_mover();
}

void PinTable::before_fork() {
  take_mover();
}

void PinTable::after_fork_parent() {
  {
    // The table may be younger than the fork.
    const sync::MutexGuard guard(lock_);
    if (mover_ != sys::current_tid()) return;
  }
  give_mover();
}

}  // namespace stagetwo::host

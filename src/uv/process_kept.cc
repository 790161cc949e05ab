// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstring>

#include "uv/process_access.h"
#include "uv/process_pages.h"

// Sealed pages that nobody in the process has asked for. What is mapped anew finds the pages beside
// it back, and so does a fork (host/page_owner.h, AbsentPage::unasked): they are sealed, and their
// sealed bytes are the only copy there is. The process has not seen a page there, and maps over it
// as it might have over the stand-in, which represents the secure page and has no contents:
//
//   process                            | guest
//   maps over page 5: 6 comes back,    |
//     sealed                           |
//   maps over page 6                   | its bytes are gone
//
// So they are kept before such an address is given up, and are what the guest gets. What the
// process has read or written itself it gives up with what is in it. Kept are the bytes of a page
// that is paged out, until they go in and the page is sealed anew, is shared, or is thrown away.
//
//   who gives up (begin_loss)          | another change beside it (note_sealed)
//   says what is being given up        |
//   keeps what is there, unasked       |
//                                      | seals a page of it: kept at once
//   the address is another's           |
//
// If the call fails after all, the process goes on having the old sealed bytes there.

namespace stagetwo::uv {
namespace {

bool loses_contents(const host::InvalidateEvent& event) {
  return event.kind == host::EventKind::kUnmap || event.kind == host::EventKind::kClear;
}

}  // namespace

// The page at `at` has been sealed into the frame.
void ProcessPages::note_sealed(Hva at, u64 frame, bool unasked) {
  const Hva first = first_piece(at);
  const HvaRange page(first, page_bytes_);
  bool is_going = false;
  {
    const sync::MutexGuard guard(lock_);
    Part* const part = find(first);
    if (part == nullptr) return;
    part->unasked[(first - part->at.start()) / page_bytes_] = unasked ? 1 : 0;
    is_going = std::any_of(std::begin(losses_), std::end(losses_),
                           [&](const HvaRange& loss) { return loss.overlaps(page); });
  }
  drop_kept(first);
  if (!unasked || !is_going) return;
  const u64 copy = frames_.full();
  if (copy == 0) return;
  std::memcpy(reinterpret_cast<void*>(copy), reinterpret_cast<const void*>(frame), page_bytes_);
  keep(first, copy);
}

void ProcessPages::begin_loss(const host::InvalidateEvent& event) {
  if (!loses_contents(event) || !borrows(event.range)) return;
  {
    const sync::MutexGuard guard(lock_);
    HvaRange* const place = std::find_if(std::begin(losses_), std::end(losses_),
                                         [](const HvaRange& loss) { return loss.empty(); });
    if (place != std::end(losses_)) *place = event.range;
  }
  keep_unasked(event.range);
}

void ProcessPages::end_loss(const host::InvalidateEvent& event) {
  if (!loses_contents(event)) return;
  const sync::MutexGuard guard(lock_);
  HvaRange* const place = std::find(std::begin(losses_), std::end(losses_), event.range);
  if (place != std::end(losses_)) *place = {};
}

// The first page in reach from range.start() on.
bool ProcessPages::next_unasked(HvaRange range, Gpa* page, Hva* at) {
  for (const Part& part : parts_) {
    if (!part.at.overlaps(range)) continue;
    const Hva start = std::max(range.start(), part.at.start());
    const Hva end = std::min(range.end(), part.at.end());
    const u64 last = (end - part.at.start() - 1) / page_bytes_;
    for (u64 i = (start - part.at.start()) / page_bytes_; i <= last; ++i) {
      if (part.unasked[i] == 0) continue;
      *page = part.base + i * page_bytes_;
      *at = part.at.start() + i * page_bytes_;
      return true;
    }
  }
  return false;
}

// Would begin_loss() have to wait for one?
bool ProcessPages::loses_unasked(const host::InvalidateEvent& event) {
  if (!loses_contents(event)) return false;
  Gpa page;
  Hva at;
  const sync::MutexGuard guard(lock_);
  return next_unasked(event.range, &page, &at);
}

void ProcessPages::keep_unasked(HvaRange range) {
  for (HvaRange left = range; !left.empty();) {
    Gpa page;
    Hva at;
    {
      const sync::MutexGuard guard(lock_);
      if (!next_unasked(left, &page, &at)) return;
      Part* const part = find(at);
      part->unasked[(at - part->at.start()) / page_bytes_] = 0;
    }
    if (!guest_->hold_sealed(page)) continue;
    // Pieces of it may not be there yet, and whoever gives memory back may have it.
    static_cast<void>(host::bring_back_range(HvaRange(at, page_bytes_)));
    const u64 frame = frames_.full();
    void* const copy = reinterpret_cast<void*>(frame);
    if (frame != 0 && !has_kept(at) && read_anyhow(at, copy, page_bytes_)) {
      keep(at, frame);
    } else {
      frames_.drop(frame);
    }
    guest_->let_sealed_go(page);
  }
}

// Without memory for its record the page is the process's to lose.
void ProcessPages::keep(Hva at, u64 frame) {
  bool kept = false;
  {
    const sync::MutexGuard guard(lock_);
    kept = kept_.insert(at, frame).has_value();
  }
  if (!kept) frames_.drop(frame);
}

bool ProcessPages::has_kept(Hva at) {
  const sync::MutexGuard guard(lock_);
  return kept_.contains(at);
}

// The page is the caller's, and nobody else drops what is kept of it.
u64 ProcessPages::copy_kept(Hva at) {
  const u64 copy = frames_.full();
  const sync::MutexGuard guard(lock_);
  const u64* const kept = kept_.find(at);
  if (copy != 0) {
    std::memcpy(reinterpret_cast<void*>(copy), reinterpret_cast<const void*>(*kept), page_bytes_);
  }
  return copy;
}

void ProcessPages::drop_kept(Hva at) {
  u64 frame = 0;
  {
    const sync::MutexGuard guard(lock_);
    const u64* const kept = kept_.find(at);
    if (kept == nullptr) return;
    frame = *kept;
    kept_.erase(at);
  }
  frames_.drop(frame);
}

}  // namespace stagetwo::uv

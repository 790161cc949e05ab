// SPDX-License-Identifier: Apache-2.0
#include "host/page_transit.h"

#include <fcntl.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstring>

#include "base/failpoint.h"
#include "base/guard.h"
#include "base/kernel_numbers.h"
#include "base/own_memory.h"
#include "base/sys.h"
#include "host/access.h"
#include "host/held_pages.h"
#include "host/kernel_io.h"
#include "host/owner_table.h"
#include "host/process_files.h"
#include "host/userfault.h"
#include "sync/atomic.h"
#include "sync/passing_number.h"

// A copy under userfaultfd, against a thread that writes the page meanwhile:
//
//   taker                                    | writer
//   record: taking                           |
//   write-protect (the kernel flushes TLBs)  | before: its store is in the copy
//   copy                                     | after: waits for the record's end
//   drop                                     |
//   record: absent; wake                     | touches again, missing, gets the copy and stores
//
// Of shared memory the drop is a hole in the file: all views lose the page with it, and each
// reports its next touch as missing.
//
// Tried and rejected: dropping before the record exists (the writer is given zeros), copying before
// write-protecting, or without (its store is dropped with the page): of these two orders a test
// shows that they lose stores (tests/mutation/owners_guards_test.cc).

namespace stagetwo::host {
namespace {

constinit sync::Atomic<bool> copies_come{false};

void* pointer(Hva at) {
  return reinterpret_cast<void*>(at.raw());
}

int bits_of(Prot prot) {
  return (prot.read ? PROT_READ : 0) | (prot.write ? PROT_WRITE : 0) | (prot.exec ? PROT_EXEC : 0);
}

bool is(const Result<void>& result, int error) {
  return !result && to_int(result.error()) == error;
}

}  // namespace

bool allow_pages(HvaRange pages, Prot prot) {
  if (failpoint::should_fail("host.page_rights")) return false;
  return sys::mprotect(pointer(pages.start()), pages.size(), bits_of(prot)).has_value();
}

bool pages_copied_away() {
  return shared_pages_taken() || copies_come.load(sync::kRelaxed);
}

void copies_may_come() {
  copies_come.store(true);
}

bool PageTransit::to(Hva place) {
  if (left_) return false;
  if (hiding_ == Hiding::kProtection) return left_ = copy_protected(place);
  if (shared()) return left_ = copy_and_drop(place) != 0;
  auto moved = userfault::move(place, at());
  if (is(moved, EBUSY)) {
    make_own(0);
    moved = userfault::move(place, at());
  }
  // Still EBUSY: the kernel or a device reads or writes it, as its own migration finds out by the
  // page's reference count. What is written after a copy would be lost.
  if (is(moved, EBUSY)) return false;
  // ENOENT: there is no page to move, so there are no bytes but zeros.
  if (moved || is(moved, ENOENT)) return left_ = true;
  copies_may_come();
  return left_ = copy_and_drop(place) != 0;
}

// Of pages that a child of fork shares or shared, or that are on the swap device with others, the
// process gets its own, as by a store: from the first one that did not go. Pre: the process may
// store there.
void PageTransit::make_own(unsigned first) {
  watcher_->reading(behind(key_, first), pages_ - first, true);
  static_cast<void>(sys::madvise(pointer(at() + first * kPageSize), (pages_ - first) * kPageSize,
                                 MADV_POPULATE_WRITE));
  watcher_->reading(behind(key_, first), pages_ - first, false);
}

bool PageTransit::protect(bool on) {
  bool all = true;
  for (const PageView& view : views_) {
    if (!userfault::write_protect(HvaRange(view.at, bytes()), on)) all = false;
  }
  return all;
}

bool PageTransit::drop_by(int advice) {
  return sys::madvise(pointer(at()), kPageSize, advice).has_value();
}

// The kernel punches through a mapping that may be written alone: where this one may not, through
// one more that lasts as long. Not around the client's lock, which is another refusal.
bool PageTransit::punch(unsigned first, unsigned pages) {
  void* const there = pointer(at() + u64{first} * kPageSize);
  const u64 size = u64{pages} * kPageSize;
  const auto punched = sys::madvise(there, size, MADV_REMOVE);
  if (!is(punched, EACCES)) return punched.has_value();
  const auto alias = map_again_apart(there, size);
  if (!alias) return false;
  const bool done = sys::mprotect(*alias, size, PROT_READ | PROT_WRITE) &&
                    sys::madvise(*alias, size, MADV_REMOVE);
  unmap_again(*alias, size);
  return done;
}

// How many are gone, the first ones. A page of a sealed file cannot be dropped, and a locked one by
// this advice alone. Of a run of which a part is mapped no longer, behind our back, the kernel says
// so when the rest is gone already: what has gone behind the first that stays gets its bytes again.
unsigned PageTransit::drop(Hva copies) {
  if (!shared()) {
    return drop_by(MADV_DONTNEED) || (locked_too_ && drop_by(MADV_DONTNEED_LOCKED)) ? 1 : 0;
  }
  const auto bytes_of = [&](unsigned i) { return pointer(copies + u64{i} * kPageSize); };
  if (punch(0, pages_)) {
    const unsigned gone = punched_out();
    for (unsigned i = gone; i < pages_; ++i) {
      static_cast<void>(put_through_alias(at() + u64{i} * kPageSize, bytes_of(i)));
    }
    return gone;
  }
  if (pages_ == 1) return 0;
  unsigned gone = 0;
  while (gone < pages_ && punch(gone, 1)) ++gone;
  for (unsigned i = gone; i < pages_; ++i) static_cast<void>(put(i, bytes_of(i)));
  return gone;
}

// How many of the pages have gone by the hole, the first ones. Of a huge page that somebody else
// has a reference of (bytes in a pipe) the kernel makes zeros, and the call succeeds: it cannot
// split it (truncate_inode_partial_folio(), kernel file: mm/truncate.c). Then it is the same page
// for whoever has it, and gets its bytes again.
unsigned PageTransit::punched_out() const {
  u8 cached[kMaxPageStates];
  if (failpoint::should_fail("host.page_stays") || pages_ > kMaxPageStates ||
      !sys::mincore(pointer(at()), bytes(), cached)) {
    return 0;
  }
  return static_cast<unsigned>(
      std::find_if(cached, cached + pages_, [](u8 one) { return (one & 1) != 0; }) - cached);
}

// Answers how many went, the first ones: of a private page one at most.
unsigned PageTransit::copy_and_drop(Hva place) {
  const bool protected_first = ST_GUARD(owners_protect_first, true);
  Copied copied = protected_first ? Copied::kNo : copy(place);
  if (ST_GUARD(owners_write_protect, !protect(true))) {
    static_cast<void>(protect(false));
    return 0;
  }
  // From here on nobody new gets to write it by the kernel; who does already is not shown by pages.
  const bool pinned = ST_GUARD(owners_kernel_pins, kernel_pins_memory());
  if (pinned) copied = Copied::kNo;
  if (protected_first && !pinned) copied = copy(place);
  if (copied == Copied::kNothing) return pages_;
  const unsigned gone = copied == Copied::kYes ? drop(place) : 0;
  if (gone < pages_) static_cast<void>(protect(false));
  return gone;
}

PageTransit::Copied PageTransit::copy(Hva place) {
  PageState state;
  if (!shared() && !page_states(at(), 1, &state)) return Copied::kNo;
  if (!shared() && !state.present && !state.swapped) return Copied::kNothing;
  watcher_->reading(key_, pages_, true);
  const bool copied = copy_from(pointer(place), at(), bytes()) == bytes();
  watcher_->reading(key_, pages_, false);
  return copied ? Copied::kYes : Copied::kNo;
}

bool PageTransit::copy_protected(Hva place) {
  const auto fd = memory_file();
  bool hidden = fd.has_value();
  for (const PageView& view : views_) {
    hidden = hidden && sys::mprotect(pointer(view.at), kPageSize, PROT_NONE).has_value();
  }
  if (hidden && !ST_GUARD(owners_kernel_pins, kernel_pins_memory())) {
    const auto got =
        sys::pread(fd->get(), pointer(place), kPageSize, static_cast<off_t>(at().raw()));
    if (got && *got == kPageSize &&
        (shared() ? drop(place) != 0 : wipe_protected(fd->get(), place))) {
      return true;
    }
  }
  show();
  return false;
}

// Behind its protection a private page stays, for where a client's userfaultfd would be asked for a
// new one; its bytes do not: a core dump, or another process, would have them. `place`: its copy.
bool PageTransit::wipe_protected(int memory, Hva place) {
  static constexpr u8 kZeros[kPageSize] = {};
  if (std::memcmp(pointer(place), kZeros, kPageSize) == 0) return true;
  const auto put = sys::pwrite(memory, kZeros, kPageSize, static_cast<off_t>(at().raw()));
  return put && *put == kPageSize;
}

PageTransit::Told PageTransit::hides(const PageView& view) const {
  if (failpoint::should_fail("host.page_shown")) return Told::kNothing;
  const auto shown = shown_mapping_at(view.at);
  if (!shown) return to_int(shown.error()) == EFAULT ? Told::kNo : Told::kNothing;
  const bool hidden = shown->shared == shared() && !shown->prot.read && !shown->prot.write;
  return hidden ? Told::kYes : Told::kNo;
}

PageTransit::Told PageTransit::stands(const PageView& view) const {
  if (hiding_ == Hiding::kProtection) return hides(view);
  return userfault::is_watched(view.at) ? Told::kYes : Told::kNo;
}
// What the kernel does not say is taken to be as it was.
bool PageTransit::stands() const {
  return std::any_of(views_.begin(), views_.end(),
                     [&](const PageView& view) { return stands(view) != Told::kNo; });
}

// Behind the protection of shared memory the kernel writes for nobody: a second mapping of the page
// lasts as long as the copy.
bool PageTransit::put_through_alias(Hva at, const void* page) {
  if (failpoint::should_fail("host.page_alias")) return false;
  const auto alias = map_again_apart(pointer(at), kPageSize);
  if (!alias) return false;
  const bool put = sys::mprotect(*alias, kPageSize, PROT_READ | PROT_WRITE) &&
                   copy_to(Hva(reinterpret_cast<u64>(*alias)), page, kPageSize) == kPageSize;
  unmap_again(*alias, kPageSize);
  return put;
}

bool PageTransit::put_behind_protection(const void* page) {
  const PageView* view = views_.begin();
  Told told = Told::kNo;
  for (; view != views_.end(); ++view) {
    const Told here = hides(*view);
    if (here != Told::kNo) told = here;
    if (here == Told::kYes) break;
  }
  if (told == Told::kNothing) return false;
  // The client unmapped it behind our back. Nobody wants the bytes of private memory; a file may
  // still have a descriptor.
  if (told == Told::kNo) return !shared();
  if (shared()) {
    no_room_ = !put_through_alias(view->at, page);
    if (no_room_) return false;
  } else {
    const auto fd = memory_file();
    if (!fd) return false;
    const off_t there = static_cast<off_t>(view->at.raw());
    const auto put = sys::pwrite(fd->get(), page, kPageSize, there);
    // Not even to be read: the file ends before it by now. The client's touch is to find that out.
    char any = 0;
    const bool gone = !put && !sys::pread(fd->get(), &any, 1, there);
    if (!gone && (!put || *put != kPageSize)) return false;
  }
  if (shared()) {
    show();
  } else {
    hidden_ = !allow_pages(page_at(view->at), view->prot);
  }
  return true;
}

bool PageTransit::show() {
  hidden_ = false;
  for (const PageView& view : views_) {
    const Told told = hides(view);
    const bool shown =
        told == Told::kNo || (told == Told::kYes && allow_pages(page_at(view.at), view.prot));
    if (!shown) hidden_ = true;
  }
  return !hidden_;
}

bool PageTransit::from(Hva place) {
  if (hiding_ == Hiding::kProtection) return put_behind_protection(pointer(place));
  if (shared()) return from_bytes(pointer(place));
  const auto moved = userfault::move(at(), place);
  if (moved || is(moved, EEXIST)) return true;
  if (!is(moved, ENOENT)) return from_bytes(pointer(place));
  // The place is empty (zeros), or nothing is mapped any more at the page.
  const auto zeroed = userfault::zero(at());
  return zeroed || !is(zeroed, ENOMEM);
}

// The bytes of one page of the run, in whichever view takes them.
PageTransit::Put PageTransit::put(unsigned page, const void* bytes) {
  for (const PageView& view : views_) {
    const auto copied = userfault::copy(view.at + u64{page} * kPageSize, bytes);
    if (copied || is(copied, EEXIST)) return Put::kYes;
    if (is(copied, ENOMEM)) return Put::kNoMemory;
  }
  return Put::kNo;
}

bool PageTransit::from_bytes(const void* page) {
  if (hiding_ == Hiding::kProtection) return put_behind_protection(page);
  const Put done = put(0, page);
  if (shared() && done == Put::kYes) static_cast<void>(protect(false));
  // Not watched: the client unmapped it behind our back. Nobody wants the bytes of private memory;
  // a file may still have a descriptor.
  return done == Put::kYes || (done == Put::kNo && !shared());
}

unsigned PageTransit::run_to(Hva place) {
  if (hiding_ == Hiding::kProtection) return 0;
  if (shared()) return copy_and_drop(place);
  unsigned moved = static_cast<unsigned>(userfault::move_run(place, at(), pages_));
  if (moved == pages_) return moved;
  make_own(moved);
  const u64 done = moved * kPageSize;
  moved += static_cast<unsigned>(userfault::move_run(place + done, at() + done, pages_ - moved));
  return moved;
}

unsigned PageTransit::run_from(Hva place) {
  if (hiding_ == Hiding::kProtection) return 0;
  if (shared()) return run_from_bytes(pointer(place), pages_);
  return static_cast<unsigned>(userfault::move_run(at(), place, pages_));
}

unsigned PageTransit::run_from_bytes(const void* bytes, unsigned pages) {
  if (hiding_ == Hiding::kProtection) return 0;
  const auto came = static_cast<unsigned>(userfault::copy_run(at(), bytes, pages));
  if (shared() && came != 0) {
    for (const PageView& view : views_) {
      const HvaRange there(view.at, u64{came} * kPageSize);
      static_cast<void>(userfault::write_protect(there, false));
    }
  }
  return came;
}

void PageTransit::wake() {
  if (hiding_ == Hiding::kProtection) return;
  for (const PageView& view : views_) {
    userfault::wake(HvaRange(page_floor(view.at), bytes()));
  }
}

// What is left of the write-protection, in a page table that has nothing else, is in the mark's
// way.
void PageTransit::make_lost() {
  if (hiding_ == Hiding::kUserfault && shared()) static_cast<void>(protect(false));
  for (const PageView& view : views_) {
    if (hiding_ == Hiding::kUserfault && userfault::poison(view.at)) continue;
    if (stands(view) == Told::kYes) make_bus_error(view.at);
  }
}

// A hole in the file leaves the marks alone, which are no pages of it; discarding a view's entries
// takes them, and nothing else.
void PageTransit::heal() {
  if (hiding_ != Hiding::kUserfault || !shared()) return;
  for (const PageView& view : views_) {
    void* const page = pointer(view.at);
    if (sys::madvise(page, kPageSize, MADV_DONTNEED)) continue;
    static_cast<void>(sys::madvise(page, kPageSize, MADV_DONTNEED_LOCKED));
  }
}

// Beyond the end of a file every touch is a bus error, and EFAULT for a system call.
void PageTransit::make_bus_error(Hva page) {
  const sync::PassingNumber passing;
  const auto made = sys::memfd_create("stagetwo:lost", MFD_CLOEXEC);
  if (!made) return;
  static_cast<void>(sys::mmap(pointer(page), kPageSize, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_FIXED, *made, 0));
  static_cast<void>(sys::close(*made));
}

}  // namespace stagetwo::host

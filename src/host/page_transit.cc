// SPDX-License-Identifier: Apache-2.0
#include "host/page_transit.h"

#include <fcntl.h>
#include <sys/mman.h>

#include "base/sys.h"
#include "host/access.h"
#include "host/kept_fd.h"
#include "host/owner_table.h"
#include "host/userfault.h"

// A copy under userfaultfd, against a thread that writes the page meanwhile:
//
//   taker                                    | writer
//   record: taking                           |
//   write-protect (the kernel flushes TLBs)  | before: its store is in the copy
//   copy                                     | after: waits for the record's end
//   drop                                     |
//   record: absent; wake                     | touches again, missing, gets the copy and stores
//
// Tried and rejected: dropping before the record exists (the writer is given zeros), copying before
// write-protecting (its store is dropped with the page).

namespace stagetwo::host {
namespace {

Result<int> open_memory() {
  return sys::openat(AT_FDCWD, "/proc/self/mem", O_RDWR | O_CLOEXEC);
}
constinit KeptFd memory(open_memory);

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

Result<Hiding> watch_pages(HvaRange piece, const Mapping& mapping) {
  // The thread first: a touch of a watched page that nobody answers would wait for ever.
  if (!mapping.file_backed && userfault::open() && start_resolver() && userfault::watch(piece)) {
    return Hiding::kUserfault;
  }
  ST_TRY(memory.get());
  return Hiding::kProtection;
}

bool PageTransit::to(Hva place) {
  if (left_) return false;
  if (hiding_ == Hiding::kProtection) return left_ = copy_protected(place);
  const auto moved = userfault::move(place, at_);
  // ENOENT: there is no page to move, so there are no bytes but zeros.
  left_ = moved || is(moved, ENOENT) || copy_and_drop(place);
  return left_;
}

bool PageTransit::copy_and_drop(Hva place) {
  if (!userfault::write_protect(at_, true)) return false;
  PageState state;
  bool copied = false;
  if (page_states(at_, 1, &state)) {
    if (!state.present && !state.swapped) return true;
    watcher_->reading(key_, true);
    copied = copy_from(pointer(place), at_, kPageSize) == kPageSize;
    watcher_->reading(key_, false);
  }
  // Dropping a page that is locked in memory is refused.
  if (copied && sys::madvise(pointer(at_), kPageSize, MADV_DONTNEED)) return true;
  static_cast<void>(userfault::write_protect(at_, false));
  return false;
}

bool PageTransit::copy_protected(Hva place) {
  const auto fd = memory.get();
  if (!fd || !sys::mprotect(pointer(at_), kPageSize, PROT_NONE)) return false;
  const auto got = sys::pread(*fd, pointer(place), kPageSize, static_cast<off_t>(at_.raw()));
  if (got && *got == kPageSize) return true;
  undo();
  return false;
}

// A change nobody announced may have put something else there.
bool PageTransit::still_hidden() const {
  const auto shown = shown_mapping_at(at_);
  return shown && !shown->shared && !shown->prot.read && !shown->prot.write;
}

bool PageTransit::put_behind_protection(const void* page) {
  if (!still_hidden()) return true;
  const auto fd = memory.get();
  if (!fd) return false;
  const auto put = sys::pwrite(*fd, page, kPageSize, static_cast<off_t>(at_.raw()));
  if (!put || *put != kPageSize) return false;
  return sys::mprotect(pointer(at_), kPageSize, bits_of(prot_)).has_value();
}

bool PageTransit::from(Hva place) {
  if (hiding_ == Hiding::kProtection) return put_behind_protection(pointer(place));
  const auto moved = userfault::move(at_, place);
  if (moved || is(moved, EEXIST)) return true;
  if (!is(moved, ENOENT)) return from_bytes(pointer(place));
  // The place is empty (zeros), or nothing is mapped any more at the page.
  const auto zeroed = userfault::zero(at_);
  return zeroed || !is(zeroed, ENOMEM);
}

bool PageTransit::from_bytes(const void* page) {
  if (hiding_ == Hiding::kProtection) return put_behind_protection(page);
  const auto copied = userfault::copy(at_, page);
  // EEXIST, ENOENT: the client discarded or unmapped it behind our back; nobody wants the bytes.
  return copied || !is(copied, ENOMEM);
}

void PageTransit::undo() {
  if (hiding_ == Hiding::kUserfault) return;
  static_cast<void>(sys::mprotect(pointer(at_), kPageSize, bits_of(prot_)));
}

void PageTransit::make_lost() {
  if (hiding_ == Hiding::kUserfault && userfault::poison(at_)) return;
  // Beyond the end of a file every touch is a bus error, and EFAULT for a system call.
  const auto made = sys::memfd_create("stagetwo:lost", MFD_CLOEXEC);
  if (!made) return;
  static_cast<void>(sys::mmap(pointer(at_), kPageSize, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_FIXED, *made, 0));
  static_cast<void>(sys::close(*made));
}

}  // namespace stagetwo::host

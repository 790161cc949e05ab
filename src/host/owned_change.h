// SPDX-License-Identifier: Apache-2.0
#pragma once

// What becomes of absent pages when the client changes their addresses or their file, between the
// bell's start and end (host/change.h, host/file_change.h). While it lives no page of its reach is
// taken; what dies with the change waits, undecided, until it has succeeded or failed.
// Context: as the change. Nothing absent ever: one load.

#include <optional>

#include "host/page_owner.h"

namespace stagetwo::host {

// What an announced change does to absent pages of its range, between the bell's start and end. Of
// shared memory kUnmaps brings back what no other view shows: the file outlives its mapping.
enum class Announced : u8 {
  kUnmaps,    // munmap, mmap over it: private ones die if it succeeds
  kClears,    // madvise: the same, and the mapping goes on
  kMoves,     // mremap: they are brought back first, and nothing of it is watched or hidden
  kProtects,  // mprotect: those hidden behind PROT_NONE are brought back first
  kPunches,   // MADV_REMOVE, a hole or an end of the file: of shared memory, too, they die
};
class OwnedChange {
 public:
  OwnedChange(HvaRange range, Announced what) : OwnedChange(Reach{kPrivateMemory, range}, what) {}
  OwnedChange(const Reach& reach, Announced what);
  ~OwnedChange();
  OwnedChange(const OwnedChange&) = delete;
  OwnedChange& operator=(const OwnedChange&) = delete;
  // The system call succeeded. Without it everything is as before, but for what a call that failed
  // halfway has unmapped.
  void succeeded() { succeeded_ = true; }
  // Was any page of the range absent, or about to be?
  [[nodiscard]] bool met_pages() const { return met_pages_; }
  // Absent pages that the call must not find could not be brought back: it is not to be made, and
  // answers ENOMEM.
  [[nodiscard]] bool refused() const { return refused_; }

 private:
  friend class OwnerTable;
  Reach reach_;
  Announced what_;
  bool open_ = false;
  bool succeeded_ = false;
  bool met_pages_ = false;
  bool refused_ = false;
  OwnedChange* next_ = nullptr;  // of those open; under the table lock
};

// Would the kernel, of the mappings on both sides of the range, take one for another kind than the
// other, which are the same to the client: for what is watched or hidden of them? What is mapped
// between them (`fresh`), or gets its rights, it joins with the other then, for good. What is
// watched or hidden itself has joined with somebody already.
[[nodiscard]] bool sides_differ(HvaRange range, bool fresh);

// While a mapping is made there (`fresh`), or gets its rights and that would be so: the pages
// beside it are back, and neither watched nor hidden. Opened before the change of the range itself:
// that one's pages wait for its end.
class EvenSides {
 public:
  EvenSides(HvaRange range, bool fresh);  // empty: nothing

 private:
  std::optional<OwnedChange> left_;
  std::optional<OwnedChange> right_;
};

// Is a page of the private memory there absent? Racy.
[[nodiscard]] bool has_absent_pages(HvaRange range);

// Private pages of the range, of 64 at most, that an owner has as a device has them and not as
// swap, a bit each. Racy. Of what a driver has for itself the kernel says that it is there
// (mincore).
[[nodiscard]] u64 pages_with_devices(HvaRange range);

// Private memory was mapped there (`fresh`), or has other rights now. With what is watched beside
// it, it is one mapping of the client's, as it would be without us, once that is watched no more.
void join_watched(HvaRange range, bool fresh);

// MADV_FREE: pages that are as on a swap device are given up, private ones that are absent.
void free_absent_pages(HvaRange range);

}  // namespace stagetwo::host

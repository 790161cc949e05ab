// SPDX-License-Identifier: Apache-2.0
#pragma once

// Pins: pages that a device goes on reading and writing whatever the client does to the address it
// once had them at. A pinned page is named by its frame; while the client's mapping is unchanged,
// client and device see the same bytes; after munmap, MADV_DONTNEED, a mapping over it, mremap,
// loss of rights or fork the device still has the very page it pinned. Analogue:
// pin_user_pages(FOLL_LONGTERM) and unpin_user_pages() (kernel file: mm/gup.c). Differs: a frame is
// not an address. Where its bytes stand may change under the holder, so they are reached inside a
// FrameSection, or by read_frame() and write_frame(). How each kind of memory is kept is one table:
// host/pin_kinds.h.
//
// Invariants: I1  a frame means one page from its first pin to its last unpin, and nothing else.
//             I2  as many unpins as pins, in any order, free it; the count is exact.
//             I3  a pinned page is in the process or in the pin store: no owner takes it
//                 (host/page_owner.h), and one that is with an owner is brought back first.
//             I4  no access of a device overlaps the moving of its page, and none is lost.
//             I5  a child of fork has no pins; its own memory is a copy from the moment of the
//             fork. I6  frames that follow each other are pages that follow each other in one
//             mapping: a
//                 run can be mapped as one. Within 2 MiB of address space or file a run never
//                 breaks, and a frame is as far into its 2 MiB as the page is.
// Locking: PinTable's lock (rank: pins); the "mover", a change that has pinned pages to see to, is
// one at a time and may hold off fork, other changes and devices until its system call is over.
// Lifetime: a frame until its last unpin; the tables until the process ends.
// Failures are the kernel's; unpinning cannot fail.

#include <optional>

#include "addr/addr.h"
#include "base/result.h"
#include "base/types.h"
#include "host/owned_change.h"
#include "sync/passage.h"

namespace stagetwo::host {

enum class Frame : u64 {};
constexpr Frame operator+(Frame frame, u64 pages) {
  return Frame{static_cast<u64>(frame) + pages};
}
struct FrameRun {
  Frame first{};
  u64 pages = 0;
};

struct PinHow {
  bool write = false;     // FOLL_WRITE: needs a mapping that may be written
  bool long_term = true;  // FOLL_LONGTERM: see pin_kinds.h
};
struct PinBatch {
  u64 pages = 0;
  unsigned runs = 0;
  bool shared = false;  // some of them are of shared memory
};

// Pins pages of `range`, whole pages, from the first on. Fewer than asked: the next cannot be
// pinned (asking for it says why), or it would need more than `room` runs. Absent pages come back,
// others are faulted in, a page that is shared copy-on-write becomes the client's own when it is
// stored to at the latest. Failure, of the first page: EFAULT (no mapping, not permitted, special
// memory, for long writing a file that is written back, hugetlb that cannot be mapped twice),
// ENOMEM. Context: outside every change and section, no lock of rank pins or below. May sleep.
[[nodiscard]] Result<PinBatch> pin_pages(HvaRange range, PinHow how, FrameRun* runs, unsigned room);
// The same for one page, the commonest call: of memory that was looked at already it costs a lock.
struct PinnedPage {
  Frame frame{};
  bool shared = false;
};
[[nodiscard]] Result<PinnedPage> pin_page(Hva at, PinHow how);
// The same of a page that is known to be there and has a frame of its own: nothing is asked of the
// kernel, and nothing is waited for. None: it is not known.
[[nodiscard]] std::optional<Frame> pin_known_page(Hva at);
// Pre: each page is pinned. Context: any, a change's callback too; no lock of rank pins or below.
void unpin_pages(FrameRun run);

// How often the page is pinned. Racy: the kernel's folio_maybe_dma_pinned, but exact.
[[nodiscard]] u32 pins_of(Frame frame);
// The frame of the page the client has at `at` now; none: it is not pinned.
[[nodiscard]] std::optional<Frame> frame_at(Hva at);

// ---- a device's access ------------------------------------------------------------------------

class PinTable;

// While it lives, no page is moved. Short: a client's munmap of pinned memory waits for it.
class FrameSection {
 public:
  FrameSection();
  ~FrameSection();
  FrameSection(const FrameSection&) = delete;
  FrameSection& operator=(const FrameSection&) = delete;
  // Where the page is until the section ends, for the forms of host/access.h. Pre: pinned.
  // None: it cannot be touched directly now (it is moving, or the client took the rights from its
  // own mapping); leave the section, use the functions below.
  [[nodiscard]] std::optional<Hva> at(Frame frame, Access access) const;
  // The same of frames that follow each other: *pages is cut to those that stand behind one
  // another. Pre: all are pinned; *pages is not 0.
  [[nodiscard]] std::optional<Hva> at(Frame first, Access access, u64* pages) const;
  // How often pages were moved, or are about to be. In a section that finds the same number, what
  // at() has said in an earlier one is still so, of frames that are still pinned. Where it rises in
  // a section, a move waits for its end.
  [[nodiscard]] u64 moves() const;

 private:
  PinTable& table_;
  sync::Passage::Ticket ticket_;
};

// Within one page. False: the memory failed (its file was truncated by another process, poison, no
// memory to keep it in). Waits for a move. Context: no section.
[[nodiscard]] bool read_frame(Frame frame, u64 offset, void* to, size_t size);
[[nodiscard]] bool write_frame(Frame frame, u64 offset, const void* from, size_t size);

// ---- for the rest of the room and the shim ----------------------------------------------------

// Has this process ever pinned? A relaxed load.
[[nodiscard]] bool pins_active();
// Must the page stay: pinned, or about to be? For who takes pages away.
[[nodiscard]] bool keeps_page(Hva at);
// The same of a page of shared memory (the object's id: host/shared_objects.h).
[[nodiscard]] bool keeps_file_page(PageKey key);

// What an announced change does to pinned pages, between the bell's start and end.
class PinnedChange {
 public:
  // `kept`: of kMoves, how much of the range comes along; the rest is unmapped.
  // `copies`: of pages that go to the store a copy goes, and the mapping is left as it is.
  PinnedChange(HvaRange range, Announced what, u64 kept, bool copies = false);
  ~PinnedChange();
  PinnedChange(const PinnedChange&) = delete;
  PinnedChange& operator=(const PinnedChange&) = delete;
  // Were pages of the range pinned, or about to be?
  [[nodiscard]] bool met_pages() const { return met_; }
  // Pages that the call takes away could not be kept for want of memory, or of mappings
  // (vm.max_map_count): it is not to be made, and answers ENOMEM.
  [[nodiscard]] bool refused() const { return refused_; }
  // The system call succeeded. Without it everything is as before.
  void succeeded(Hva moved_to = {}) {
    succeeded_ = true;
    moved_to_ = moved_to;
  }

 protected:
  friend class PinTable;
  struct FilePart {
    u64 device = 0, inode = 0, first = 0, end = 0;  // pages; of a punch only
  };
  explicit PinnedChange(const FilePart& part);
  void open();

  HvaRange range_;
  Announced what_;
  u64 kept_ = 0;
  FilePart file_{};
  Hva moved_to_;
  bool copies_ = false;
  bool open_ = false;
  bool met_ = false;
  bool succeeded_ = false;
  bool refused_ = false;
  u32 depth_ = 0;
  PinnedChange* next_ = nullptr;  // of those open; under the table's lock
};

// A file loses pages [offset, offset + size): hole punch or truncation. Pinned ones are copied
// first: nobody else has them any more.
class PinnedPunch : public PinnedChange {
 public:
  PinnedPunch(u64 device, u64 inode, u64 offset, u64 size);
};

// The first part of `range` without a pinned page; empty: there is none, and it stands at the end.
[[nodiscard]] HvaRange next_unpinned(HvaRange range);

// Pages of `range` that are pinned where the client has them now. Context: no section.
struct PinnedPages {
  u64 pages = 0;
  Hva first;
};
[[nodiscard]] PinnedPages pinned_in(HvaRange range);

// What the pins hold: pages, of those in the store, blocks; and how many pins there are:
// mm::pinned_vm. Racy: tests, `doctor`.
struct PinUse {
  u64 pages = 0;
  u64 stored = 0;
  u64 blocks = 0;
  u64 pins = 0;
};
[[nodiscard]] PinUse pin_use();

// fork: no page is half moved.
void pins_before_fork();
void pins_after_fork_parent();
void pins_after_fork_child();

}  // namespace stagetwo::host

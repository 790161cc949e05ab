// SPDX-License-Identifier: Apache-2.0
#pragma once

// One guest's pages in this process, as absent pages of host/page_owner.h: the record of an absent
// page is the stand-in, which represents the secure page. Whoever touches it (a load, a system
// call, another process) waits until its sealed bytes are there.
// Analogue: device-private pages and migrate_to_ram (kernel file: book3s_hv_uvmem.c).
//
// I1: a page has at most one frame waiting to be put there (`due`): a put's, a touch's, or that of
// its
//     own bytes, taken ahead of being asked for.
// I2: a frame is wiped before anybody else has it. Some stay as pages of zeros, for what leaves
// secure
//     memory; the others go back to the kernel, because a page can only be moved to an empty place.
// I3: before the process gives up an address of the guest's, by whatever call, the guest has been
//     told: the ultravisor uses no frame there any more (UV_PAGE_INVAL). It hears the bell for
//     that.
// I4: ageing touches nothing: nobody here says that a page is young.
// Locking: lock_ (rank leaf), over frames and what is due; never across a call. Pages of 4 KiB.
// Lifetime: the guest has left (SecureGuest::svm_off) before its memory is forgotten, and outlives
// this: the bell rings until the end.

#include "base/result.h"
#include "base/vec.h"
#include "host/page_owner.h"
#include "sync/mutex.h"
#include "uv/normal_memory.h"
#include "uv/secure_guest.h"

namespace stagetwo::uv {

class ProcessPages final : public NormalMemory, public host::PageOwner, public host::MmuNotifier {
 public:
  ProcessPages() = default;
  ProcessPages(const ProcessPages&) = delete;
  ProcessPages& operator=(const ProcessPages&) = delete;
  ~ProcessPages();

  // Pre: before any page is taken.
  void set_guest(SecureGuest* guest) { guest_ = guest; }
  // The guest's memory from `base` on is the process's from `at` on. Failure: EINVAL (misaligned),
  // ENOMEM. From the first one on the bell is heard. Pre: not inside a change.
  [[nodiscard]] Result<void> map(Gpa base, HvaRange at);
  // What is absent of it comes back first, sealed.
  void forget(Gpa base);

  Taken take(Gpa page, u64 alike, u64* frame) override;
  void leave_none_ahead() override;
  u64 new_frame() override;
  bool put_back(Gpa page, u64 frame) override;
  void drop_frame(u64 frame) override;
  void discard(Gpa page) override;
  u64 address_of(Gpa page) override;

  bool take(const host::AbsentPage& page, host::PageExit& exit) override;
  unsigned take_run(const host::AbsentPage& first, unsigned pages, host::PageExit& exit) override;
  host::BringBack bring_back(const host::AbsentPage& page, host::PageEntry& entry) override;
  void discard(const host::AbsentPage& page) override;

  bool invalidate_range_start(const host::InvalidateEvent& event) override;
  host::TryStart try_invalidate_range_start(const host::InvalidateEvent& event) override;
  void invalidate_range_end(const host::InvalidateEvent& event) override;
  bool borrows(HvaRange range) override;

  // Frames that hold something, for leak tests.
  [[nodiscard]] u64 frames_in_use() TA_EXCL(lock_);

 private:
  // What is to be put at a page. 0: nothing.
  struct Due {
    u64 frame = 0;
    bool touched = false;  // of a touch: the guest waits for touch_end()
    bool ahead = false;    // the page's own bytes, until somebody asks for it
    bool in_hand = false;  // of those: they are being put
    bool gone = false;     // nothing: the page left for who asked, who has not seen it yet
    u8 places = 1;         // of a page that is to leave: how many there are from `frame` on
  };
  // Places for neighbours that leave at once; they are emptied at once, too.
  static constexpr u64 kRun = 16, kRuns = 32;
  static constexpr u64 kZeros = 1;  // no frame: zeros

  struct Part {
    Gpa base;
    HvaRange at;
    Vec<Due> due;
  };
  [[nodiscard]] Part* find(Gpa page) TA_REQ(lock_);
  [[nodiscard]] Part* find(Hva at) TA_REQ(lock_);
  [[nodiscard]] Due* due_at(Hva at) TA_REQ(lock_);
  [[nodiscard]] Hva address(Gpa page) TA_EXCL(lock_);
  [[nodiscard]] HvaRange part_at(Hva at) TA_EXCL(lock_);
  [[nodiscard]] Due swap_due(Hva at, Due fresh) TA_EXCL(lock_);
  [[nodiscard]] bool put(Gpa page, u64 frame) TA_EXCL(lock_);
  enum class Ahead : u8 { kNo, kYes, kInHand };
  enum class Left : u8 { kNo, kYes, kStillDue };
  [[nodiscard]] Ahead take_ahead(Hva at, const Due& otherwise, u64* frame) TA_EXCL(lock_);
  [[nodiscard]] Taken leave(Hva at, u64 fresh, u64 pages, u64* frame) TA_EXCL(lock_);
  [[nodiscard]] Left has_left(Hva at, u64 fresh) TA_EXCL(lock_);
  void withdraw(Hva at, u64 fresh) TA_EXCL(lock_);
  [[nodiscard]] u64 places(Hva at, u64 alike, u64* pages) TA_EXCL(lock_);
  [[nodiscard]] u64 new_run() TA_EXCL(lock_);
  [[nodiscard]] bool give_to_run(u64 frame, u64 count) TA_EXCL(lock_);
  void give_places(u64 first, u64 count) TA_EXCL(lock_);
  // The guest's memory that `range` has of part `index` or a later one. False: no more.
  [[nodiscard]] bool overlap(HvaRange range, size_t* index, Gpa* start, u64* bytes) TA_EXCL(lock_);
  [[nodiscard]] u64 empty_frame() TA_EXCL(lock_);
  [[nodiscard]] Result<void> more_frames() TA_EXCL(lock_);

  SecureGuest* guest_ = nullptr;  // set once
  bool hears_ = false;            // written by map() alone, one thread at a time
  sync::Mutex lock_{sync::Rank::kLeaf};
  Vec<Part> parts_ TA_GUARDED(lock_){"uv.parts"};
  Vec<u64> free_ TA_GUARDED(lock_){"uv.free_frames"};  // without memory
  Vec<u64> warm_ TA_GUARDED(lock_){"uv.warm_frames"};  // pages of zeros
  Vec<u64> chunks_ TA_GUARDED(lock_){"uv.frame_chunks"};
  u64 runs_ TA_GUARDED(lock_) = 0;           // the first of kRuns runs; 0: none yet
  u8 in_run_[kRuns] TA_GUARDED(lock_) = {};  // places of each that are in use
  Hva last_taken_ TA_GUARDED(lock_);         // by which order is seen
  u64 window_ TA_GUARDED(lock_) = 1;         // pages that it is trusted for
};

}  // namespace stagetwo::uv

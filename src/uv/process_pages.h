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
// I2: a frame is one page's, from where it is made ready until the page's bytes are elsewhere
//     (uv/process_frames.h).
// I3: before the process gives up an address of the guest's, by whatever call, the guest has been
//     told: the ultravisor uses no frame there any more (UV_PAGE_INVAL). It hears the bell for
//     that.
// I4: ageing touches nothing: nobody here says that a page is young.
// I5: a page of 64 KiB is sixteen of the process's, which leave and come together; what of them is
//     still due after a touch is there at the next one (process_pieces.cc).
// I6: what the process has of a sealed page that it has not asked for dies with no change of its
//     address: the page is kept (process_kept.cc).
// Locking: lock_ (rank leaf), over what is due; never across a call. Pages of 4 or of 64 KiB.
// Lifetime: the guest has left (SecureGuest::svm_off) before its memory is forgotten, and outlives
// this: the bell rings until the end.

#include "base/hash_map.h"
#include "base/result.h"
#include "base/vec.h"
#include "host/page_owner.h"
#include "sync/mutex.h"
#include "uv/normal_memory.h"
#include "uv/process_frames.h"
#include "uv/secure_guest.h"

namespace stagetwo::uv {

// The record of a page that is absent because this owner has it: never one of a device.
using SecurePageStandIn = host::AbsentPage;

class ProcessPages final : public NormalMemory, public host::PageOwner, public host::MmuNotifier {
 public:
  explicit ProcessPages(u64 page_bytes = kPageSize)
      : page_bytes_(page_bytes), frames_(page_bytes) {}
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
  bool take_untouched(Gpa first, u64 pages) override;
  void leave_none_ahead() override;
  u64 new_frame() override;
  bool put_back(Gpa page, u64 frame) override;
  bool has_places(Gpa first, u64 bytes) override;
  void drop_frame(u64 frame) override;
  void discard(Gpa page) override;
  void moved(Gpa from, Gpa to, u64 bytes) override;
  u64 address_of(Gpa page) override;

  bool take(const SecurePageStandIn& page, host::PageExit& exit) override;
  unsigned take_run(const SecurePageStandIn& first, unsigned pages, host::PageExit& exit) override;
  host::BringBack bring_back(const SecurePageStandIn& page, host::PageEntry& entry) override;
  void discard(const SecurePageStandIn& page) override;
  unsigned bring_back_run(const SecurePageStandIn& first, unsigned pages,
                          host::PageEntry& entry) override;

  bool invalidate_range_start(const host::InvalidateEvent& event) override;
  host::TryStart try_invalidate_range_start(const host::InvalidateEvent& event) override;
  void invalidate_range_end(const host::InvalidateEvent& event) override;
  bool borrows(HvaRange range) override;

  // Frames that hold something, for leak tests.
  [[nodiscard]] u64 frames_in_use();

 private:
  // What is due at a page. Whoever made it takes it back, or finds it gone; a frame is named by
  // one.
  struct Due {
    enum class What : u8 {
      kNothing,
      kPlace,    // the page is to leave for `frame`, its neighbours for the places behind it
      kLeaving,  // it is on its way there, by the hand of whoever came first
      kGone,     // it has left for who asked, who has not seen it yet
      kPut,      // what is to stand there
      kTouched,  // the same, of a touch: the guest waits for touch_end()
      kAhead,    // its own bytes, until somebody asks for it
      kInHand,   // of those: they are being put
    };
    u64 frame = 0;
    What what = What::kNothing;
    u8 places = 1;
    [[nodiscard]] bool is_ahead() const { return what == What::kAhead || what == What::kInHand; }
  };

  struct Part {
    Gpa base;
    HvaRange at;
    Vec<Due> due;
    Vec<u8> unasked;  // of each page of the guest: was it sealed last for nobody's sake?
  };
  [[nodiscard]] Part* find(Gpa page) TA_REQ(lock_);
  [[nodiscard]] Part* find(Hva at) TA_REQ(lock_);
  [[nodiscard]] Due* due_at(Hva at) TA_REQ(lock_);
  [[nodiscard]] Hva address(Gpa page) TA_EXCL(lock_);
  [[nodiscard]] HvaRange part_at(Hva at) TA_EXCL(lock_);
  [[nodiscard]] HvaRange nobodys(Gpa first, u64 bytes) TA_EXCL(lock_);
  void set_due(Hva at, Due fresh) TA_EXCL(lock_);
  [[nodiscard]] bool put(Gpa page, u64 frame) TA_EXCL(lock_);
  [[nodiscard]] static bool put_over(Hva at, u64 bytes);
  [[nodiscard]] bool leave_hole(Hva at) TA_EXCL(lock_);
  enum class Ahead : u8 { kNo, kYes, kInHand };
  enum class Left : u8 { kNo, kYes, kStillDue };
  [[nodiscard]] Ahead take_ahead(Hva at, const Due& otherwise, u64* frame) TA_EXCL(lock_);
  [[nodiscard]] bool take_if_ahead(Hva at, const Due& otherwise, u64* frame) TA_EXCL(lock_);
  [[nodiscard]] Taken leave(Hva at, u64 fresh, u64 pages, u64* frame) TA_EXCL(lock_);
  [[nodiscard]] Left has_left(Hva at, u64 fresh, bool gives_up) TA_EXCL(lock_);
  [[nodiscard]] Due begin_leaving(Hva at, u64 pages) TA_EXCL(lock_);
  void end_leaving(Hva at, Due due, u64 moved) TA_EXCL(lock_);
  [[nodiscard]] static bool may_leave(Hva at, const Result<u64>& taken);
  [[nodiscard]] Taken zeros_or(Taken taken, u64* frame);
  // Of pages that are several of the process's: `at` is the first one's address.
  [[nodiscard]] u64 pieces() const { return page_bytes_ / kPageSize; }
  [[nodiscard]] Hva first_piece(Hva at) TA_EXCL(lock_);
  void set_pieces(Hva at, u64 frame, Due::What what, u64 but) TA_EXCL(lock_);
  void end_put(Hva at, u64 count) TA_EXCL(lock_);
  void settle(Hva at) TA_EXCL(lock_);
  void put_pieces(Hva at);
  [[nodiscard]] Taken take_pieces(Hva at, u64* frame) TA_EXCL(lock_);
  [[nodiscard]] bool leave_pieces(Hva at, u64 frame, u64* left) TA_EXCL(lock_);
  [[nodiscard]] bool put_whole(Hva at, u64 frame) TA_EXCL(lock_);
  [[nodiscard]] Due all_pieces_due(Hva at, Gpa gpa, u64 frame) TA_EXCL(lock_);
  void bring_other_pieces(Hva at) TA_EXCL(lock_);
  [[nodiscard]] host::BringBack due_for_touch(const SecurePageStandIn& page, Gpa* gpa, Due* due)
      TA_EXCL(lock_);
  [[nodiscard]] u64 places(Hva at, u64 alike, u64* pages) TA_EXCL(lock_);
  // The guest's memory that `range` has of part `index` or a later one. False: no more.
  [[nodiscard]] bool overlap(HvaRange range, size_t* index, Gpa* start, u64* bytes) TA_EXCL(lock_);

  // Of sealed pages that nobody has asked for (process_kept.cc).
  void note_sealed(Hva at, u64 frame, bool unasked) TA_EXCL(lock_);
  void begin_loss(const host::InvalidateEvent& event) TA_EXCL(lock_);
  void end_loss(const host::InvalidateEvent& event) TA_EXCL(lock_);
  [[nodiscard]] bool loses_unasked(const host::InvalidateEvent& event) TA_EXCL(lock_);
  [[nodiscard]] bool next_unasked(HvaRange range, Gpa* page, Hva* at) TA_REQ(lock_);
  void keep_unasked(HvaRange range) TA_EXCL(lock_);
  void keep(Hva at, u64 frame) TA_EXCL(lock_);
  [[nodiscard]] bool has_kept(Hva at) TA_EXCL(lock_);
  [[nodiscard]] u64 copy_kept(Hva at) TA_EXCL(lock_);
  void drop_kept(Hva at) TA_EXCL(lock_);

  SecureGuest* guest_ = nullptr;  // set once
  bool hears_ = false;            // written by map() alone, one thread at a time
  const u64 page_bytes_;
  ProcessFrames frames_;
  sync::Mutex lock_{sync::Rank::kLeaf};
  Vec<Part> parts_ TA_GUARDED(lock_){"uv.parts"};
  HashMap<Hva, u64> kept_ TA_GUARDED(lock_){"uv.kept_pages"};  // frames, by a page's address
  static constexpr unsigned kMostLosses = 16;
  HvaRange losses_[kMostLosses] TA_GUARDED(lock_);  // addresses that are being given up
  Hva last_taken_ TA_GUARDED(lock_);                // by which order is seen
  u64 window_ TA_GUARDED(lock_) = 1;                // pages that it is trusted for
};

}  // namespace stagetwo::uv

// SPDX-License-Identifier: Apache-2.0
#pragma once

// The owner of the pages that reclaim took: first as they are, in places of the engine, then in the
// store; and back on a touch. Part of reclaim; not for other rooms. Analogue: the swap cache and
// zswap's two ends (kernel files: mm/swap_state.c, mm/zswap.c).
//
// A page is isolated and gone from the process before it is compressed: the bell's section is as
// short as a move, and a page that is touched meanwhile comes back as it went, uncompressed.
//
// Invariants: I1  what take() answered true for is in exactly one of: a place, the store.
//             I2  a page comes back with its bytes, or is lost and said so once.
//             I3  after settle() nothing is left in a place that the store would have.
// Locking: SpanTable's lock around a page's state; none while bytes move, are compressed or read.
// Context: take() and settle() by whoever runs the turn; bring_back() and discard() by anybody.

#include "addr/addr.h"
#include "host/kept_fd.h"
#include "host/page_owner.h"
#include "mem/page_store.h"
#include "mem/private_swap.h"
#include "reclaim/span.h"

namespace stagetwo::reclaim {

// Said to the user, a line each.
using Say = void (*)(const char* line);

struct SwapCounts {
  u64 taken = 0;      // pages that went
  u64 refaults = 0;   // that came back because somebody touched them
  u64 too_early = 0;  // of those, while no more were taken than are resident: they were in use
  u64 private_refaults = 0;  // of the refaults, of pages of guest_memfds
  u64 ahead = 0;             // that came back because their neighbours did
  u64 discarded = 0;         // given up by the client
  u64 not_stored = 0;        // put back, because the store has no room for them
  u64 lost = 0;
};

// Pages that one call takes at most.
inline constexpr u32 kMostAtOnce = 64;

class Swapper final : public host::PageOwner, public mem::PrivateSwap {
 public:
  Swapper(SpanTable& spans, Say say) : PrivateSwap(store_), spans_(spans), say_(say) {}
  // Failure: ENOMEM.
  [[nodiscard]] Result<void> init();
  ~Swapper();

  [[nodiscard]] mem::PageStore& store() { return store_; }
  // Takes over a file of SwapFile::create(). Failure: EMFILE.
  [[nodiscard]] Result<void> use_file(int fd) { return file_.hold(fd); }
  // For one call on it: the client may want the number.
  [[nodiscard]] sync::KeptNumber::Use file() const override { return file_.number().use(); }

  // Compresses what is in places; what the store refuses comes back. Answers 0, or the refusal.
  [[nodiscard]] int settle();
  // Is there room for another batch before settle()?
  [[nodiscard]] bool has_room() TA_EXCL(spans_.lock());
  // Of a run that take() was asked for, the pages that are where they were, a bit each.
  [[nodiscard]] u64 stayed(const Span& span, u64 first, u64 pages) TA_EXCL(spans_.lock());
  // Bytes in places: memory as any other.
  [[nodiscard]] u64 placed_bytes() const { return u64{staged_} * kPageSize; }

  // Pages that are resident, for the question whether one came back too early.
  void set_resident(u64 pages) { resident_.store(pages, sync::kRelaxed); }
  [[nodiscard]] SwapCounts counts() TA_EXCL(spans_.lock());

  // host::PageOwner
  [[nodiscard]] bool takes_locked() const override { return false; }
  bool take(const host::AbsentPage& page, host::PageExit& exit) override;
  unsigned take_run(const host::AbsentPage& first, unsigned pages, host::PageExit& exit) override;
  host::BringBack bring_back(const host::AbsentPage& page, host::PageEntry& entry) override;
  unsigned bring_back_run(const host::AbsentPage& first, unsigned pages,
                          host::PageEntry& entry) override;
  void discard(const host::AbsentPage& page) override;
  [[nodiscard]] bool is_swap() const override { return true; }

  // Pages of a guest_memfd, by the engine's addresses; what cannot be taken stays. Context: the
  // turn.
  [[nodiscard]] mem::private_pages::Taken take_private(HvaRange run) TA_EXCL(spans_.lock());
  // mem::PrivateSwap
  u64 private_came_back(Hva at) override;
  void private_came_along(HvaRange pages) override;
  void private_lost(Hva at, int error) override;
  void private_discarded(u64 pages) override;

 private:
  static constexpr u32 kPlaces = 256;
  static constexpr u32 kNoPlace = ~u32{0};
  struct Staged {
    Hva at;
    u32 place;
  };
  struct Return {
    Where was;
    u32 what;
  };

  [[nodiscard]] Hva place_at(u32 place) const { return places_ + u64{place} * kPageSize; }
  [[nodiscard]] u32 find_places(u32 pages) TA_REQ(spans_.lock());
  void free_place(u32 place) TA_REQ(spans_.lock());
  void free_unused(u32 first, u32 pages) TA_EXCL(spans_.lock());
  void drop_places() TA_EXCL(spans_.lock());
  [[nodiscard]] bool are_here(const Span& span, Hva at, u32 pages) TA_REQ(spans_.lock());
  void note_taken(Hva at, u32 place) TA_REQ(spans_.lock());
  [[nodiscard]] bool begin_squeeze(const Staged& staged) TA_EXCL(spans_.lock());
  [[nodiscard]] bool end_squeeze(const Staged& staged, const Result<mem::StoredPage>& stored)
      TA_EXCL(spans_.lock());
  [[nodiscard]] Return begin_return(Hva at) TA_EXCL(spans_.lock());
  enum class Touch : u8 { kNone, kWanted };
  u32 end_return(Hva at, Return job, host::BringBack outcome, Touch touch) TA_EXCL(spans_.lock());
  [[nodiscard]] unsigned begin_run(Hva first, unsigned pages, u32* stored) TA_EXCL(spans_.lock());
  void end_run(Hva first, unsigned pages, unsigned back) TA_EXCL(spans_.lock());
  [[nodiscard]] host::BringBack put_back(Hva at, Return job, host::PageEntry& entry);
  [[nodiscard]] u32 note_touch(Span& span, u64 index) TA_REQ(spans_.lock());
  [[nodiscard]] static u32 note_in_row(Span& span, u64 index);
  void owe_for(HvaRange came);
  void read_ahead(Hva after, u32 most) TA_EXCL(spans_.lock());
  [[nodiscard]] u32 kept_behind(Hva after, u32 most) TA_EXCL(spans_.lock());
  void say_lost(Hva at, int error);

  SpanTable& spans_;
  const Say say_;
  mem::PageStore store_;
  mem::PageStore::Bench* bench_ = nullptr;            // of the turn
  mem::PrivateSwap::Bench* private_bench_ = nullptr;  // of the turn
  host::HeldFd file_;
  Hva places_{};
  u64 taken_places_[kPlaces / 64] TA_GUARDED(spans_.lock()) = {};
  u64 dirty_places_[kPlaces / 64] TA_GUARDED(spans_.lock()) = {};  // free, and not yet empty
  Staged list_[kPlaces];                                           // of the turn
  u32 staged_ = 0;
  SwapCounts counts_ TA_GUARDED(spans_.lock());
  sync::Atomic<u64> resident_{0};
  sync::Atomic<int> ahead_{0};    // the thread that reads ahead
  sync::Atomic<int> refused_{0};  // the one that puts back what the store refused
  // Pages on their way back together: of one thread at a time, which says so first.
  u8* run_bytes_ = nullptr;
  sync::Atomic<bool> run_busy_{false};
};

}  // namespace stagetwo::reclaim

// SPDX-License-Identifier: Apache-2.0
#pragma once

// A range of the client's addresses that some guest uses as memory, what is known of each of its
// pages, and the table of all of them. Part of reclaim; not for other rooms.
//
//   where        bytes                             who may act     successors
//   kHere        the process's own page            takers          kPlaced
//   kPlaced      a place of ours, as they are      first toucher,  kReturning, kSqueezing, kHere
//                                                  who compresses    (discarded)
//   kReturning   on their way back                 that toucher    kHere, kPlaced (no memory)
//   kSqueezing   the place; being compressed       both            kStored, kPlaced, kCopying
//   kCopying     the same, and being copied to     both            kLeft, kSqueezing (no memory);
//                where they were                                     kFetching, kReturning
//   kLeft        nobody's: taken back or given     who compresses  kHere
//                up under the compressor
//   kStored      the store                         first toucher   kFetching, kHere (discarded)
//   kFetching    the store; being read             that toucher    kHere, kStored (no memory)
//
// Invariants: I1  spans do not overlap. I2  a span with an absent page or a user stays.
// Locking: SpanTable's lock (rank: reclaim) for the table and for what says so; the rest is of
// whoever runs the turn, ages and use bits also of touchers, relaxed: they are hints.
// Lifetime: while a guest uses the range, and then until none of its pages is absent.

#include "addr/addr.h"
#include "base/interval_map.h"
#include "base/result.h"
#include "sync/atomic.h"
#include "sync/mutex.h"

namespace stagetwo::reclaim {

enum class Where : u8 {
  kHere,
  kPlaced,
  kReturning,
  kSqueezing,
  kCopying,
  kLeft,
  kStored,
  kFetching
};

struct PageSlot {
  u32 what = 0;  // the place, or the store's number
  u16 when = 0;  // the clock of evictions when it was taken
  Where where = Where::kHere;
};
static_assert(sizeof(PageSlot) == 8);

// In passes since a page was last seen used.
using Age = s8;
inline constexpr Age kOldest = 100;

struct Span {
  explicit Span(HvaRange of) : range(of), pages(of.size() >> kPageShift) {}
  // Failure: ENOMEM.
  [[nodiscard]] static Result<Span*> create(HvaRange range);
  static void destroy(Span* span);

  [[nodiscard]] u64 index_of(Hva at) const { return (at - range.start()) >> kPageShift; }
  [[nodiscard]] Hva at(u64 index) const { return range.start() + (index << kPageShift); }
  [[nodiscard]] u64 words() const { return (pages + 63) / 64; }
  [[nodiscard]] bool is_resident(u64 index) const {
    return (resident[index / 64] >> (index % 64) & 1) != 0;
  }

  // No longer, as of the last look.
  void forget_resident(u64 first, u64 count) {
    for (u64 i = first; i < first + count; ++i) resident[i / 64] &= ~(u64{1} << (i % 64));
  }
  // What stays though it is to go (pinned, under a call, refused by the kernel) is not asked for
  // again for a while, which gets longer as long as it is most of the same pages.
  [[nodiscard]] bool is_stuck(u64 index) const {
    return (stuck[index / 64] >> (index % 64) & 1) != 0;
  }
  void note_stuck(u64 first, u64 bits, u64 now);  // a bit each, from `first` on
  void forget_stuck(u64 now);                     // when the time has come

  static constexpr u64 kStuckNs = 25'000'000;  // doubled before it is used
  static constexpr int kMostPatience = 7;

  // In this interval of the working set; `age` from now on.
  void note_used(u64 index, Age age) {
    used[index / 64].fetch_or(u64{1} << (index % 64), sync::kRelaxed);
    ages[index].store(age, sync::kRelaxed);
  }

  // The pages of the huge page that this one is in.
  [[nodiscard]] u64 block_start(u64 index) const {
    const u64 offset = at(index).raw() >> kPageShift & 511;
    return index - (offset < index ? offset : index);
  }
  [[nodiscard]] u64 block_end(u64 index) const {
    const u64 end = index + 512 - (at(index).raw() >> kPageShift & 511);
    return end < pages ? end : pages;
  }

  const HvaRange range;
  const u64 pages;

  // Under the table's lock.
  PageSlot* slots = nullptr;
  u64 absent = 0;            // pages that are not kHere
  u32 users = 0;             // ranges of guests that overlap
  u64 last_touch = ~u64{0};  // the page that came back last
  u32 row = 0;               // how many came back one after another

  sync::Atomic<Age>* ages = nullptr;
  sync::Atomic<u64>* used = nullptr;  // a bit a page: in this interval of the working set
  u64* resident = nullptr;            // a bit a page: as of the last look
  u64* stuck = nullptr;               // a bit a page
  u64* was_stuck = nullptr;           // in the time before
  u64 stuck_count = 0;                // bits in it,
  u64 stuck_again = 0;                // those of them that were set before, too
  u64 stuck_before = 0;               // of was_stuck
  u64 ask_again = 0;                  // when it is forgotten
  int patience = 0;
  u64* huge = nullptr;     // a bit a huge page that it touches: the same, mapped as one
  u64 locked = 0;          // bytes, of a part: as of the last look
  u64 resident_count = 0;  // bits in it
  bool shared = false;     // as of the last look: a mapping of a file
  // kPrivate: of a guest_memfd, at the engine's addresses (mem/private_swap.h). Where its pages are
  // is known there, and all slots here say kHere. kShared: such a one that another process may
  // have. kOthers: ordinary shared memory of that kind. kFile: a private mapping of a file
  // (docs/decisions/0047-private-mappings-of-files.md).
  enum class Kind : u8 {
    kOrdinary,
    kPrivate,
    kShared,
    kOthers,
    kFile,
    kHugetlb,
    kLocked,
    kUnmapped
  } kind = Kind::kOrdinary;
  [[nodiscard]] bool can_leave() const { return kind == Kind::kOrdinary || kind == Kind::kPrivate; }
};

class SpanTable {
 public:
  SpanTable() = default;
  SpanTable(const SpanTable&) = delete;
  SpanTable& operator=(const SpanTable&) = delete;
  ~SpanTable();

  // One more user of the range. Failure: ENOMEM; nothing changed.
  [[nodiscard]] Result<void> add(HvaRange range) TA_EXCL(lock_);
  // Pre: added before.
  void remove(HvaRange range) TA_EXCL(lock_);
  // The first span that ends after `at`, or null. Good for whoever runs the turn, who alone prunes.
  [[nodiscard]] Span* next(Hva at) TA_EXCL(lock_);
  // Spans that nobody uses and that have nothing absent go. Context: the turn.
  void prune() TA_EXCL(lock_);

  [[nodiscard]] Span* find(Hva at) TA_REQ(lock_);
  [[nodiscard]] bool is_away(Hva page) TA_EXCL(lock_);
  [[nodiscard]] u64 absent_pages() TA_EXCL(lock_);
  // Of a span that the range has a part of only as large a part of them.
  [[nodiscard]] u64 absent_in(HvaRange range) TA_EXCL(lock_);
  [[nodiscard]] sync::Mutex& lock() TA_RETURN(lock_) { return lock_; }

 private:
  [[nodiscard]] Result<void> fill_gaps(HvaRange range) TA_REQ(lock_);

  sync::Mutex lock_{sync::Rank::kReclaim};
  IntervalMap<u64, Span*> spans_ TA_GUARDED(lock_){"reclaim.spans"};
};

}  // namespace stagetwo::reclaim

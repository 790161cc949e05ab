// SPDX-License-Identifier: Apache-2.0
#pragma once

// A device that reads and writes by itself: accesses through cached translations, without the
// iommufd's lock as long as the caches know. Three of them, as a VT-d unit and its device have
// them, each with an invalidation of its own:
//
//   device TLB    (PASID, page) → frame                    of the device
//   IOTLB         (domain id or PASID, page) → frame       of the unit
//   PASID cache   PASID → its entry                        of the unit
//
// An access looks into the device's; a miss there asks the unit, under the lock, which walks what
// its own two do not know. Linux has no such thing: this is the hardware's side. What copy() has
// found of its two ends stands in the device's TLB as runs: frames that follow each other, or pages
// of the process's own, good as long as none of them went (ProcessSpace::Section::removals).
//
// I1  What is used is at most as old as the last invalidation that was waited for
//     (iommu/invalidation_queue.h): after an unmap or a detach returns, no access lands.
// I2  A cached translation permits a write only if the write was marked in the tables.
// I3  Of the process's own pages one that changes is not used any more when the change begins.
// Context: one thread at a time, of the process that made it; no lock of this room. Lifetime: ends
// before its Context. In a child of fork it is dead: not to be used or destroyed.

#include <optional>
#include <span>

#include "iommu/context.h"
#include "iommu/frame_places.h"
#include "iommu/invalidation_queue.h"
#include "iommu/requests.h"
#include "iommu/walk.h"

namespace stagetwo::iommu {

class DmaEngine {
 public:
  // For a device in VT-d's tables. Failure: ENOENT, ENODEV (a test device), ENOSPC (too many
  // engines), ENOMEM, EIO.
  static Result<Box<DmaEngine>> make(Context& context, u32 device_id);
  DmaEngine() = default;
  ~DmaEngine();
  DmaEngine(const DmaEngine&) = delete;
  DmaEngine& operator=(const DmaEngine&) = delete;

  // Reads (`to`) or writes (`from`). `pasid` kNoPasid: the device's own. `asks`: as of
  // Context::dma().
  DmaAnswer access(s64 pasid, u64 iova, u64 bytes, void* to, const void* from, bool asks = false);

  // Tells the client that something is done: four words, of which the first comes last, in one
  // piece. Pre: `iova` is a multiple of their size.
  struct Record {
    u64 iova;
    const u64* words;
  };
  static constexpr u64 kRecordBytes = 32;
  DmaAnswer post(s64 pasid, const Record& record, bool asks = false);

  // From one of the PASID's addresses to another, without a buffer between where the caches know
  // both. The answer is of whichever end had the fault. `record`: posted with the last bytes where
  // the caches know its place, too. Pre: the ends do not overlap.
  struct CopyAnswer {
    DmaAnswer answer;
    bool write = false;   // the fault's
    bool posted = false;  // else nothing of the record was
  };
  CopyAnswer copy(s64 pasid, u64 to, u64 from, u64 bytes, bool asks = false,
                  const Record* record = nullptr);

  // Moves one after the other, as far as the caches know all that they reach: found out before the
  // first is made, and made in one section. It ends between two pieces where somebody waits for it.
  // Answers how many are done, their records posted, and how many bytes of the next: the rest is
  // for copy(). Pre: kMostMoves at most; the ends of none overlap; a record as for post().
  struct Move {
    u64 to, from, bytes;
    Record record;
  };
  struct Moved {
    unsigned moves = 0;
    u64 bytes = 0;
  };
  static constexpr unsigned kMostMoves = 16;
  Moved move_known(s64 pasid, std::span<const Move> moves);

  // While it is set no page is asked for, and move_known() ends between two pieces: who waits for a
  // response gives up within some milliseconds. Its words outlive the engine.
  void set_cancel(Cancel cancel) { cancel_ = cancel; }

  struct Counts {
    u64 hits = 0, misses = 0, iotlb_hits = 0, walks = 0;
  };
  [[nodiscard]] const Counts& counts() const { return counts_; }

 private:
  static constexpr unsigned kDevicePages = 128, kUnitPages = 512, kEntries = 32;
  struct Page {
    bool valid = false;
    u16 domain_id = 0;
    TranslationType type{};
    u32 pasid = 0;  // 0: the device's own
    u32 rights = 0;
    u64 iova = 0;
    u64 address = 0;
  };
  struct Entry {
    bool valid = false;
    u32 pasid = 0;
    PasidEntry entry{};
  };
  struct Run {
    bool valid = false;
    bool own = false;  // of the process's own pages, all of them there
    u32 pasid = 0;
    u32 rights = 0;
    u64 iova = 0, last = 0;
    u64 address = 0;   // of `iova`
    u64 removals = 0;  // of the process's own: good while so many
  };
  // As long as a section may be: a client's unmap waits for it. Longer than a processor's first
  // cache, which is empty of everything else behind each piece.
  static constexpr u64 kLongestCopy = 128 * 1024, kLongestRun = 2 << 20;
  static constexpr unsigned kRuns = 32;
  class Section;
  class Grip;
  struct Ends {
    u64 to, from, record;
  };

  static Page& page_of(Page* pages, unsigned count, u32 pasid, u64 iova);
  void forget(const Invalidation* what);
  void heed();
  FaultReason access_page(s64 pasid, u64 iova, u64 bytes, void* to, const void* from);
  struct Once;
  FaultReason fill(s64 pasid, u64 iova, Rights wanted, Once* once);
  u64 access_run(u32 pasid, u64 iova, u64 bytes, void* to, const void* from);
  u64 copy_cached(u32 pasid, u64 to, u64 from, u64 bytes, const Record* record, bool* posted);
  std::optional<Hva> place_of(u32 pasid, const Record& record, const Grip& grip) const;
  bool reach(u32 pasid, u64 iova, u64 bytes, Rights wanted, const Grip& grip, Span* span) const;
  [[nodiscard]] bool must_end(const Grip& grip) const;
  static bool put(Hva place, const Record& record);
  const Run* find_run(u32 pasid, u64 iova, Rights wanted) const;
  bool cache_run(s64 pasid, u64 iova, u64 bytes, Rights wanted);
  bool cache_own_run(u32 pasid, u64 iova, u64 bytes, Rights wanted);
  void keep(const Run& run);
  FaultReason find_entry(const class Locked& locked, s64 pasid, PasidEntry* out);

  Context* context_ = nullptr;
  InvalidationQueue* queue_ = nullptr;
  DmaLine* line_ = nullptr;
  SourceId source_{};
  u32 device_id_ = 0;
  Counts counts_;
  Cancel cancel_;
  FramePlaces places_;  // what the runs' frames are
  Page device_tlb_[kDevicePages];
  Run runs_[kRuns];
  u32 next_run_ = 0;  // to be replaced
  Page iotlb_[kUnitPages];
  Entry pasid_cache_[kEntries];
};

}  // namespace stagetwo::iommu

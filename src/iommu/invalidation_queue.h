// SPDX-License-Identifier: Apache-2.0
#pragma once

// The invalidation queue of an iommufd, and the lines of those who cache its translations. It is in
// shared memory: an engine of any process that has the iommufd heeds it. Linux analogue: the queued
// invalidation of drivers/iommu/intel/dmar.c; here the "hardware" is every engine for itself.
//
//   engine                                    who unmaps (has the arena's lock)
//   enter(line)   inside = tid
//   heed(line)    tail; forget; heeded = it   entries are gone from the tables
//   use what is cached: a piece               post(…): descriptor, tail
//   leave(line)   inside = 0                  wait(): each line is outside or has heeded the tail
//                                             pages are unpinned
//
// A section is one piece or several, each of 128 KiB at most, and ends behind the one it is at
// where the line owes something: who unmaps waits for one piece (DmaEngine::must_end).
//
// I1  After wait() no engine uses what was posted before it.
// I2  An engine that is not inside need not heed: it does when it enters. One that was away for
//     more than the ring forgets everything.
// I3  A line whose thread has died inside is outside.
// Orders: inside stored and tail read by the engine, tail stored and inside read by the poster, all
// seq_cst (Dekker). A descriptor is stored before the tail (release) and read before the tail is
// read again (acquire), which tells whether it was overwritten meanwhile.
// Locking: post, wait, add and remove under the arena's lock; an engine's side takes none. A
// section takes no lock and none is waited for in it but a moving page's. Nothing can fail.

#include "iommu/invalidation.h"
#include "iommu/kept.h"
#include "sync/atomic.h"

namespace stagetwo::iommu {

// Zero is a free place, and a fresh queue.
struct alignas(64) DmaLine {
  sync::Atomic<u32> inside;  // the thread in a section: engine stores, poster reads
  sync::Atomic<u32> used;    // under the arena's lock
  sync::Atomic<u64> heeded;  // engine stores (release), poster reads (acquire)
  Kept<u32> process;         // under the arena's lock
  Kept<u32> space;           // the same: whose numbers `inside` has
};

class InvalidationQueue {
 public:
  static constexpr u64 kLength = 256;
  static constexpr unsigned kLines = 64;

  // ---- who changes tables
  [[nodiscard]] bool has_lines() const { return lines_ != 0; }
  void post(const Invalidation& what);
  void wait();

  // ---- engines. A place: null, all are taken.
  DmaLine* add(u32 process, u32 space = 0);
  void remove(DmaLine* line);
  template <typename F>
  void for_each_line(F&& fn) {
    for (DmaLine& line : line_) {
      if (line.used.load(sync::kRelaxed) != 0) fn(line);
    }
  }
  void enter(DmaLine& line, u32 tid) { line.inside.exchange(tid, sync::kSeqCst); }
  void leave(DmaLine& line) { line.inside.store(0, sync::kRelease); }
  // Is there anything the line has not heeded?
  [[nodiscard]] bool owes(const DmaLine& line) const {
    return tail_.load(sync::kSeqCst) != line.heeded.load(sync::kRelaxed);
  }
  // forget(const Invalidation*) of each; null: everything.
  template <typename F>
  void heed(DmaLine& line, F&& forget) {
    const u64 tail = tail_.load(sync::kSeqCst);
    for (u64 at = line.heeded.load(sync::kRelaxed); at != tail; ++at) {
      const Invalidation one = read(at);
      if (tail_.load(sync::kAcquire) - at >= kLength) {
        forget(static_cast<const Invalidation*>(nullptr));
        break;
      }
      forget(&one);
    }
    line.heeded.store(tail, sync::kRelease);
  }

 private:
  struct Slot {
    sync::Atomic<u64> low, high;
  };
  [[nodiscard]] Invalidation read(u64 at) const {
    const Slot& slot = ring_[at % kLength];
    return {slot.low.load(sync::kAcquire), slot.high.load(sync::kAcquire)};
  }
  static void wait_for(DmaLine& line, u64 tail);

  sync::Atomic<u64> tail_;  // descriptors ever posted
  Kept<u32> lines_;         // in use
  Slot ring_[kLength];
  DmaLine line_[kLines];
};

}  // namespace stagetwo::iommu

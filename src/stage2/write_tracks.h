// SPDX-License-Identifier: Apache-2.0
#pragma once

// Which frames of one slot somebody wants to know every store to, and so which huge mappings are
// forbidden. Analogue: kvm_page_track and lpage_info.disallow_lpage (kernel files: page_track.c,
// mmu.c). Differs: the counters are made at the first use in a slot.
//
// Invariants: I1  a counter of a larger level is the number of tracked frames below it.
//             I2  a frame is counted before its entries are zapped and their flush is waited for;
//                 whoever read "not tracked" either lost its entry to that zap or is told to retry.
// Locking: written under slots_lock, read by anyone. Lifetime: as the slot and its successors by a
// change of flags; a slot that moves begins with none, as the kernel's does.

#include "addr/addr.h"
#include "base/result.h"
#include "sync/atomic.h"

namespace stagetwo::stage2 {

// Who wants to know. At most one a VM (GuestMemory::attach_tracker).
class WriteTracker {
 public:
  // KVM has made a guest's store to a tracked frame. Context: the vCPU's thread, in a read section.
  virtual void on_write(Gpa to, const void* from, size_t bytes) = 0;
  // The slot of these frames goes, and with it their tracks. Context: under slots_lock.
  virtual void on_slot_deleted(GfnRange frames) = 0;

 protected:
  ~WriteTracker() = default;
};

class WriteTracks {
 public:
  // Failure: ENOMEM.
  [[nodiscard]] static Result<WriteTracks*> create(GfnRange frames);
  static void destroy(WriteTracks* tracks);

  [[nodiscard]] bool is_tracked(Gfn gfn) const { return count(1, gfn) != 0; }
  // May an entry of `level` (1: a frame) cover `gfn`?
  [[nodiscard]] bool permits(unsigned level, Gfn gfn) const { return count(level, gfn) == 0; }
  // True: this was the first for the frame. Failure: EOVERFLOW.
  [[nodiscard]] Result<bool> add(Gfn gfn);
  // True: this was the last. Pre: is_tracked(gfn).
  bool remove(Gfn gfn);
  // Tracked frames. Context: under slots_lock.
  [[nodiscard]] u64 total() const { return total_; }

 private:
  static constexpr unsigned kLevels = 3;

  [[nodiscard]] static u64 index_of(unsigned level, Gfn first, Gfn gfn) {
    const unsigned shift = (level - 1) * 9;
    return (gfn.raw() >> shift) - (first.raw() >> shift);
  }
  [[nodiscard]] u32 count(unsigned level, Gfn gfn) const {
    return counters_[level - 1][index_of(level, first_, gfn)].load(sync::kRelaxed);
  }

  Gfn first_;      // immutable after create()
  u64 bytes_ = 0;  // immutable after create()
  u64 total_ = 0;  // under slots_lock
  sync::Atomic<u32>* counters_[kLevels] = {};
};

// A pointer that may appear in a slot that is published already. Set under slots_lock with release.
class WriteTracksPointer {
 public:
  WriteTracksPointer() = default;
  // Under slots_lock: a successor has its predecessor's.
  WriteTracksPointer(const WriteTracksPointer& other) { set(other.get()); }
  WriteTracksPointer& operator=(const WriteTracksPointer& other) {
    set(other.get());
    return *this;
  }
  [[nodiscard]] WriteTracks* get() const { return tracks_.load(sync::kAcquire); }
  void set(WriteTracks* tracks) const { tracks_.store(tracks, sync::kRelease); }

 private:
  mutable sync::Atomic<WriteTracks*> tracks_{nullptr};
};

}  // namespace stagetwo::stage2

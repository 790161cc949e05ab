// SPDX-License-Identifier: Apache-2.0
#pragma once

// One vCPU's ring of dirtied pages, in memory it shares with the client. Analogue: struct
// kvm_dirty_ring (kernel file: virt/kvm/dirty_ring.c). Three parties, each writing what is its own:
//
//   the vCPU's thread      push(): slot, offset, then DIRTY
//   the client             reads a DIRTY entry, stores RESET
//   KVM_RESET_DIRTY_RINGS  reset(): takes RESET entries in order, stores 0, protects pages again
//
// Invariants: I1  an entry is overwritten only after reset() took it: the ring is never overrun.
//                 The vCPU looks at soft_full() at every boundary of an instruction that may have
//                 pushed, and kReservedEntries is more than one instruction pushes.
//             I2  a page whose entry reset() took is pushed again for every store after reset()'s
//                 flush.
//             I3  reset() never takes more than was pushed, whatever the client wrote to the ring.
// Differs: the kernel goes on for as long as it finds RESET.
// Locking: push(), soft_full(): the vCPU's thread. reset(): slots_lock. The client obeys nobody.
// Lifetime: the memory is the vCPU descriptor's; in the VM's list from add_ring() to remove_ring().

#include "base/result.h"
#include "base/types.h"
#include "sync/annotations.h"
#include "sync/atomic.h"

namespace stagetwo::stage2 {

// The uapi's entry, struct kvm_dirty_gfn; abi static_asserts the layouts equal.
struct DirtyGfn {
  // 0, kDirtied (vCPU, release; client, acquire), with kReset (client, release; reset, acquire).
  sync::Atomic<u32> flags;
  // Written by the vCPU before kDirtied, read by others after it.
  sync::Atomic<u32> slot;
  sync::Atomic<u64> offset;
};
inline constexpr u32 kGfnDirtied = 1U << 0;
inline constexpr u32 kGfnReset = 1U << 1;

class DirtyRing {
 public:
  static constexpr u32 kReservedEntries = 64;
  static constexpr u32 kMaxEntries = 65536;

  // Which size in bytes a client may ask for. Failure: EINVAL, E2BIG.
  [[nodiscard]] static Result<void> check_size(u32 bytes);

  // Pre: `entries` is `bytes` of zeroes; bytes passed check_size(), but for tests with their own
  // reserve.
  DirtyRing(u32 index, void* entries, u32 bytes, u32 reserved = kReservedEntries);
  DirtyRing(const DirtyRing&) = delete;
  DirtyRing& operator=(const DirtyRing&) = delete;

  // A page became writable for this vCPU's store. Pre: the ring has room (I1); ends the process
  // otherwise.
  void push(u32 slot, u64 offset);
  // Must the vCPU leave before it dirties more?
  [[nodiscard]] bool soft_full() const { return used() >= soft_limit_; }

  // Takes what the client has collected: calls protect(slot, offset, mask) for up to 64 pages at a
  // time, bit n standing for page offset + n, and returns the number of entries. `slot` and
  // `offset` are what the client left in the entry: protect() trusts neither. The locks protect()
  // wants are its maker's, who holds them; they have no name here.
  template <typename F>
  TA_NO_ANALYSIS u32 reset(F&& protect);

  [[nodiscard]] u32 index() const { return index_; }
  [[nodiscard]] u32 entry_count() const { return size_; }
  [[nodiscard]] u32 used() const {
    return dirty_index_.load(sync::kRelaxed) - reset_index_.load(sync::kAcquire);
  }

 private:
  friend class Memslots;

  // The next entry the client is done with, taken. False: none.
  bool take(u32* slot, u64* offset);

  const u32 index_;  // the vCPU's
  const u32 size_;   // entries, a power of two
  const u32 soft_limit_;
  DirtyGfn* const entries_;
  // Entries ever pushed: stored by the vCPU's thread before DIRTY, so that whoever saw DIRTY (and
  // whoever heard of it from the client) sees the count.
  sync::Atomic<u32> dirty_index_{0};
  // Entries ever taken: stored by reset() with release after the entry was read, read by the vCPU
  // with acquire before the entry is written again.
  sync::Atomic<u32> reset_index_{0};
  DirtyRing* next_ = nullptr;  // the VM's rings, under slots_lock
};

// Entries of neighbouring pages as one mask, in either direction. Analogue: the loop of
// kvm_dirty_ring_reset.
class ResetWindow {
 public:
  // False: the page is of another window; give the mask out first.
  [[nodiscard]] bool add(u32 slot, u64 offset);
  void start(u32 slot, u64 offset);

  [[nodiscard]] u32 slot() const { return slot_; }
  [[nodiscard]] u64 offset() const { return offset_; }
  [[nodiscard]] u64 mask() const { return mask_; }

 private:
  u32 slot_ = 0;
  u64 offset_ = 0;
  u64 mask_ = 0;
};

template <typename F>
u32 DirtyRing::reset(F&& protect) {
  ResetWindow window;
  u32 count = 0;
  u32 slot = 0;
  u64 offset = 0;
  while (take(&slot, &offset)) {
    ++count;
    if (window.add(slot, offset)) continue;
    if (window.mask() != 0) protect(window.slot(), window.offset(), window.mask());
    window.start(slot, offset);
  }
  if (window.mask() != 0) protect(window.slot(), window.offset(), window.mask());
  return count;
}

static_assert(sizeof(DirtyGfn) == 16);

}  // namespace stagetwo::stage2

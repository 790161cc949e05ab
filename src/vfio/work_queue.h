// SPDX-License-Identifier: Apache-2.0
#pragma once

// How descriptors of 64 bytes, whatever is in them, reach a device's thread, in two ways:
//
//   portal   64 slots of 64 bytes, for as many threads of a client: a descriptor is submitted when
//            the last bytes of its slot are written. kPlaces wait at most.
//   ring     memory that the client maps: it writes descriptors and moves the tail. One process's
//            thread serves it: the one that reset the device last.
//
// I1  A descriptor is copied before it is looked at: the client may change its memory at any time.
// I2  What is discarded is not taken any more, by no process's thread.
// Locking: lock_, a leaf, for the portal's places. The client's calls are under the device's lock;
// take() is the thread's; discard() and reset() come while the thread is paused.

#include <span>

#include "base/types.h"
#include "sync/atomic.h"
#include "sync/mutex.h"

namespace stagetwo::vfio {

// At the ring's beginning, in memory that client and device share. The client moves the tail; where
// `asleep` is set it rings the device's doorbell, too.
struct RingHead {
  u32 tail, head, asleep, reserved[13];
};
static_assert(sizeof(RingHead) == 64);
inline constexpr u64 kRingAt = 4096, kRingSlots = 1024, kRingBytes = 128 * 1024;

// Of all processes; zero: none.
struct QueueShare {
  sync::Atomic<u32> server;    // the process whose thread serves the ring
  sync::Atomic<u32> discards;  // ever made
};

class WorkQueue {
 public:
  static constexpr u32 kPlaces = 64, kTaken = 16, kDescriptorBytes = 64;

  // `ring`: kRingBytes of the device's memory.
  WorkQueue(u8* ring, QueueShare& share) : ring_(ring), share_(share) {}

  // ---- the client's calls
  // Answers the descriptor that is whole now; else null.
  const void* write_portal(u64 offset, std::span<const u8> from);
  [[nodiscard]] bool put(const void* descriptor);  // false: it is full
  void read_ring(u64 offset, std::span<u8> to) const;
  void write_ring(u64 offset, std::span<const u8> from);
  void reset();
  void discard();

  // ---- the thread's
  // At most kTaken. A tail that is too far is moved back: *overrun.
  u32 take(void* to, bool* overrun);
  void say_asleep(bool asleep);
  void in_child();

 private:
  struct alignas(8) Descriptor {
    u8 bytes[kDescriptorBytes];
  };
  u32 take_from_ring(void* to, bool* overrun);
  [[nodiscard]] bool is_discarded() const {
    return seen_.load(sync::kAcquire) != share_.discards.load(sync::kAcquire);
  }
  void forget() TA_REQ(lock_);
  [[nodiscard]] bool serves() const;
  [[nodiscard]] sync::Atomic<u32>& word(u32 RingHead::* which) const {
    return reinterpret_cast<sync::Atomic<u32>&>(reinterpret_cast<RingHead*>(ring_)->*which);
  }

  u8* const ring_;
  QueueShare& share_;
  Descriptor portal_[64] = {};  // of slots that are being written
  sync::Mutex lock_{sync::Rank::kLeaf};
  Descriptor queue_[kPlaces] TA_GUARDED(lock_) = {};
  u32 first_ TA_GUARDED(lock_) = 0;
  sync::Atomic<u32> queued_{0};  // written under the lock
  u32 head_ = 0;                 // the thread's, or of who paused it
  sync::Atomic<u32> seen_{0};    // discards that this process has heeded; written under the lock
};

}  // namespace stagetwo::vfio

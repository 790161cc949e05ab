// SPDX-License-Identifier: Apache-2.0
#pragma once

// How descriptors of 64 bytes, whatever is in them, reach a device's thread, in two ways:
//
//   portal   64 slots of 64 bytes, for as many threads of a client: a descriptor is submitted when
//            the last bytes of its slot are written. kPlaces wait at most.
//   ring     memory that the client maps: it writes descriptors and moves the tail. One process's
//            thread serves it: the one that reset the device last.
//
// Where several processes have the device (a child of fork, one that it was sent to), each reaches
// its own memory only, and who has moved the tail is told by the doorbell: `asleep` stays set, and
// each one's thread takes what stood in the ring at its own last doorbell. Who is left alone serves
// it as before.
//
// I1  A descriptor is copied before it is looked at: the client may change its memory at any time.
// I2  What is discarded is not taken any more, by no process's thread.
// I3  Of several processes' threads one takes at a time: who has `taking`. That one dies with it is
//     found by the next.
// I4  What was in the ring before it was several's is its server's: `limit`.
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
  static constexpr u32 kUsers = 4;      // more are several for good
  sync::Atomic<u32> server;             // the process whose thread serves the ring
  sync::Atomic<u32> discards;           // ever made
  sync::Atomic<u32> several;            // 1: each process rings for itself
  sync::Atomic<u32> limit;              // the tail as that began
  sync::Atomic<u32> taking;             // the thread that takes, or changes what is above
  sync::Atomic<u32> users[kUsers + 1];  // processes; the last one: there were more
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
  void rung();        // a doorbell
  void first_user();  // nobody else has the device
  void after_fork();  // in a child, which has it, too

  // ---- the thread's
  // At most kTaken. A tail that is too far is moved back: *overrun.
  u32 take(void* to, bool* overrun);
  void say_asleep(bool asleep);
  void in_child();

 private:
  struct alignas(8) Descriptor {
    u8 bytes[kDescriptorBytes];
  };
  class Taking;
  u32 take_from_ring(void* to, bool* overrun);
  u32 take_rung(void* to, bool* overrun);
  u32 copy_from_ring(u32 tail, void* to, bool* overrun);
  void note_user();
  [[nodiscard]] bool is_alone() const;
  [[nodiscard]] bool becomes_alone();
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
  u32 limit_ = 0;                // the same: of several, how far this one may go
  bool of_several_ = false;      // the same
  // What rung() has found and the thread has not looked at: the tail, and above it discards + 1.
  sync::Atomic<u64> rung_{0};
  sync::Atomic<u32> seen_{0};  // discards that this process has heeded; written under the lock
};

}  // namespace stagetwo::vfio

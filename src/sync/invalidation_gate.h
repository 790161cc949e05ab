// SPDX-License-Identifier: Apache-2.0
#pragma once

// The gate between a fault that looks a page up and an invalidation that takes it away. Analogue:
// mmu_invalidate_in_progress, mmu_invalidate_range_start/end (the hull) and mmu_invalidate_seq,
// with mmu_invalidate_retry_gfn() as must_retry(). Differs: readers take no lock at all; the gap
// this leaves is closed by the ack lines (docs/decisions/0003-closing-the-fault-gap.md).
//
// The frame numbers are plain words because gates of several kinds of address use one type.
//
// I1: count > 0 exactly between a begin and its end; the hull then covers every range begun since
//     the count was last 0.
// I2: `end` raises the sequence before it drops the count; a reader looks at the count before the
//     sequence. So it sees the old non-zero count, or the new sequence.
// I3: ranges are extended before the barrier that follows begin, and never shrink while count > 0.
//
// Locking: writers exclude each other by lock_; readers are lock-free. Nothing can fail.
// Lifetime: as its owner. A gate is never destroyed between begin and end.

#include "sync/atomic.h"
#include "sync/mutex.h"

namespace stagetwo::sync {

class InvalidationGate {
 public:
  struct Snapshot {
    u64 sequence;
  };

  constexpr InvalidationGate() = default;
  InvalidationGate(const InvalidationGate&) = delete;
  InvalidationGate& operator=(const InvalidationGate&) = delete;

  // The frames first..last, both included, are about to change meaning. Post: every fault that
  // enters its install section after the barrier following this call is told to retry.
  // Context: may wait for another begin or end, never for a reader.
  void begin(u64 first, u64 last);
  // A further range of the same invalidation. Pre: between begin and end, before the barrier.
  void extend(u64 first, u64 last);
  // The change has happened. Pre: one begin for each end. Never fails.
  void end();
  // The same, with a check in debug builds that the range was begun.
  void end(u64 first, u64 last);

  // Taken before anything else is looked up. Acquire: the translation that follows sees everything
  // that ended before the sequence read here.
  [[nodiscard]] Snapshot snapshot() const { return {sequence_.load(kAcquire)}; }

  // May what was looked up since `snapshot` not be used for frame `page`? Authoritative inside an
  // install section (AckLine running); elsewhere a cheap hint without false positives that matter.
  [[nodiscard]] bool must_retry(Snapshot snapshot, u64 page) const {
    return must_retry(snapshot, page, page);
  }
  // The same for the frames first..last, of which all must have kept their meaning.
  [[nodiscard]] bool must_retry(Snapshot snapshot, u64 first, u64 last) const {
    // Sequentially consistent: with the entering store of the ack line this is one half of a
    // Dekker handshake; begin's raise and the read of the line's mode are the other.
    if (count_.load(kSeqCst) != 0) [[unlikely]] {
      if (in_hull(first, last)) return true;
    }
    return sequence_.load(kAcquire) != snapshot.sequence;  // pairs with end's release
  }

  // Is any invalidation under way? A hint outside a section.
  [[nodiscard]] bool active() const { return count_.load(kSeqCst) != 0; }

 private:
  // Both words acquire: a reader that sees a hull of a later invalidation also sees that the
  // earlier one ended, by the sequence it reads next.
  bool in_hull(u64 first, u64 last) const {
    return last >= hull_first_.load(kAcquire) && first <= hull_last_.load(kAcquire);
  }
  void widen(u64 first, u64 last) TA_REQ(lock_);

  Mutex lock_{Rank::kGate};
  // All four: written under lock_, read by anyone. The reader's cases stand in
  // invalidation_gate.cc.
  Atomic<u64> count_{0};       // raised seq_cst, dropped release; read seq_cst
  Atomic<u64> sequence_{0};    // raised release; read acquire
  Atomic<u64> hull_first_{0};  // stored release; read acquire
  Atomic<u64> hull_last_{0};   // stored release; read acquire
};

}  // namespace stagetwo::sync

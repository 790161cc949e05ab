// SPDX-License-Identifier: Apache-2.0
#pragma once

// A stretch of addresses that a mirror looks into: its subscription of the bell. Linux analogue:
// struct drm_gpusvm_notifier, and the one notifier over everything of lib/test_hmm.c, which would
// hear of changes that are none of the mirror's.
//
//   device (fault)                        | thread that changes the address space
//   s = read_begin(): nothing changes     |
//   asks the process for the page         | start: lock; number; erase the range; unlock
//   lock; number is not s: again          | the system call
//   store; unlock                         | end: read_begin() goes on
//
// A store before the erasing is erased; one after it sees the number. A change of addresses where a
// mirror has no span takes no lock of this room.
//
// Locking: Device::lock, for all but the subscription itself. Lifetime: from the first look of its
// mirror to the mirror's end.

#include "addr/addr.h"
#include "host/interval_notifier.h"

namespace stagetwo::mirror {

class Mirror;

class Span final : public host::IntervalNotifier {
 public:
  static constexpr u64 kBytes = u64{2} << 20;
  static constexpr u64 number_of(Hva at) { return at.raw() / kBytes; }
  // Pages from `at` to the end of its span.
  static constexpr u64 pages_from(Hva at) { return (kBytes - at.raw() % kBytes) / kPageSize; }

  Span(Mirror* mirror, u64 number) : mirror_(mirror), number_(number) {}
  // Context: as IntervalNotifier::remove().
  ~Span() { remove(); }
  Result<void> subscribe() { return insert(Hva(number_ * kBytes), kBytes); }

  bool invalidate(const host::InvalidateEvent& event, u64 sequence) override;
  // Under the device's lock: is a change under way that may take what is behind the addresses?
  [[nodiscard]] bool loses() const { return is_under_way(lost_by_); }

 private:
  [[nodiscard]] HvaRange part_of(HvaRange range) const;
  void forget(const host::InvalidateEvent& event, u64 sequence);

  Mirror* mirror_;
  u64 number_;
  u64 lost_by_ = 0;  // number of the last change that may take what is there
};

}  // namespace stagetwo::mirror

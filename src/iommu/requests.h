// SPDX-License-Identifier: Apache-2.0
#pragma once

// What the operations of locked.h are asked, and what they answer.

#include "addr/addr.h"
#include "iommu/vtd_layout.h"

namespace stagetwo::iommu {

struct PageSet;

struct MapRequest {
  bool fixed;
  u64 iova;  // in if fixed; out
  u64 length;
  u32 rights;
};

struct Ioas;
struct Area;

// An area whose pages are being pinned without the lock (map.cc).
struct Filling {
  Ioas* ioas = nullptr;
  Area* area = nullptr;  // null: there is nothing to pin
  PageSet* set = nullptr;
  u64 count = 0;
  u32 process = 0;
  bool shared = false;  // some of them are of shared memory
};

// Both without the lock (pages.cc). Failure, nothing is pinned: EFAULT, ENOMEM.
Result<void> pin_filling(Filling* filling);
void drop_filling(const Filling& filling);

// What a fresh page set says, and a fresh area.
struct PageSetHow {
  u32 process;
  bool writable, no_charge;
  u64 start, pages;
};
struct AreaHow {
  u64 iova, start_byte, length;
  u32 rights;
};

// A part of a page set.
struct Piece {
  PageSet* set;
  u64 start_byte;
  u64 length;
};

// Not done: pins of accesses are in the way of [notify_start, notify_last].
struct UnmapStep {
  bool done = false;
  u64 notify_start = 0, notify_last = 0;
};

struct HwptHow {
  bool nest_parent = false;
  bool dirty = false;
  bool immediate = false;    // attach the device before it is filled
  bool pasid = false;        // a PASID may mean it
  bool first_level = false;  // a processor's tables instead of the IOMMU's own
};

// Tables of a guest's own, for a nested page table of VT-d: where in the parent, how many levels;
// 0: something that no unit walks, as is found out when a device is attached.
struct GuestTables {
  u64 table = 0;
  u32 levels = 0;
  bool pasid = false;
};

// A device in VT-d's tables.
struct VtdHow {
  SourceId source{};
  u8 max_pasid_lg2 = 0;
  u8 levels = 4;
  bool no_dirty = false;
  bool ends_with_process = false;  // with this one
};

// An access of a device: how far it came, and why no further.
struct DmaAnswer {
  u64 done = 0;
  FaultReason reason = FaultReason::kNone;
  u64 iova = 0;  // of the fault
};
inline constexpr s64 kNoPasid = -1;

// A page request.
struct PageAsked {
  u32 pasid = 0;
  u32 group = 0;
  u32 rights = 0;
  u64 address = 0;
  bool last = true;  // of its group
};

// Could the page still come?
constexpr bool can_be_asked_for(FaultReason reason) {
  return reason == FaultReason::kFirstNotPresent || reason == FaultReason::kSecondDenied ||
         reason == FaultReason::kNoWrite;
}

}  // namespace stagetwo::iommu

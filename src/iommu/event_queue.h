// SPDX-License-Identifier: Apache-2.0
#pragma once

// Event queues of a virtual IOMMU: what it tells its guest, in the order in which it happened, with
// a number that rises by one with each. A queue has room for so many; of what comes while it is
// full only a mark stands at its end, with the number of the last one.
//
// Analogue: struct iommufd_veventq (kernel files: drivers/iommu/iommufd/eventq.c, driver.c).
// I1  The mark, if there is one, is behind all events.
// Locking: the arena's.

#include "iommu/viommu.h"

namespace stagetwo::iommu {

inline constexpr u32 kMostEventBytes = 64;

struct Event {
  RelPtr<Event> next;
  Kept<u32> sequence;
  Kept<u32> bytes;
  u8 data[kMostEventBytes] = {};  // written before anybody finds it
};

struct EventQueue {
  Object object;
  RelPtr<Viommu> viommu;
  RelPtr<EventQueue> next;
  Kept<u32> type;
  Kept<u32> room;
  Kept<u32> events;
  Kept<u32> sequence;  // of the next
  RelPtr<Event> first, last;
  QueueFile file;
  Kept<bool> lost;  // the mark
  Kept<u32> lost_sequence;
};

template <>
struct TypeOf<EventQueue> {
  static bool is(ObjectType t) { return t == ObjectType::kEventQueue; }
};

// Failure: EEXIST (it has one of this type), ENOMEM.
Result<EventQueue*> make_event_queue(Locked& locked, Viommu& viommu, u32 type, u32 room);
void destroy_event_queue(Locked& locked, EventQueue* queue);  // pre: no users
// Failure: EOPNOTSUPP (no such queue), ENOMEM (the mark is set). Pre: bytes <= kMostEventBytes.
Result<void> report_event(Locked& locked, Viommu& viommu, u32 type, const void* data, u32 bytes);

// What a reader finds first; bytes 0: the mark.
struct FirstEvent {
  bool any = false, lost = false;
  u32 sequence = 0;
  u32 bytes = 0;
  const u8* data = nullptr;
};
[[nodiscard]] FirstEvent first_event(const EventQueue& queue);
// The reader has it. Pre: there is one.
void drop_first(Locked& locked, EventQueue& queue);

}  // namespace stagetwo::iommu

// SPDX-License-Identifier: Apache-2.0
#include "iommu/event_queue.h"

#include <climits>
#include <cstring>

#include "base/check.h"

namespace stagetwo::iommu {
namespace {

EventQueue* find_queue(Viommu& viommu, u32 type) {
  EventQueue* one = viommu.queues;
  while (one != nullptr && one->type != type) one = one->next;
  return one;
}

// The next number. What is entered with it goes to the end, so that a mark there is replaced.
u32 next_sequence(EventQueue& queue) {
  const u32 sequence = queue.sequence;
  queue.sequence = (queue.sequence + 1) & INT_MAX;
  queue.lost = false;
  return sequence;
}

void mark_lost(Locked& locked, EventQueue& queue) {
  const bool waited = first_event(queue).any;
  queue.lost_sequence = next_sequence(queue);
  queue.lost = true;
  locked.queue_files().rise(queue.file, waited);
}

}  // namespace

Result<EventQueue*> make_event_queue(Locked& locked, Viommu& viommu, u32 type, u32 room) {
  if (find_queue(viommu, type) != nullptr) return refuse(EEXIST);
  auto* const queue = ST_TRY(locked.add<EventQueue>(ObjectType::kEventQueue, "iommu.event_queue"));
  queue->type = type;
  queue->room = room;
  queue->viommu = &viommu;
  queue->next = viommu.queues.get();
  viommu.queues = queue;
  ++viommu.object.users;
  return queue;
}

void destroy_event_queue(Locked& locked, EventQueue* queue) {
  while (queue->first.get() != nullptr) drop_first(locked, *queue);
  Viommu& viommu = *queue->viommu;
  RelPtr<EventQueue>* at = &viommu.queues;
  while (at->get() != queue) at = &at->get()->next;
  *at = queue->next.get();
  --viommu.object.users;
  locked.remove(queue);
}

Result<void> report_event(Locked& locked, Viommu& viommu, u32 type, const void* data, u32 bytes) {
  ST_CHECK(bytes != 0 && bytes <= kMostEventBytes);
  EventQueue* const queue = find_queue(viommu, type);
  if (queue == nullptr) return refuse(EOPNOTSUPP);
  if (queue->events == queue->room) {
    mark_lost(locked, *queue);
    return {};
  }
  const auto made = locked.arena().make<Event>("iommu.event");
  if (!made) {
    mark_lost(locked, *queue);
    return refuse(made.error());
  }
  Event* const event = *made;
  const bool waited = first_event(*queue).any;
  event->sequence = next_sequence(*queue);
  event->bytes = bytes;
  std::memcpy(event->data, data, bytes);
  if (queue->first.get() == nullptr) {
    queue->first = event;
  } else {
    queue->last->next = event;
  }
  queue->last = event;
  ++queue->events;
  locked.queue_files().rise(queue->file, waited);
  return {};
}

FirstEvent first_event(const EventQueue& queue) {
  if (const Event* const event = queue.first) {
    return {true, false, event->sequence, event->bytes, event->data};
  }
  return {queue.lost, queue.lost, queue.lost_sequence, 0, nullptr};
}

void drop_first(Locked& locked, EventQueue& queue) {
  if (Event* const event = queue.first) {
    queue.first = event->next.get();
    if (queue.first.get() == nullptr) queue.last = nullptr;
    --queue.events;
    locked.arena().destroy(event);
  } else {
    queue.lost = false;
  }
  if (!first_event(queue).any) locked.queue_files().fall(queue.file);
}

}  // namespace stagetwo::iommu

// SPDX-License-Identifier: Apache-2.0
#include "iommu/hardware_queue.h"

#include <climits>

#include "base/bits.h"
#include "base/vec.h"
#include "iommu/domain.h"

namespace stagetwo::iommu {
namespace {

// Locks or unlocks what is mapped there. Pre: all of it is pinned, and has nodes (page_rows.cc).
void lock_areas(Ioas& ioas, u64 iova, u64 length, u32 by) {
  const u64 last = iova + (length - 1);
  for (Area* area = ioas.nodes.first(iova, last); area != nullptr; area = ioas.nodes.next(area)) {
    if (area->iova() > last) return;
    area->locks += by;
  }
}

bool follow_each_other(const Vec<u64>& frames) {
  for (size_t i = 1; i < frames.size(); ++i) {
    if (frames[i] != frames[i - 1] + 1) return false;
  }
  return true;
}

Result<void> take_place(Locked& locked, HardwareQueue& queue, u64 address, u64 iova) {
  Viommu& viommu = *queue.viommu;
  if (queue.place >= kHardwareQueues) return refuse(EINVAL);
  if (viommu.hardware[queue.place].get() != nullptr) return refuse(EEXIST);
  HardwareQueue* const before = queue.place == 0 ? nullptr : viommu.hardware[queue.place - 1].get();
  if (queue.place != 0 && before == nullptr) return refuse(EIO);
  const auto found = translate(locked.arena(), viommu.parent->domain, iova);
  if (!found || found->address != address) return refuse(EFAULT);
  if (before != nullptr) ++before->object.users;
  queue.before = before;
  viommu.hardware[queue.place] = &queue;
  return {};
}

// Pins the pages; their frames.
Result<void> pin_queue(Locked& locked, HardwareQueue& queue, Vec<u64>* frames) {
  const u64 pages = queue.length / kPageSize;
  if (pages > INT_MAX / sizeof(u64)) return refuse(ENOMEM);
  ST_TRY(frames->resize(pages));
  Ioas& ioas = *queue.viommu->parent->ioas;
  queue.access = ST_TRY(locked.make_access(&ioas, true, nullptr));
  ST_TRY(locked.pin(*queue.access, queue.iova, queue.length, false, frames->data()));
  lock_areas(ioas, queue.iova, queue.length, 1);
  return {};
}

void unpin_queue(Locked& locked, HardwareQueue& queue) {
  lock_areas(*queue.access->ioas, queue.iova, queue.length, ~u32{0});
  locked.unpin(*queue.access, queue.iova, queue.length);
}

}  // namespace

Result<HardwareQueue*> make_hardware_queue(Locked& locked, Viommu& viommu, u32 place, u64 iova,
                                           u64 length) {
  const u64 offset = iova & ~kPageMask;
  const auto end = checked_add(offset, length);
  if (!end || !checked_add(*end, kPageSize - 1)) return refuse(ERANGE);
  auto* const queue =
      ST_TRY(locked.add<HardwareQueue>(ObjectType::kHardwareQueue, "iommu.hardware_queue"));
  queue->viommu = &viommu;
  queue->place = place;
  queue->iova = iova - offset;
  queue->length = (*end + kPageSize - 1) & kPageMask;
  Vec<u64> frames("iommu.hardware_queue_frames");
  auto done = pin_queue(locked, *queue, &frames);
  if (done) {
    if (!follow_each_other(frames)) done = refuse(EFAULT);
    if (done) done = take_place(locked, *queue, frames[0] * kPageSize + offset, iova);
    if (!done) unpin_queue(locked, *queue);
  }
  if (done) {
    ++viommu.object.users;
    return queue;
  }
  if (Access* const access = queue->access) locked.destroy_access(access);
  locked.remove(queue);
  return refuse(done.error());
}

void destroy_hardware_queue(Locked& locked, HardwareQueue* queue) {
  Viommu& viommu = *queue->viommu;
  viommu.hardware[queue->place] = nullptr;
  if (HardwareQueue* const before = queue->before) --before->object.users;
  unpin_queue(locked, *queue);
  locked.destroy_access(queue->access);
  --viommu.object.users;
  locked.remove(queue);
}

}  // namespace stagetwo::iommu

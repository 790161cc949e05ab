// SPDX-License-Identifier: Apache-2.0
// Page requests of devices, and who answers them. kernel files: drivers/iommu/iommufd/fault.c,
// drivers/iommu/io-pgfault.c.
#include "iommu/locked.h"

namespace stagetwo::iommu {
namespace {

constexpr u32 kPasidValid = 1, kLastPage = 2;  // IOMMU_PGFAULT_FLAGS_*

void append(RelPtr<PageRequest>& list, PageRequest* request) {
  request->next = nullptr;
  RelPtr<PageRequest>* link = &list;
  while (link->get() != nullptr) link = &link->get()->next;
  *link = request;
}

void drop(Arena& arena, RelPtr<PageRequest>& list, u64 attachment) {
  for (RelPtr<PageRequest>* link = &list; link->get() != nullptr;) {
    PageRequest* const request = *link;
    if (attachment != 0 && request->attachment != attachment) {
      link = &request->next;
      continue;
    }
    *link = request->next.get();
    arena.destroy(request);
  }
}

}  // namespace

Result<FaultQueue*> Locked::make_fault_queue() {
  return add<FaultQueue>(ObjectType::kFault, "iommu.fault_queue");
}

void Locked::destroy_fault_queue(FaultQueue* queue) {
  answer_all(*queue, 0);
  remove(queue);
}

// A request with a PASID that nothing is attached to is the guest's own affair: its tables are
// those of the nested page table of the device.
void Locked::report(Device& device, u32 pasid, u32 group, u32 rights, u64 address) {
  const Attachment* attachment = find_attachment(device, pasid);
  if (attachment == nullptr && pasid != 0) {
    attachment = find_attachment(device, 0);
    if (attachment == nullptr || attachment->hwpt->object.type != ObjectType::kHwptNested) return;
  }
  if (attachment == nullptr || attachment->hwpt->fault.get() == nullptr) return;
  const auto request = arena().make<PageRequest>("iommu.page_request");
  if (!request) return;
  (*request)->device_id = device.object.id;
  (*request)->pasid = pasid;
  (*request)->group = group;
  (*request)->rights = rights;
  (*request)->flags = kLastPage | (pasid != 0 ? kPasidValid : 0);
  (*request)->address = address;
  (*request)->attachment = attachment->number;
  append(attachment->hwpt->fault->delivered, *request);
}

void Locked::mark_read(FaultQueue& queue) {
  PageRequest* const request = queue.delivered;
  queue.delivered = request->next.get();
  // The lowest number nobody has.
  u32 cookie = 1;
  for (bool taken = true; taken;) {
    taken = false;
    for (PageRequest* one = queue.read; one != nullptr && !taken; one = one->next) {
      taken = one->cookie == cookie;
    }
    if (taken) ++cookie;
  }
  request->cookie = cookie;
  append(queue.read, request);
}

void Locked::mark_unread(FaultQueue& queue, PageRequest* request) {
  RelPtr<PageRequest>* link = &queue.read;
  while (link->get() != request) link = &link->get()->next;
  *link = request->next.get();
  request->cookie = 0;
  request->next = queue.delivered.get();
  queue.delivered = request;
}

Result<void> Locked::answer(FaultQueue& queue, u32 cookie) {
  for (RelPtr<PageRequest>* link = &queue.read; link->get() != nullptr; link = &link->get()->next) {
    PageRequest* const request = *link;
    if (request->cookie != cookie) continue;
    *link = request->next.get();
    arena().destroy(request);
    return {};
  }
  return refuse(EINVAL);
}

void Locked::answer_all(FaultQueue& queue, u64 attachment) {
  drop(arena(), queue.delivered, attachment);
  drop(arena(), queue.read, attachment);
}

}  // namespace stagetwo::iommu

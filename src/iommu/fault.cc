// SPDX-License-Identifier: Apache-2.0
// Page requests of devices, and who answers them. kernel files: drivers/iommu/iommufd/fault.c,
// drivers/iommu/io-pgfault.c.
#include <climits>

#include "iommu/locked.h"
#include "sync/futex.h"

namespace stagetwo::iommu {
namespace {

constexpr u32 kPasidValid = 1, kLastPage = 2;  // IOMMU_PGFAULT_FLAGS_*

void append(RelPtr<PageRequest>& list, PageRequest* request) {
  request->next = nullptr;
  RelPtr<PageRequest>* link = &list;
  while (link->get() != nullptr) link = &link->get()->next;
  *link = request;
}

// A group that is out of every list.
void respond(Locked& locked, PageRequest* group, bool success) {
  if (PageWait* const wait = group->wait) {
    wait->state = success ? PageWait::State::kSuccess : PageWait::State::kInvalid;
    locked.root().responses.fetch_add(1, sync::kRelease);
    sync::futex_wake(locked.root().responses, INT_MAX);
  }
  while (group != nullptr) {
    PageRequest* const rest = group->rest;
    locked.arena().destroy(group);
    group = rest;
  }
}

void respond_all(Locked& locked, RelPtr<PageRequest>& list, u64 attachment) {
  for (RelPtr<PageRequest>* link = &list; link->get() != nullptr;) {
    PageRequest* const request = *link;
    if (attachment != 0 && request->attachment != attachment) {
      link = &request->next;
      continue;
    }
    *link = request->next.get();
    respond(locked, request, false);
  }
}

// The group of which `last` is the last, by its first.
PageRequest* take_group(Device& device, PageRequest* last) {
  PageRequest* first = last;
  PageRequest* end = nullptr;
  u32 count = 1;
  for (RelPtr<PageRequest>* link = &device.partial; link->get() != nullptr;) {
    PageRequest* const one = *link;
    const bool mine = one->group == last->group && one->pasid == last->pasid &&
                      one->attachment == last->attachment;
    if (!mine) {
      link = &one->next;
      continue;
    }
    *link = one->next.get();
    one->next = nullptr;
    if (end == nullptr) first = one;
    if (end != nullptr) end->rest = one;
    end = one;
    ++count;
  }
  if (end != nullptr) end->rest = last;
  first->in_group = count;
  return first;
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
void Locked::report(Device& device, u32 pasid, u32 group, u32 rights, u64 address, bool last) {
  static_cast<void>(request_page(device, {pasid, group, rights, address, last}, nullptr));
}

// What waits for a response waits on the group's first. A group is told when its last is there.
bool Locked::request_page(Device& device, const PageAsked& asked, PageWait* wait) {
  const Attachment* attachment = find_attachment(device, asked.pasid);
  if (attachment == nullptr && asked.pasid != 0) {
    attachment = find_attachment(device, 0);
    if (attachment == nullptr || attachment->hwpt->object.type != ObjectType::kHwptNested) {
      return false;
    }
  }
  if (attachment == nullptr || attachment->hwpt->fault.get() == nullptr) return false;
  const auto request = arena().make<PageRequest>("iommu.page_request");
  if (!request) return false;
  PageRequest* first = *request;
  first->device_id = device.object.id;
  first->pasid = asked.pasid;
  first->group = asked.group;
  first->rights = asked.rights;
  first->flags = (asked.last ? kLastPage : 0) | (asked.pasid != 0 ? kPasidValid : 0);
  first->address = asked.address;
  first->attachment = attachment->number;
  if (!asked.last) {
    append(device.partial, first);
    return true;
  }
  first = take_group(device, first);
  first->wait = wait;
  FaultQueue& queue = *attachment->hwpt->fault;
  const bool waited = queue.delivered.get() != nullptr;
  append(queue.delivered, first);
  queue_files().rise(queue.file, waited);
  return true;
}

void Locked::mark_read(FaultQueue& queue) {
  PageRequest* const request = queue.delivered;
  queue.delivered = request->next.get();
  if (queue.delivered.get() == nullptr) queue_files().fall(queue.file);
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
  if (queue.delivered.get() == nullptr) queue_files().rise(queue.file, false);
  queue.delivered = request;
}

Result<void> Locked::answer(FaultQueue& queue, u32 cookie, bool success) {
  for (RelPtr<PageRequest>* link = &queue.read; link->get() != nullptr; link = &link->get()->next) {
    PageRequest* const request = *link;
    if (request->cookie != cookie) continue;
    *link = request->next.get();
    respond(*this, request, success);
    return {};
  }
  return refuse(EINVAL);
}

void Locked::answer_all(FaultQueue& queue, u64 attachment) {
  const bool waited = queue.delivered.get() != nullptr;
  respond_all(*this, queue.delivered, attachment);
  if (waited && queue.delivered.get() == nullptr) queue_files().fall(queue.file);
  respond_all(*this, queue.read, attachment);
}

void Locked::drop_partial(Device& device, u64 attachment) {
  respond_all(*this, device.partial, attachment);
}

}  // namespace stagetwo::iommu

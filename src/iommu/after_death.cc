// SPDX-License-Identifier: Apache-2.0
// What stands beside an arena whose last section was put back (kept.h): the pipes behind the
// queues say what those hold, and who waits for a response looks again. And what processes leave
// behind that end without closing anything.
#include <climits>

#include "host/descriptor.h"
#include "iommu/event_queue.h"
#include "iommu/hardware_queue.h"
#include "sync/futex.h"

namespace stagetwo::iommu {

void Locked::settle_after_death() {
  const auto tell = [this](const QueueFile& file, bool any) {
    queue_files().fall(file);
    if (any) queue_files().rise(file, false);
  };
  for (u64 id = 1; id < root().table_size; ++id) {
    if (const auto faults = find<FaultQueue>(static_cast<u32>(id))) {
      tell((*faults)->file, (*faults)->delivered.get() != nullptr);
    } else if (const auto events = find<EventQueue>(static_cast<u32>(id))) {
      tell((*events)->file, first_event(**events).any);
    }
  }
  guard_.settled();
  root().responses.fetch_add(1, sync::kRelease);
  sync::futex_wake(root().responses, INT_MAX);
}

namespace {

bool is_nowhere(u64 inode) {
  const auto held = host::is_held_anywhere(inode);
  return held && !*held;
}

}  // namespace

// Of a process that ended without a word: what its descriptor was the user of, unless another one
// has that. True: it was.
bool Locked::drop_if_dead(Object* object) {
  if (object->type == ObjectType::kAccess) {
    auto* const access = reinterpret_cast<Access*>(object);
    if (access->process == kNobody || is_alive(access->process)) return false;
    if (access->inode != 0 && !is_nowhere(access->inode)) return false;
    destroy_access(access);
    return true;
  }
  if (object->type == ObjectType::kDevice) {
    auto* const device = reinterpret_cast<Device*>(object);
    if (device->process == kNobody || is_alive(device->process)) return false;
    detach_all(*device);
    if (Vdevice* const vdevice = device->side.vdevice) bury_vdevice(*this, vdevice);
    device->object.users = 0;
    destroy_device(device);
    return true;
  }
  QueueFile* file = nullptr;
  if (object->type == ObjectType::kFault) file = &reinterpret_cast<FaultQueue*>(object)->file;
  if (object->type == ObjectType::kEventQueue) file = &reinterpret_cast<EventQueue*>(object)->file;
  if (file == nullptr || !file->open || !file->shown || !is_nowhere(file->inode)) return false;
  file->open = false;
  --object->users;
  return true;
}

bool Locked::drop_closed_files() {
  bool any = false;
  for (u64 id = 1; id < root().table_size; ++id) {
    if (const auto object = find(static_cast<u32>(id))) any = drop_if_dead(*object) || any;
  }
  return any;
}

bool Locked::drop_dead_accesses(const Ioas& ioas) {
  for (const AccessSeat* seat = ioas.accesses; seat != nullptr; seat = seat->next) {
    if (drop_if_dead(&seat->access->object)) return true;
  }
  return false;
}

void Uncharged::settle() {
  for (const auto mode :
       {host::PinCharge::kNone, host::PinCharge::kUser, host::PinCharge::kProcess}) {
    if (const u64 some = pages_[static_cast<unsigned>(mode)]) host::uncharge_pins(mode, some);
  }
}

}  // namespace stagetwo::iommu

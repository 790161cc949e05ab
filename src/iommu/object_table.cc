// SPDX-License-Identifier: Apache-2.0
// The objects of an iommufd by number. kernel file: drivers/iommu/iommufd/main.c.
#include <sys/stat.h>

#include "base/check.h"
#include "base/guard.h"
#include "base/sys.h"
#include "iommu/event_queue.h"
#include "iommu/hardware_queue.h"

namespace stagetwo::iommu {
namespace {

constexpr u64 kFirstSize = 64;
constexpr u32 kMostObjects = 1u << 30;
constexpr u64 kKept = 1;  // in the table: a number that nobody gets any more

}  // namespace

Result<Box<Context>> Context::attach(int fd) {
  auto context = ST_TRY(make_box<Context>("iommu.context"));
  ST_TRY(context->arena_.attach(fd));
  struct ::stat behind{};
  ST_TRY(sys::fstat(fd, &behind));
  context->device_ = behind.st_dev;
  context->inode_ = behind.st_ino;
  return context;
}

Object* Locked::object_at(u32 id) const {
  if (id == 0 || id >= root().table_size || root().table[id] <= kKept) return nullptr;
  return static_cast<Object*>(arena().at(root().table[id]));
}

Result<Object*> Locked::find(u32 id) const {
  Object* const object = object_at(id);
  if (object == nullptr || ST_GUARD(iommu_untold, object->untold != 0)) return refuse(ENOENT);
  return object;
}

// The lowest free number, from 1 on.
Result<void> Locked::insert_object(Object* object) {
  Root& r = root();
  u32 id = r.first_free == 0 ? 1 : r.first_free.get();
  while (id < r.table_size && r.table[id] != 0) ++id;
  if (id >= r.table_size) {
    const u64 size = r.table_size == 0 ? kFirstSize : r.table_size * 2;
    if (size > kMostObjects) return refuse(ENOMEM);
    auto* const larger =
        static_cast<Kept<u64>*>(arena().alloc(size * sizeof(u64), "iommu.object_table"));
    if (larger == nullptr) return refuse(ENOMEM);
    for (u64 i = 0; i < r.table_size; ++i) larger[i] = r.table[i];
    arena().free(r.table.get(), r.table_size * sizeof(u64));
    r.table = larger;
    r.table_size = size;
  }
  r.table[id] = arena().offset_of(object);
  r.first_free = id + 1;
  ++r.objects;
  object->id = id;
  return {};
}

void Locked::erase_object(Object* object) {
  Root& r = root();
  ST_DCHECK(r.table[object->id] == arena().offset_of(object));
  r.table[object->id] = 0;
  if (object->id < r.first_free) r.first_free = object->id;
  --r.objects;
}

// As the kernel's entry that says neither yes nor no, it counts as an object.
void Locked::keep_number(u32 id) {
  ST_DCHECK(root().table[id] == 0);
  root().table[id] = kKept;
  ++root().objects;
}

Result<void> Locked::destroy(u32 id) {
  if (ST_TRY(find(id))->users != 0) {
    if (const auto ioas = find<Ioas>(id)) static_cast<void>(drop_dead_fills(**ioas));
    detach_dead_processes();
    static_cast<void>(drop_closed_files());
  }
  Object* const object = ST_TRY(find(id));
  if (object->users != 0) return refuse(EBUSY);
  destroy_object(object);
  return {};
}

void Locked::told(u32 id) {
  if (Object* const object = object_at(id)) object->untold = 0;
}

void Locked::take_back(u32 id) {
  if (Object* const object = object_at(id)) destroy_object(object);
}

void Locked::destroy_object(Object* object) {
  ST_DCHECK(object->users == 0);
  switch (object->type) {
    case ObjectType::kNone:
      break;
    case ObjectType::kIoas:
      destroy_ioas(reinterpret_cast<Ioas*>(object));
      break;
    case ObjectType::kHwptPaging:
    case ObjectType::kHwptNested:
    case ObjectType::kProcess:
      destroy_hwpt(reinterpret_cast<Hwpt*>(object));
      break;
    case ObjectType::kDevice:
      destroy_device(reinterpret_cast<Device*>(object));
      break;
    case ObjectType::kTestDevice: {
      auto* const test = reinterpret_cast<TestDevice*>(object);
      Device* const device = test->device;
      detach_all(*device);
      if (Vdevice* const vdevice = device->side.vdevice) bury_vdevice(*this, vdevice);
      --device->object.users;
      destroy_device(device);
      remove(test);
      break;
    }
    case ObjectType::kAccess:
      // Its maker counts as a user until it lets go.
      remove(reinterpret_cast<Access*>(object));
      break;
    case ObjectType::kFault:
      destroy_fault_queue(reinterpret_cast<FaultQueue*>(object));
      break;
    case ObjectType::kViommu:
      destroy_viommu(*this, reinterpret_cast<Viommu*>(object));
      break;
    case ObjectType::kVdevice:
      destroy_vdevice(*this, reinterpret_cast<Vdevice*>(object));
      break;
    case ObjectType::kEventQueue:
      destroy_event_queue(*this, reinterpret_cast<EventQueue*>(object));
      break;
    case ObjectType::kHardwareQueue:
      destroy_hardware_queue(*this, reinterpret_cast<HardwareQueue*>(object));
      break;
  }
}

}  // namespace stagetwo::iommu

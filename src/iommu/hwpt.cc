// SPDX-License-Identifier: Apache-2.0
// Page tables and the devices attached to them. kernel files: drivers/iommu/iommufd/
// hw_pagetable.c, device.c. Every device is its own group.
#include "base/check.h"
#include "iommu/locked.h"

namespace stagetwo::iommu {
namespace {

constexpr u64 kMockStart = u64{1} << 24;
constexpr u64 kMockLast = (u64{1} << 31) - 1;
constexpr u64 kMockPage = 2048;
constexpr u64 kMockHugePage = 512 * kMockPage;

DomainShape shape_of(const Device& device) {
  return {FormatKind::kMock, kMockStart, kMockLast,
          device.huge ? kMockPage | kMockHugePage : kMockPage};
}

}  // namespace

Result<Hwpt*> Locked::make_hwpt(Ioas& ioas, Device& device, HwptHow how) {
  Hwpt* const hwpt = ST_TRY(add<Hwpt>(ObjectType::kHwptPaging, "iommu.hwpt"));
  ++ioas.object.users;
  hwpt->ioas = &ioas;
  hwpt->nest_parent = how.nest_parent;
  auto done = make_domain(arena(), shape_of(device), &hwpt->domain);
  hwpt->domain.dirty_ops = how.dirty;
  if (done && how.immediate) done = do_attach(device, *hwpt);
  if (done) {
    done = add_domain(ioas, *hwpt);
    if (!done && how.immediate) {
      set_attached(device, nullptr);
      --hwpt->object.users;
    }
  }
  if (done) return hwpt;
  hwpt->ioas = nullptr;  // not listed there
  --ioas.object.users;
  destroy_hwpt(hwpt);
  return refuse(done.error());
}

Result<Hwpt*> Locked::make_nested(Hwpt& parent) {
  if (parent.automatic || !parent.nest_parent) return refuse(EINVAL);
  Hwpt* const hwpt = ST_TRY(add<Hwpt>(ObjectType::kHwptNested, "iommu.nested"));
  hwpt->parent = &parent;
  ++parent.object.users;
  return hwpt;
}

void Locked::destroy_hwpt(Hwpt* hwpt) {
  if (Ioas* const ioas = hwpt->ioas) {
    remove_domain(*ioas, *hwpt);
    --ioas->object.users;
  }
  destroy_domain(arena(), hwpt->domain);
  if (Hwpt* const parent = hwpt->parent) --parent->object.users;
  if (FaultQueue* const fault = hwpt->fault) --fault->object.users;
  remove(hwpt);
}

Result<Device*> Locked::make_device(bool no_dirty, bool huge, u8 max_pasid_lg2) {
  Device* const device = ST_TRY(add<Device>(ObjectType::kDevice, "iommu.device"));
  device->no_dirty = no_dirty;
  device->huge = huge;
  device->max_pasid_lg2 = max_pasid_lg2;
  return device;
}

bool Locked::accepts(const Device& device, const Hwpt& hwpt) {
  return !(hwpt.domain.dirty_ops && device.no_dirty);
}

void Locked::set_attached(Device& device, Hwpt* hwpt) {
  device.attached = hwpt;
  device.attachment = ++root().last_attachment;
}

Result<void> Locked::do_attach(Device& device, Hwpt& hwpt) {
  Hwpt* const now = device.attached;
  if (now != nullptr && now != &hwpt) return refuse(EINVAL);
  if (!accepts(device, hwpt)) return refuse(EINVAL);
  ++hwpt.object.users;
  set_attached(device, &hwpt);
  return {};
}

// Yields the page table that was replaced, still used by the caller; null: it is the same.
Result<Hwpt*> Locked::do_replace(Device& device, Hwpt& hwpt) {
  Hwpt* const old = device.attached;
  if (old == nullptr) return refuse(EINVAL);
  if (old == &hwpt) return nullptr;
  if (!accepts(device, hwpt)) return refuse(EINVAL);
  if (FaultQueue* const fault = old->fault) answer_all(*fault, device.attachment);
  ++hwpt.object.users;
  set_attached(device, &hwpt);
  return old;
}

// A device no longer leans on it. One that was made for devices goes with the last of them.
void Locked::put_hwpt(Hwpt* hwpt) {
  if (--hwpt->object.users == 0 && hwpt->automatic) destroy_hwpt(hwpt);
}

// Any automatic page table of the IOAS that takes the device, or a new one.
Result<void> Locked::attach_ioas(Device& device, Ioas& ioas, u32* pt_id, bool replacing) {
  for (Hwpt* hwpt = ioas.hwpts; hwpt != nullptr; hwpt = hwpt->next) {
    if (!hwpt->automatic) continue;
    Hwpt* old = nullptr;
    Result<void> done;
    if (replacing) {
      const auto replaced = do_replace(device, *hwpt);
      if (replaced) {
        old = *replaced;
      } else {
        done = refuse(replaced.error());
      }
    } else {
      done = do_attach(device, *hwpt);
    }
    if (!done && to_int(done.error()) == EINVAL) continue;  // incompatible: the next one
    if (!done) return done;
    *pt_id = hwpt->object.id;
    if (old != nullptr) put_hwpt(old);
    return {};
  }
  Hwpt* const hwpt = ST_TRY(make_hwpt(ioas, device, {.immediate = !replacing}));
  Hwpt* old = nullptr;
  if (replacing) {
    const auto replaced = do_replace(device, *hwpt);
    if (!replaced) {
      destroy_hwpt(hwpt);
      return refuse(replaced.error());
    }
    old = *replaced;
  }
  hwpt->automatic = true;
  *pt_id = hwpt->object.id;
  if (old != nullptr) put_hwpt(old);
  return {};
}

Result<void> Locked::attach(Device& device, u32* pt_id) {
  Object* const object = ST_TRY(find(*pt_id));
  if (TypeOf<Hwpt>::is(object->type)) {
    ST_TRY(do_attach(device, *reinterpret_cast<Hwpt*>(object)));
  } else if (object->type == ObjectType::kIoas) {
    ST_TRY(attach_ioas(device, *reinterpret_cast<Ioas*>(object), pt_id, false));
  } else {
    return refuse(EINVAL);
  }
  ++device.object.users;
  return {};
}

Result<void> Locked::replace(Device& device, u32* pt_id) {
  Object* const object = ST_TRY(find(*pt_id));
  if (object->type == ObjectType::kIoas) {
    return attach_ioas(device, *reinterpret_cast<Ioas*>(object), pt_id, true);
  }
  if (!TypeOf<Hwpt>::is(object->type)) return refuse(EINVAL);
  if (Hwpt* const old = ST_TRY(do_replace(device, *reinterpret_cast<Hwpt*>(object)))) {
    put_hwpt(old);
  }
  return {};
}

void Locked::detach(Device& device) {
  Hwpt* const hwpt = device.attached;
  ST_DCHECK(hwpt != nullptr);
  if (FaultQueue* const fault = hwpt->fault) answer_all(*fault, device.attachment);
  set_attached(device, nullptr);
  put_hwpt(hwpt);
  --device.object.users;
}

}  // namespace stagetwo::iommu

// SPDX-License-Identifier: Apache-2.0
#include "iommu/auxiliary.h"

namespace stagetwo::iommu {
namespace {

// Does any device or page table know this number?
bool is_free(const Locked& locked, u32 pasid) {
  for (u64 id = 1; id < locked.root().table_size; ++id) {
    const u32 number = static_cast<u32>(id);
    if (const auto hwpt = locked.find<Hwpt>(number); hwpt && (*hwpt)->auxiliary_pasid == pasid) {
      return false;
    }
    if (const auto device = locked.find<Device>(number);
        device && Locked::find_attachment(**device, pasid) != nullptr) {
      return false;
    }
  }
  return true;
}

Result<u32> choose_pasid(const Locked& locked, const Device& device) {
  const u32 limit = 1u << device.max_pasid_lg2;
  u32 pasid = 1;
  while (pasid < limit && !is_free(locked, pasid)) ++pasid;
  if (pasid == limit) return refuse(ENOSPC);
  return pasid;
}

// The attachment by which the page table is auxiliary on the device, or null.
Attachment* find_auxiliary(Device& device, const Hwpt& hwpt) {
  if (hwpt.auxiliary_pasid == 0) return nullptr;
  Attachment* const one = Locked::find_attachment(device, hwpt.auxiliary_pasid);
  return one != nullptr && one->auxiliary != 0 && one->hwpt.get() == &hwpt ? one : nullptr;
}

}  // namespace

bool can_be_auxiliary(const Device& device) {
  return device.max_pasid_lg2 != 0;
}

Result<void> enable_auxiliary(Device& device) {
  if (!can_be_auxiliary(device)) return refuse(ENODEV);
  if (device.own.hwpt.get() != nullptr) return refuse(EBUSY);
  device.auxiliary = true;
  return {};
}

Result<void> disable_auxiliary(Device& device) {
  for (const Attachment* one = device.pasids.first(); one != nullptr;
       one = device.pasids.next(one)) {
    if (one->auxiliary != 0) return refuse(EBUSY);
  }
  device.auxiliary = false;
  return {};
}

bool is_auxiliary_enabled(const Device& device) {
  return device.auxiliary;
}

Result<void> attach_auxiliary(Locked& locked, Device& device, Hwpt& hwpt) {
  if (!device.auxiliary) return refuse(EPERM);
  return attach_by_number(locked, device, hwpt);
}

Result<void> attach_by_number(Locked& locked, Device& device, Hwpt& hwpt) {
  if (Attachment* const again = find_auxiliary(device, hwpt)) {
    ++again->auxiliary;
    return {};
  }
  const u32 pasid =
      hwpt.auxiliary_pasid != 0 ? hwpt.auxiliary_pasid : ST_TRY(choose_pasid(locked, device));
  if (pasid >> device.max_pasid_lg2 != 0) {
    return refuse(hwpt.object.type == ObjectType::kProcess ? ENOSPC : EINVAL);
  }
  ST_TRY(locked.attach_table(device, hwpt, pasid));
  Locked::find_attachment(device, pasid)->auxiliary = 1;
  hwpt.auxiliary_pasid = pasid;
  ++hwpt.auxiliary_devices;
  return {};
}

void detach_auxiliary(Locked& locked, Device& device, Hwpt& hwpt) {
  Attachment* const one = find_auxiliary(device, hwpt);
  if (one == nullptr) return;
  if (one->auxiliary > 1) {
    --one->auxiliary;
    return;
  }
  locked.detach(device, one->pasid());
}

Result<u32> auxiliary_pasid(Device& device, const Hwpt& hwpt) {
  if (find_auxiliary(device, hwpt) == nullptr) return refuse(EINVAL);
  return hwpt.auxiliary_pasid;
}

}  // namespace stagetwo::iommu

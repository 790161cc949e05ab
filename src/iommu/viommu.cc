// SPDX-License-Identifier: Apache-2.0
#include "iommu/viommu.h"

namespace stagetwo::iommu {

Result<Viommu*> make_viommu(Locked& locked, const Device& device, Hwpt& parent) {
  if (!device.side.possible) return refuse(EOPNOTSUPP);
  if (!parent.nest_parent) return refuse(EINVAL);
  Viommu* const viommu = ST_TRY(locked.add<Viommu>(ObjectType::kViommu, "iommu.viommu"));
  viommu->parent = &parent;
  ++parent.object.users;
  return viommu;
}

Result<void> add_page(Locked& locked, Viommu& viommu, u32 word) {
  auto* const page = static_cast<u32*>(locked.arena().alloc(kViommuPageBytes, "iommu.viommu_page"));
  if (page == nullptr) return refuse(ENOMEM);
  *page = word;
  viommu.page = locked.arena().offset_of(page);
  return {};
}

Viommu* find_by_page(Locked& locked, u64 offset) {
  for (u64 id = 1; id < locked.root().table_size; ++id) {
    const auto viommu = locked.find<Viommu>(static_cast<u32>(id));
    if (!viommu || (*viommu)->page == 0) continue;
    if (offset >= (*viommu)->page && offset - (*viommu)->page < kViommuPageBytes) return *viommu;
  }
  return nullptr;
}

void destroy_viommu(Locked& locked, Viommu* viommu) {
  --viommu->parent->object.users;
  if (viommu->page != 0 && !viommu->mapped) {
    locked.arena().free(locked.arena().at(viommu->page), kViommuPageBytes);
  }
  locked.remove(viommu);
}

Vdevice* find_vdevice(Viommu& viommu, u64 virtual_id) {
  Vdevice* one = viommu.vdevices;
  while (one != nullptr && one->virtual_id != virtual_id) one = one->next;
  return one;
}

Result<Vdevice*> make_vdevice(Locked& locked, Viommu& viommu, Device& device, u64 virtual_id) {
  if (!device.side.possible) return refuse(EINVAL);
  if (device.side.vdevice.get() != nullptr || find_vdevice(viommu, virtual_id) != nullptr) {
    return refuse(EEXIST);
  }
  Vdevice* const vdevice = ST_TRY(locked.add<Vdevice>(ObjectType::kVdevice, "iommu.vdevice"));
  vdevice->virtual_id = virtual_id;
  vdevice->viommu = &viommu;
  vdevice->device = &device;
  vdevice->next = viommu.vdevices.get();
  viommu.vdevices = vdevice;
  ++viommu.object.users;
  device.side.vdevice = vdevice;
  return vdevice;
}

void destroy_vdevice(Locked& locked, Vdevice* vdevice) {
  Viommu& viommu = *vdevice->viommu;
  RelPtr<Vdevice>* at = &viommu.vdevices;
  while (at->get() != vdevice) at = &at->get()->next;
  *at = vdevice->next.get();
  --viommu.object.users;
  vdevice->device->side.vdevice = nullptr;
  locked.remove(vdevice);
}

void bury_vdevice(Locked& locked, Vdevice* vdevice) {
  const u32 id = vdevice->object.id;
  destroy_vdevice(locked, vdevice);
  locked.keep_number(id);
}

Result<Hwpt*> make_nested_on(Locked& locked, Viommu& viommu, bool pasid) {
  Hwpt& parent = *viommu.parent;
  Hwpt* const hwpt = ST_TRY(locked.make_nested(parent, {.pasid = pasid}));
  --parent.object.users;  // by the virtual IOMMU
  hwpt->viommu = &viommu;
  ++viommu.object.users;
  return hwpt;
}

Result<void> check_has_number(const Device& device, const Hwpt& hwpt) {
  const Viommu* const viommu = hwpt.viommu;
  if (viommu == nullptr) return {};
  const Vdevice* const vdevice = device.side.vdevice;
  if (vdevice == nullptr || vdevice->viommu.get() != viommu) return refuse(ENOENT);
  return {};
}

void note_viommu(Device& device, const Hwpt* hwpt) {
  Viommu* const viommu = hwpt == nullptr ? nullptr : hwpt->viommu.get();
  if (device.side.viommu.get() == viommu) return;
  device.side.viommu = viommu;
  device.side.virtual_id = viommu == nullptr ? 0 : device.side.vdevice->virtual_id.get();
}

Result<void> set_pasid_table(Device& device, u32 pasid) {
  VirtualSide& side = device.side;
  if (pasid == 0 || pasid != side.refusing_pasid) return {};
  side.refuses_next = !side.refuses_next;
  if (!side.refuses_next) return refuse(ENOMEM);
  return {};
}

}  // namespace stagetwo::iommu

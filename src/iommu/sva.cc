// SPDX-License-Identifier: Apache-2.0
#include "iommu/sva.h"

#include "iommu/auxiliary.h"
#include "iommu/locked.h"
#include "iommu/process_space.h"

namespace stagetwo::iommu {

Result<u32> bind_process(Context& context, u32 device_id) {
  ST_TRY(make_process_space());
  Locked locked(context);
  if (!locked.ok()) return refuse(EIO);
  Device& device = *ST_TRY(locked.find<Device>(device_id));
  const bool can = device.vtd && device.levels >= kProcessLevels && device.max_pasid_lg2 != 0;
  if (!can) return refuse(ENODEV);
  locked.detach_dead_processes();
  Hwpt& table = *ST_TRY(locked.process_table());
  const auto bound = attach_by_number(locked, device, table);
  if (bound) return table.auxiliary_pasid;
  if (table.object.users == 0) locked.destroy_hwpt(&table);
  return refuse(bound.error());
}

void unbind_process(Context& context, u32 device_id) {
  Locked locked(context);
  if (!locked.ok()) return;
  const auto device = locked.find<Device>(device_id);
  Hwpt* const table = locked.find_process_table();
  if (device && table != nullptr) detach_auxiliary(locked, **device, *table);
}

}  // namespace stagetwo::iommu

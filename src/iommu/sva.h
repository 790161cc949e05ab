// SPDX-License-Identifier: Apache-2.0
#pragma once

// Shared virtual addressing: a PASID of a device that means the addresses of the process that bound
// it, munmap, mprotect and memory on loan included; nothing is mapped and nothing is pinned.
// Analogue: iommu_sva_bind_device(), iommu_sva_unbind_device(), iommu_sva_get_pasid().
//
// I1  A bound PASID is an attachment like every other (locked.h), to a page table of the kind
//     kProcess; a process has one PASID on all devices of an iommufd.
// I2  It stands beside every other attachment of the device, its own page table among them, in
//     whatever order they come and go.
// I3  After unbind_process() returns no access by that PASID lands.
// Context: no lock of this room.

#include "iommu/context.h"

namespace stagetwo::iommu {

// Answers the PASID. A second time on the same device counts. Failure: ENOENT, ENODEV (no PASIDs,
// or no first level), EBUSY (its number is another page table's here), ENOSPC (no number is left,
// or the process's is beyond this device's), ENOMEM, ESRCH (the process ends), EIO.
Result<u32> bind_process(Context& context, u32 device_id);
// The last one takes the attachment. Not bound: nothing to do.
void unbind_process(Context& context, u32 device_id);

}  // namespace stagetwo::iommu

// SPDX-License-Identifier: Apache-2.0
#pragma once

// Auxiliary domains: a way of being attached, not a kind of page table. A device that was set to it
// takes any number of page tables, each under a PASID the engine chose and the device is to name in
// its requests; a page table has the same number on every device. One may be the primary of one
// device and auxiliary on another. Analogue: IOMMU_DEV_FEAT_AUX, iommu_aux_attach_device,
// iommu_aux_detach_device, iommu_aux_get_pasid of kernels 5.2 to 5.17.
//
// I1  An auxiliary attachment is an attachment of that PASID (locked.h) and nothing else: what
//     attaches, replaces and detaches by PASID sees it, and it sees them.
// Locking: the iommufd's.

#include "iommu/locked.h"

namespace stagetwo::iommu {

// Can the device be set to it: its requests may name a PASID.
[[nodiscard]] bool can_be_auxiliary(const Device& device);
// From now on the device takes auxiliary page tables and no primary one. Failure: ENODEV (it
// cannot), EBUSY (it has a primary one). Again: nothing.
Result<void> enable_auxiliary(Device& device);
// Failure: EBUSY (some are attached).
Result<void> disable_auxiliary(Device& device);
[[nodiscard]] bool is_auxiliary_enabled(const Device& device);

// A second time on the same device counts. Failure: EPERM (not enabled), EINVAL (the page table is
// not for PASIDs, or not for this device, or its number is beyond the device's), EBUSY (its number
// is another's here), ENOSPC (no number is left), ENOMEM.
Result<void> attach_auxiliary(Locked& locked, Device& device, Hwpt& hwpt);
// The same of any device: what binds a process does without being asked (sva.h).
Result<void> attach_by_number(Locked& locked, Device& device, Hwpt& hwpt);
// The last one of a device takes the attachment; the last one of a page table its number.
// None: nothing to do.
void detach_auxiliary(Locked& locked, Device& device, Hwpt& hwpt);
// By which PASID the device names it. Failure: EINVAL (it is not auxiliary there).
[[nodiscard]] Result<u32> auxiliary_pasid(Device& device, const Hwpt& hwpt);

}  // namespace stagetwo::iommu

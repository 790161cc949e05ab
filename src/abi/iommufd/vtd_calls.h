// SPDX-License-Identifier: Apache-2.0
#pragma once

// The part of hwpt_calls.cc for devices in VT-d's tables. Not for other rooms.

#include "abi/iommufd/calls.h"

namespace stagetwo::abi_iommufd {

// What IOMMU_GET_HW_INFO tells: the registers of a unit that has what is here.
[[nodiscard]] iommu_hw_info_vtd vtd_info(const iommu::Device& device);
// IOMMU_HWPT_ALLOC with the payload IOMMU_HWPT_DATA_VTD_S1: where a guest has its first level.
Result<void> alloc_guest_level(Call& call, iommu_hwpt_alloc& cmd);
// Is it such a page table? Failure: EIO.
Result<bool> is_guest_level(Call& call, u32 id);
Result<void> invalidate_guest_level(Call& call, const iommu_hwpt_invalidate& cmd, u32* done);

// Is the device of the unit whose format the parent has? Failure: EINVAL.
[[nodiscard]] Result<void> check_driver(const iommu::Device& device, const iommu::Hwpt& parent);
// The fault queue the request names, if it names one; else the page table is taken back (ENOENT).
Result<void> take_fault_queue(iommu::Locked& locked, iommu::Hwpt& hwpt,
                              const iommu_hwpt_alloc& cmd);

}  // namespace stagetwo::abi_iommufd

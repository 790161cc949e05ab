// SPDX-License-Identifier: Apache-2.0
#pragma once

// IOMMU_TEST_CMD: a driver of devices that do not exist, and questions no client may ask. Answered
// only after set_test_commands(true). Linux analogue: drivers/iommu/iommufd/selftest.c with
// CONFIG_IOMMUFD_TEST.

#include "abi/iommufd/calls.h"
#include "abi/iommufd/test_uapi.h"

namespace stagetwo::abi_iommufd {

Outcome test_command(Call& call, iommu_test_cmd& cmd);
// Of later kernels, with set_newer_requests(true) (test_pasids.cc).
Outcome newer_test_command(Call& call, iommu_test_cmd& cmd);

// The descriptor of an access (test_access.cc), and the operations on one.
Outcome create_access(Call& call, iommu_test_cmd& cmd);
Outcome access_pages(Call& call, iommu_test_cmd& cmd);
Outcome access_rw(Call& call, iommu_test_cmd& cmd);
Outcome destroy_access_pages(iommu_test_cmd& cmd);
Outcome replace_access_ioas(iommu_test_cmd& cmd);

// With MOCK_FLAGS_ACCESS_SYZ the source is an area's number and an offset; the flag goes.
void take_nth_area(Call& call, iommu_ioas_copy& cmd);

}  // namespace stagetwo::abi_iommufd

// SPDX-License-Identifier: Apache-2.0
#pragma once

// The tables of the iommufd test device: AMD's v1 format with pages of 2 KiB and, for a device that
// has them, of 1 MiB, and none between: the kernel's suite counts dirty bits by page.
// Analogue: struct mock_iommu_domain (kernel file: drivers/iommu/iommufd/selftest.c).

#include "pt/fmt/amdv1_like.h"

namespace stagetwo::iommu {

struct MockFormat : pt::AmdV1Half {
  static constexpr unsigned max_contig_lg2(unsigned) { return 0; }
};

static_assert(pt::VariableLeaf<MockFormat>);
static_assert(pt::bytes_lg2<MockFormat>(1) == 11 && pt::bytes_lg2<MockFormat>(2) == 20);

}  // namespace stagetwo::iommu

// SPDX-License-Identifier: Apache-2.0
// The layout and the numbers of uapi.h and test_uapi.h, as Linux on x86-64 has them.
#include <cstddef>

#include "abi/iommufd/test_uapi.h"
#include "abi/iommufd/uapi.h"

namespace stagetwo::abi_iommufd {
#define ST_SIZE(type, bytes) static_assert(sizeof(struct type) == (bytes), #type)
#define ST_AT(type, member, at) \
  static_assert(offsetof(struct type, member) == (at), #type "." #member)

ST_SIZE(iommu_destroy, 8);
ST_SIZE(iommu_ioas_alloc, 12);
ST_SIZE(iommu_iova_range, 16);
ST_SIZE(iommu_ioas_iova_ranges, 32);
ST_SIZE(iommu_ioas_allow_iovas, 24);
ST_SIZE(iommu_ioas_map, 40);
ST_SIZE(iommu_ioas_copy, 40);
ST_SIZE(iommu_ioas_unmap, 24);
ST_SIZE(iommu_option, 24);
ST_SIZE(iommu_vfio_ioas, 12);
ST_SIZE(iommu_hwpt_vtd_s1, 24);
ST_SIZE(iommu_hwpt_alloc, 48);
ST_SIZE(iommu_hw_info_vtd, 24);
ST_SIZE(iommu_hw_info, 40);
ST_SIZE(iommu_hwpt_set_dirty_tracking, 16);
ST_SIZE(iommu_hwpt_get_dirty_bitmap, 48);
ST_SIZE(iommu_hwpt_vtd_s1_invalidate, 24);
ST_SIZE(iommu_hwpt_invalidate, 32);
ST_SIZE(iommu_hwpt_pgfault, 40);
ST_SIZE(iommu_hwpt_page_response, 8);
ST_SIZE(iommu_fault_alloc, 16);
ST_SIZE(iommu_ioas_map_file, 40);
ST_SIZE(iommu_viommu_alloc, 40);
ST_SIZE(iommu_vdevice_alloc, 24);
ST_SIZE(iommu_ioas_change_process, 8);
ST_SIZE(iommu_veventq_alloc, 32);
ST_SIZE(iommu_hw_queue_alloc, 40);
ST_SIZE(iommufd_vevent_header, 8);
ST_SIZE(iommu_viommu_selftest, 24);
ST_SIZE(iommu_viommu_invalidate_selftest, 12);
ST_SIZE(iommu_viommu_event_selftest, 4);
ST_SIZE(iommu_test_cmd, 72);
ST_SIZE(iommu_test_hw_info, 8);
ST_SIZE(iommu_hwpt_selftest, 4);
ST_SIZE(iommu_hwpt_invalidate_selftest, 8);

ST_AT(iommu_ioas_iova_ranges, out_iova_alignment, 24);
ST_AT(iommu_ioas_map, iova, 32);
ST_AT(iommu_ioas_copy, src_iova, 32);
ST_AT(iommu_ioas_map_file, start, 16);
ST_AT(iommu_viommu_alloc, out_viommu_id, 20);
ST_AT(iommu_veventq_alloc, out_veventq_fd, 24);
ST_AT(iommu_hw_queue_alloc, length, 32);
ST_AT(iommu_option, object_id, 12);
ST_AT(iommu_option, val64, 16);
ST_AT(iommu_hwpt_alloc, data_uptr, 32);
ST_AT(iommu_hwpt_alloc, fault_id, 40);
ST_AT(iommu_hw_info, out_data_type, 24);
ST_AT(iommu_hw_info, out_max_pasid_log2, 28);
ST_AT(iommu_hw_info, out_capabilities, 32);
ST_AT(iommu_hwpt_invalidate, entry_num, 24);
ST_AT(iommu_hwpt_pgfault, addr, 24);
ST_AT(iommu_hwpt_pgfault, cookie, 36);
ST_AT(iommu_test_cmd, access_pages.out_access_pages_id, 20);
ST_AT(iommu_test_cmd, dirty.out_nr_dirty, 56);
ST_AT(iommu_test_cmd, last, 64);

static_assert(IOMMU_DESTROY == 0x3b80 && IOMMU_FAULT_QUEUE_ALLOC == 0x3b8e);
static_assert(IOMMU_IOAS_MAP_FILE == 0x3b8f && IOMMU_HW_QUEUE_ALLOC == 0x3b94);
static_assert(IOMMU_TEST_CMD == 0x3ba0);

#undef ST_AT
#undef ST_SIZE
}  // namespace stagetwo::abi_iommufd

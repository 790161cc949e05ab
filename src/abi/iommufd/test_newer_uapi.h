/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the test command of later kernels has beside that of 6.12: PASIDs of a device, virtual
 * IOMMUs. Part of test_uapi.h. Facts from Linux 6.18 (drivers/iommu/iommufd/iommufd_test.h); own
 * words.
 */
#ifndef STAGETWO_IOMMUFD_TEST_NEWER_UAPI_H
#define STAGETWO_IOMMUFD_TEST_NEWER_UAPI_H

#include <linux/types.h>

enum {
  IOMMU_TEST_OP_DEV_CHECK_CACHE = 16,
  IOMMU_TEST_OP_TRIGGER_VEVENT = 17,
  IOMMU_TEST_OP_PASID_ATTACH = 18,
  IOMMU_TEST_OP_PASID_REPLACE = 19,
  IOMMU_TEST_OP_PASID_DETACH = 20,
  IOMMU_TEST_OP_PASID_CHECK_HWPT = 21,
};

/* What replaces a page table of this one fails once: a driver's refusal. */
#define IOMMU_TEST_PASID_RESERVED 1024

enum {
  MOCK_DEV_CACHE_ID_MAX = 3,
  MOCK_DEV_CACHE_NUM = 4,
};
#define IOMMU_TEST_DEV_CACHE_DEFAULT 0xbaddad

/* `id` of the command: the device */
struct iommu_test_check_dev_cache {
  __u32 id;
  __u32 cache;
};

struct iommu_test_trigger_vevent {
  __u32 dev_id;
};

/* attach, replace, detach (no pt_id); `id` of the command: the test device */
struct iommu_test_pasid {
  __u32 pasid;
  __u32 pt_id;
};

struct iommu_test_pasid_check {
  __u32 pasid;
  __u32 hwpt_id; /* 0: is nothing attached? */
};

#define IOMMU_VIOMMU_TYPE_SELFTEST 0xdeadbeef

struct iommu_viommu_selftest {
  __u32 in_data;
  __u32 out_data; /* in_data, also in the first word of what is mapped: */
  __aligned_u64 out_mmap_offset;
  __aligned_u64 out_mmap_length;
};

#define IOMMU_VIOMMU_INVALIDATE_DATA_SELFTEST 0xdeadbeef

struct iommu_viommu_invalidate_selftest {
  __u32 flags; /* IOMMU_TEST_INVALIDATE_FLAG_ALL */
  __u32 vdev_id;
  __u32 cache_id;
};

#define IOMMU_VEVENTQ_TYPE_SELFTEST 0xbeefbeef

struct iommu_viommu_event_selftest {
  __u32 virt_id;
};

#define IOMMU_HW_QUEUE_TYPE_SELFTEST 0xdeadbeef
#define IOMMU_TEST_HW_QUEUE_MAX 2

#endif /* STAGETWO_IOMMUFD_TEST_NEWER_UAPI_H */

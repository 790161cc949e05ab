/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The test command of iommufd, IOMMU_TEST_CMD: a device driver without hardware. Facts from Linux
 * 6.12 (drivers/iommu/iommufd/iommufd_test.h, which the kernel installs nowhere) and, of the flag
 * for PASIDs, from later kernels; own words.
 */
#ifndef STAGETWO_IOMMUFD_TEST_UAPI_H
#define STAGETWO_IOMMUFD_TEST_UAPI_H

#include "abi/iommufd/test_newer_uapi.h"
#include "abi/iommufd/uapi.h"

enum {
  IOMMU_TEST_OP_ADD_RESERVED = 1,
  IOMMU_TEST_OP_MOCK_DOMAIN = 2,
  IOMMU_TEST_OP_MD_CHECK_MAP = 3,
  IOMMU_TEST_OP_MD_CHECK_REFS = 4,
  IOMMU_TEST_OP_CREATE_ACCESS = 5,
  IOMMU_TEST_OP_DESTROY_ACCESS_PAGES = 6,
  IOMMU_TEST_OP_ACCESS_PAGES = 7,
  IOMMU_TEST_OP_ACCESS_RW = 8,
  IOMMU_TEST_OP_SET_TEMP_MEMORY_LIMIT = 9,
  IOMMU_TEST_OP_MOCK_DOMAIN_REPLACE = 10,
  IOMMU_TEST_OP_ACCESS_REPLACE_IOAS = 11,
  IOMMU_TEST_OP_MOCK_DOMAIN_FLAGS = 12,
  IOMMU_TEST_OP_DIRTY = 13,
  IOMMU_TEST_OP_MD_CHECK_IOTLB = 14,
  IOMMU_TEST_OP_TRIGGER_IOPF = 15,
};

enum {
  MOCK_FLAGS_ACCESS_WRITE = 1 << 0,
  MOCK_FLAGS_ACCESS_SYZ = 1 << 16, /* of ACCESS_RW and IOMMU_IOAS_COPY, too: an area's number */
};

enum {
  MOCK_ACCESS_RW_WRITE = 1 << 0,
  MOCK_ACCESS_RW_SLOW_PATH = 1 << 2, /* here there is one path */
};

enum {
  MOCK_FLAGS_ACCESS_CREATE_NEEDS_PIN_PAGES = 1 << 0,
};

enum {
  MOCK_FLAGS_DEVICE_NO_DIRTY = 1 << 0,
  MOCK_FLAGS_DEVICE_HUGE_IOVA = 1 << 1,
  MOCK_FLAGS_DEVICE_PASID = 1 << 2,
};

#define MOCK_PASID_WIDTH 20

enum {
  MOCK_NESTED_DOMAIN_IOTLB_ID_MAX = 3,
  MOCK_NESTED_DOMAIN_IOTLB_NUM = 4,
};

struct iommu_test_add_reserved {
  __aligned_u64 start;
  __aligned_u64 length;
};

/* of MOCK_DOMAIN and MOCK_DOMAIN_FLAGS; dev_flags of the latter only */
struct iommu_test_mock_domain_flags {
  __u32 out_stdev_id;
  __u32 out_hwpt_id;
  __u32 out_idev_id;
  __u32 dev_flags;
};

struct iommu_test_mock_domain_replace {
  __u32 pt_id;
};

struct iommu_test_check_map {
  __aligned_u64 iova;
  __aligned_u64 length;
  __aligned_u64 uptr;
};

struct iommu_test_check_refs {
  __aligned_u64 length;
  __aligned_u64 uptr;
  __u32 refs;
};

struct iommu_test_create_access {
  __u32 out_access_fd;
  __u32 flags;
};

struct iommu_test_destroy_access_pages {
  __u32 access_pages_id;
};

struct iommu_test_access_pages {
  __u32 flags;
  __u32 out_access_pages_id;
  __aligned_u64 iova;
  __aligned_u64 length;
  __aligned_u64 uptr;
};

struct iommu_test_access_rw {
  __aligned_u64 iova;
  __aligned_u64 length;
  __aligned_u64 uptr;
  __u32 flags;
};

struct iommu_test_memory_limit {
  __u32 limit;
};

struct iommu_test_access_replace_ioas {
  __u32 ioas_id;
};

struct iommu_test_dirty {
  __u32 flags;
  __aligned_u64 iova;
  __aligned_u64 length;
  __aligned_u64 page_size;
  __aligned_u64 uptr;
  __aligned_u64 out_nr_dirty;
};

struct iommu_test_check_iotlb {
  __u32 id;
  __u32 iotlb;
};

struct iommu_test_trigger_iopf {
  __u32 dev_id;
  __u32 pasid;
  __u32 grpid;
  __u32 perm;
  __u64 addr;
};

struct iommu_test_cmd {
  __u32 size;
  __u32 op;
  __u32 id;
  __u32 __reserved;
  union {
    struct iommu_test_add_reserved add_reserved;
    struct iommu_test_mock_domain_flags mock_domain_flags;
    struct iommu_test_mock_domain_replace mock_domain_replace;
    struct iommu_test_check_map check_map;
    struct iommu_test_check_refs check_refs;
    struct iommu_test_create_access create_access;
    struct iommu_test_destroy_access_pages destroy_access_pages;
    struct iommu_test_access_pages access_pages;
    struct iommu_test_access_rw access_rw;
    struct iommu_test_memory_limit memory_limit;
    struct iommu_test_access_replace_ioas access_replace_ioas;
    struct iommu_test_dirty dirty;
    struct iommu_test_check_iotlb check_iotlb;
    struct iommu_test_trigger_iopf trigger_iopf;
    struct iommu_test_check_dev_cache check_dev_cache;
    struct iommu_test_trigger_vevent trigger_vevent;
    struct iommu_test_pasid pasid_attach;
    struct iommu_test_pasid pasid_replace;
    struct iommu_test_pasid pasid_detach;
    struct iommu_test_pasid_check pasid_check;
  };
  __u32 last;
};
#define IOMMU_TEST_CMD _IO(IOMMUFD_TYPE, IOMMUFD_CMD_BASE + 32)

#define IOMMU_HW_INFO_TYPE_SELFTEST 0xfeedbeef
#define IOMMU_HW_INFO_SELFTEST_REGVAL 0xdeadbeef

struct iommu_test_hw_info {
  __u32 flags;
  __u32 test_reg;
};

#define IOMMU_HWPT_DATA_SELFTEST 0xdead

struct iommu_hwpt_selftest {
  __u32 iotlb; /* what the words of the nested cache begin with */
};

#define IOMMU_HWPT_INVALIDATE_DATA_SELFTEST 0xdeadbeef
#define IOMMU_TEST_INVALIDATE_FLAG_ALL (1 << 0)

struct iommu_hwpt_invalidate_selftest {
  __u32 flags;
  __u32 iotlb_id;
};

#endif /* STAGETWO_IOMMUFD_TEST_UAPI_H */

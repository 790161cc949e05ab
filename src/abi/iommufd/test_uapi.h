/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The test command of iommufd, IOMMU_TEST_CMD: a device driver without hardware. Facts from Linux
 * 6.12 (drivers/iommu/iommufd/iommufd_test.h, which the kernel installs nowhere) and, of the flag
 * for PASIDs, from later kernels; own words.
 */
#ifndef STAGETWO_IOMMUFD_TEST_UAPI_H
#define STAGETWO_IOMMUFD_TEST_UAPI_H

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

struct iommu_test_cmd {
  __u32 size;
  __u32 op;
  __u32 id;
  __u32 __reserved;
  union {
    struct {
      __aligned_u64 start;
      __aligned_u64 length;
    } add_reserved;
    struct { /* of MOCK_DOMAIN and MOCK_DOMAIN_FLAGS; dev_flags of the latter only */
      __u32 out_stdev_id;
      __u32 out_hwpt_id;
      __u32 out_idev_id;
      __u32 dev_flags;
    } mock_domain_flags;
    struct {
      __u32 pt_id;
    } mock_domain_replace;
    struct {
      __aligned_u64 iova;
      __aligned_u64 length;
      __aligned_u64 uptr;
    } check_map;
    struct {
      __aligned_u64 length;
      __aligned_u64 uptr;
      __u32 refs;
    } check_refs;
    struct {
      __u32 out_access_fd;
      __u32 flags;
    } create_access;
    struct {
      __u32 access_pages_id;
    } destroy_access_pages;
    struct {
      __u32 flags;
      __u32 out_access_pages_id;
      __aligned_u64 iova;
      __aligned_u64 length;
      __aligned_u64 uptr;
    } access_pages;
    struct {
      __aligned_u64 iova;
      __aligned_u64 length;
      __aligned_u64 uptr;
      __u32 flags;
    } access_rw;
    struct {
      __u32 limit;
    } memory_limit;
    struct {
      __u32 ioas_id;
    } access_replace_ioas;
    struct {
      __u32 flags;
      __aligned_u64 iova;
      __aligned_u64 length;
      __aligned_u64 page_size;
      __aligned_u64 uptr;
      __aligned_u64 out_nr_dirty;
    } dirty;
    struct {
      __u32 id;
      __u32 iotlb;
    } check_iotlb;
    struct {
      __u32 dev_id;
      __u32 pasid;
      __u32 grpid;
      __u32 perm;
      __u64 addr;
    } trigger_iopf;
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

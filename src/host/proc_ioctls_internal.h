// SPDX-License-Identifier: Apache-2.0
#pragma once

// The two questions that files of /proc/self answer by ioctl. Own definitions: Debian 12's headers
// are older (Linux's uapi/linux/fs.h is the reference).

#include <sys/ioctl.h>

#include "base/types.h"

namespace stagetwo::host {

// PAGEMAP_SCAN, of /proc/self/pagemap: which pages of a range have all of some properties.
struct PageRegion {
  u64 start;
  u64 end;
  u64 categories;
};
struct PageScan {
  u64 size;
  u64 flags;
  u64 start;
  u64 end;
  u64 walk_end;
  u64 regions;
  u64 region_count;
  u64 max_pages;
  u64 category_inverted;
  u64 category_mask;
  u64 category_any_of;
  u64 return_mask;
};
static_assert(sizeof(PageScan) == 96);
inline constexpr unsigned long kPageScan = _IOWR('f', 16, PageScan);
inline constexpr u64 kScanWritten = 1 << 1;  // no userfaultfd is told of the next store
inline constexpr u64 kScanFile = 1 << 2, kScanPresent = 1 << 3, kScanZero = 1 << 5;
inline constexpr u64 kScanHuge = 1 << 6;

// PROCMAP_QUERY, of /proc/self/maps: the mapping at an address.
struct ProcmapQuery {
  u64 size;
  u64 flags;
  u64 address;
  u64 start;
  u64 end;
  u64 vma_flags;
  u64 page_size;
  u64 offset;
  u64 inode;
  u32 device_major;
  u32 device_minor;
  u32 name_size;
  u32 build_id_size;
  u64 name;
  u64 build_id;
};
static_assert(sizeof(ProcmapQuery) == 104);
inline constexpr unsigned long kProcmapQuery = _IOWR('f', 17, ProcmapQuery);

}  // namespace stagetwo::host

// SPDX-License-Identifier: Apache-2.0
#pragma once

// Questions about processes that share an iommufd: which one is it, is it still there, and which
// file stands behind an address of its. Asked of /proc; nothing is kept.
//
// Context: may sleep. Analogue: the mm_struct an iopt_pages holds (kernel file:
// drivers/iommu/iommufd/pages.c): here the process may end, and its memory with it.

#include <optional>

#include "addr/addr.h"
#include "base/types.h"

namespace stagetwo::iommu {

struct ProcessName {
  u32 pid = 0;
  bool alive = false;  // it has memory: neither gone nor waiting to be reaped
  u64 start_time = 0;  // in the kernel's ticks
};
[[nodiscard]] ProcessName name_of_process(u32 pid);

// A page of shared memory.
struct FilePage {
  u64 device = 0;
  u64 inode = 0;
  u64 page = 0;
};
// What `pid` has at `at`; none: nothing, or memory of its own.
[[nodiscard]] std::optional<FilePage> shared_page_of(u32 pid, Hva at);
// Where this process has that page mapped.
[[nodiscard]] std::optional<Hva> own_address_of(const FilePage& page);

}  // namespace stagetwo::iommu

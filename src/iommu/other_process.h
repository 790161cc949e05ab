// SPDX-License-Identifier: Apache-2.0
#pragma once

// Questions about processes that share an iommufd: which one is it, is it still there
// (host/process_name.h), which program does it run, and which file stands behind an address of its.
// Asked of /proc; nothing is kept.
//
// Context: may sleep. Analogue: the mm_struct an iopt_pages holds (kernel file:
// drivers/iommu/iommufd/pages.c): here the process may end, and its memory with it.

#include <optional>

#include "addr/addr.h"
#include "base/result.h"
#include "base/types.h"
#include "host/process_name.h"

namespace stagetwo::iommu {

using host::name_of_process;
using host::name_of_this_process;
using host::pid_space;
using host::proc_is_ours;
using host::ProcessName;
// A random number of the program this process runs; a child of fork has its parent's, and another
// pid. Only itself knows it.
[[nodiscard]] u64 image_of_this_process();

// A page of shared memory.
struct FilePage {
  u64 device = 0;
  u64 inode = 0;
  u64 page = 0;
};
// What `pid` has at `at`; none: nothing, or memory of its own.
[[nodiscard]] std::optional<FilePage> shared_page_of(u32 pid, Hva at);
// Reads (`to`) or writes (`from`) what `pid` has at `at`, as the kernel lets one process do that to
// another of the same user. False: not all of it is there, or it may not be.
[[nodiscard]] bool copy_of_process(u32 pid, Hva at, size_t size, void* to, const void* from);
// An open file of a process, by what is behind it; its number is a passing one
// (sync/passing_number.h). Failure: ENOENT (no such process, or it has none), the kernel's.
[[nodiscard]] Result<int> open_of_process(u32 pid, u64 device, u64 inode, int flags);
// Where this process has that page mapped.
[[nodiscard]] std::optional<Hva> own_address_of(const FilePage& page);

}  // namespace stagetwo::iommu

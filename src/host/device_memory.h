// SPDX-License-Identifier: Apache-2.0
#pragma once

// The file that stands for devices' own memory, what a client maps of their regions: another
// device may reach it for as long as a container maps it, whatever file system the file is on.
// Analogue: VM_PFNMAP, which vaddr_get_pfns() follows (kernel file: vfio_iommu_type1.c). Differs:
// the pages have frames, and are pinned as any.
// Locking: none. There is one such file in a process, noted before anybody maps it.

#include "addr/addr.h"
#include "base/result.h"

namespace stagetwo::host {

// It is what is mapped at `at`. Failure: as mapping_at() (host/process_map.h).
[[nodiscard]] Result<void> note_device_memory(Hva at);

}  // namespace stagetwo::host

// SPDX-License-Identifier: Apache-2.0
#pragma once

// Memory of a file in an IOAS, by its place there instead of an address. Analogue:
// iopt_map_file_pages() (kernel file: drivers/iommu/iommufd/io_pagetable.c). Differs: the engine
// maps the file, and that mapping is the page set's memory, of the process that asked.

#include "iommu/locked.h"

namespace stagetwo::iommu {

// The bytes of `fd` from `start` on; shared memory only. Failure: EBADF, EINVAL (no shared memory,
// or a device attached and the file shorter), EOVERFLOW, and as map().
Result<void> map_file_range(Locked& locked, Ioas& ioas, int fd, u64 start, MapRequest* request);

// Is all that any IOAS maps of files, and which of it is another process's? Failure: EINVAL (some
// is not).
Result<bool> is_own_files_only(Locked& locked);

}  // namespace stagetwo::iommu

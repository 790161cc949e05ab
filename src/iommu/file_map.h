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

// This process takes over what others have mapped of files (take_over.cc): it pins that and is
// charged for it. Failure: EINVAL (some is not of a file), ENOMEM; EOPNOTSUPP, which is not the
// kernel's: it was not inherited, and neither process has the file open
// (docs/decisions/0049-taking-over-files.md).
Result<void> take_over_files(Locked& locked);

}  // namespace stagetwo::iommu

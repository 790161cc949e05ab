// SPDX-License-Identifier: Apache-2.0
// Requests of kernels after 6.12 on IOASes (6.13). Those on virtual IOMMUs (6.13 to 6.17):
// viommu_calls.cc, event_file.cc. kernel file: drivers/iommu/iommufd/ioas.c.
#include "abi/iommufd/calls.h"
#include "iommu/file_map.h"

namespace stagetwo::abi_iommufd {
namespace {

constexpr u64 kMost = ~u64{0};

}  // namespace

Outcome ioas_map_file(Call& call, iommu_ioas_map_file& cmd) {
  constexpr u32 kKnown =
      IOMMU_IOAS_MAP_FIXED_IOVA | IOMMU_IOAS_MAP_WRITEABLE | IOMMU_IOAS_MAP_READABLE;
  if ((cmd.flags & ~kKnown) != 0) return refuse(EOPNOTSUPP);
  if (cmd.iova == kMost || cmd.length == kMost) return refuse(EOVERFLOW);
  const u32 rights = ((cmd.flags & IOMMU_IOAS_MAP_READABLE) != 0 ? iommu::kMayRead : 0u) |
                     ((cmd.flags & IOMMU_IOAS_MAP_WRITEABLE) != 0 ? iommu::kMayWrite : 0u);
  if (rights == 0) return refuse(EINVAL);
  {
    ST_LOCK_IOMMUFD(locked, call);
    auto* const ioas = ST_TRY(locked.find<iommu::Ioas>(cmd.ioas_id));
    iommu::MapRequest request{(cmd.flags & IOMMU_IOAS_MAP_FIXED_IOVA) != 0, cmd.iova, cmd.length,
                              rights};
    ST_TRY(iommu::map_file_range(locked, *ioas, cmd.fd, cmd.start, &request));
    cmd.iova = request.iova;
  }
  return call.respond(cmd);
}

Outcome change_process(Call& call, iommu_ioas_change_process& cmd) {
  if (cmd.__reserved != 0) return refuse(EOPNOTSUPP);
  ST_LOCK_IOMMUFD(locked, call);
  return iommu::take_over_files(locked);
}

}  // namespace stagetwo::abi_iommufd

// SPDX-License-Identifier: Apache-2.0
// Requests of kernels after 6.12 (6.13: MAP_FILE, VIOMMU, VDEVICE, CHANGE_PROCESS; 6.15: VEVENTQ;
// 6.17: HW_QUEUE). kernel files: drivers/iommu/iommufd/ioas.c, viommu.c, eventq.c.
//
// The devices here have no virtual IOMMU of any type, as those of a VT-d unit of 6.18: what asks
// for one is refused as the kernel refuses it there, and nothing else can name one.
#include "abi/iommufd/calls.h"
#include "base/bits.h"
#include "iommu/file_map.h"

namespace stagetwo::abi_iommufd {
namespace {

constexpr u64 kMost = ~u64{0};
constexpr u32 kDefaultType = 0;  // of virtual IOMMUs, event queues, hardware queues
constexpr u32 kDeepest = 1u << 19;

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

// What another process mapped stays its own: see the README.
Outcome change_process(Call& call, iommu_ioas_change_process& cmd) {
  if (cmd.__reserved != 0) return refuse(EOPNOTSUPP);
  ST_LOCK_IOMMUFD(locked, call);
  return ST_TRY(iommu::is_own_files_only(locked)) ? Outcome{} : refuse(EOPNOTSUPP);
}

Outcome viommu_alloc(Call& call, iommu_viommu_alloc& cmd) {
  if (cmd.flags != 0 || cmd.type == kDefaultType) return refuse(EOPNOTSUPP);
  ST_LOCK_IOMMUFD(locked, call);
  ST_TRY(locked.find<iommu::Device>(cmd.dev_id));
  return refuse(EOPNOTSUPP);
}

Outcome vdevice_alloc(Call&, iommu_vdevice_alloc&) {
  return refuse(ENOENT);
}

Outcome veventq_alloc(Call&, iommu_veventq_alloc& cmd) {
  if (cmd.flags != 0 || cmd.__reserved != 0 || cmd.type == kDefaultType) return refuse(EOPNOTSUPP);
  if (cmd.veventq_depth == 0 || cmd.veventq_depth > kDeepest) return refuse(EINVAL);
  return refuse(ENOENT);
}

Outcome hw_queue_alloc(Call&, iommu_hw_queue_alloc& cmd) {
  if (cmd.flags != 0 || cmd.type == kDefaultType) return refuse(EOPNOTSUPP);
  if (cmd.length == 0) return refuse(EINVAL);
  if (!checked_add(cmd.nesting_parent_iova, cmd.length - 1)) return refuse(EOVERFLOW);
  return refuse(ENOENT);
}

}  // namespace stagetwo::abi_iommufd

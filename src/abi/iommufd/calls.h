// SPDX-License-Identifier: Apache-2.0
#pragma once

// What the files of the room share: an iommufd as descriptors hold it, and a request under way.
// Not for other rooms.

#include <algorithm>

#include "abi/iommufd/uapi.h"
#include "base/failpoint.h"
#include "base/result.h"
#include "base/types.h"
#include "host/access.h"
#include "iommu/iommufd.h"
#include "iommu/locked.h"

namespace stagetwo::abi_iommufd {

// A place where the sweep of error paths may fail (fail_nth.cc); the kernel has its own there.
inline Result<void> may_fail(const char* site, int error) {
  if (failpoint::should_fail(site)) return refuse(error);
  return {};
}

inline Result<void> copy_in_bytes(void* to, u64 from, size_t bytes,
                                  const char* site = "abi_iommufd.copy_in") {
  ST_TRY(may_fail(site, EFAULT));
  if (!host::is_user_range(Hva(from), bytes) || host::copy_from(to, Hva(from), bytes) != bytes) {
    return refuse(EFAULT);
  }
  return {};
}
inline Result<void> copy_out_bytes(u64 to, const void* from, size_t bytes,
                                   const char* site = "abi_iommufd.copy_out") {
  ST_TRY(may_fail(site, EFAULT));
  if (!host::is_user_range(Hva(to), bytes) || host::copy_to(Hva(to), from, bytes) != bytes) {
    return refuse(EFAULT);
  }
  return {};
}
// A struct the caller has `size` bytes of: a shorter one ends in zeros, a longer one must.
// `too_long`: what a longer one with other bytes is. Failure: EFAULT, too_long.
[[nodiscard]] Result<void> copy_in_struct(void* to, size_t known, u64 from, size_t size,
                                          int too_long);

using iommu::Iommufd;

// One request: the struct as the kernel's own size has it.
struct Call {
  Iommufd& iommufd;
  u64 arg;
  u32 user_size;

  [[nodiscard]] iommu::Context& context() const { return iommufd.context(); }
  template <typename T>
  [[nodiscard]] Result<void> respond(const T& answer) const {
    return copy_out_bytes(arg, &answer, std::min<size_t>(user_size, sizeof(T)),
                          "abi_iommufd.answer");
  }
};

using Outcome = Result<void>;

// Takes the lock or answers EIO.
#define ST_LOCK_IOMMUFD(name, call)     \
  iommu::Locked name((call).context()); \
  if (!(name).ok()) return refuse(EIO)

// The end of a request that has made object `id` and held it back (iommu::Locked): with its answer
// given everybody finds it, else it is gone again. Answers `answered`.
Outcome finish(Call& call, u32 id, Result<void> answered);

// ---- the ioctls (ioas_calls.cc, hwpt_calls.cc)
Outcome destroy(Call& call, iommu_destroy& cmd);
Outcome ioas_alloc(Call& call, iommu_ioas_alloc& cmd);
Outcome allow_iovas(Call& call, iommu_ioas_allow_iovas& cmd);
Outcome iova_ranges(Call& call, iommu_ioas_iova_ranges& cmd);
Outcome ioas_map(Call& call, iommu_ioas_map& cmd);
Outcome ioas_copy(Call& call, iommu_ioas_copy& cmd);
Outcome ioas_unmap(Call& call, iommu_ioas_unmap& cmd);
Outcome option(Call& call, iommu_option& cmd);
Outcome vfio_ioas(Call& call, iommu_vfio_ioas& cmd);
Outcome hwpt_alloc(Call& call, iommu_hwpt_alloc& cmd);
Outcome get_hw_info(Call& call, iommu_hw_info& cmd);
Outcome set_dirty_tracking(Call& call, iommu_hwpt_set_dirty_tracking& cmd);
Outcome get_dirty_bitmap(Call& call, iommu_hwpt_get_dirty_bitmap& cmd);
Outcome hwpt_invalidate(Call& call, iommu_hwpt_invalidate& cmd);
Outcome fault_queue_alloc(Call& call, iommu_fault_alloc& cmd);  // fault_file.cc
// ---- of later kernels (newer_calls.cc, viommu_calls.cc, event_file.cc)
Outcome ioas_map_file(Call& call, iommu_ioas_map_file& cmd);
Outcome viommu_alloc(Call& call, iommu_viommu_alloc& cmd);
Outcome vdevice_alloc(Call& call, iommu_vdevice_alloc& cmd);
Outcome change_process(Call& call, iommu_ioas_change_process& cmd);
Outcome veventq_alloc(Call& call, iommu_veventq_alloc& cmd);
Outcome hw_queue_alloc(Call& call, iommu_hw_queue_alloc& cmd);
// An invalidation that names a virtual IOMMU; *done: how many entries were.
Outcome invalidate_by_viommu(Call& call, const iommu_hwpt_invalidate& cmd, u32* done);
// Failure: EBUSY, a client of this process has mapped what it has of a virtual IOMMU.
[[nodiscard]] Result<void> check_not_mapped(iommu::Locked& locked, Iommufd& iommufd, u32 id);
[[nodiscard]] bool has_newer_requests();  // set_newer_requests()
[[nodiscard]] bool has_test_commands();   // set_test_commands()

// VFIO's own requests on an iommufd (vfio_compat.cc). >= 0 or a refusal.
[[nodiscard]] Result<long> vfio_request(Iommufd& iommufd, u32 request, u64 arg);

}  // namespace stagetwo::abi_iommufd

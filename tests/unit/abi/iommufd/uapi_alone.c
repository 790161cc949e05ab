/* SPDX-License-Identifier: Apache-2.0 */
#include "abi/iommufd/uapi.h"

_Static_assert(sizeof(struct iommu_ioas_map) == 40, "what a program passes");
__u32 st_iommufd_uapi_alone(const struct iommu_ioas_map* cmd);
__u32 st_iommufd_uapi_alone(const struct iommu_ioas_map* cmd) {
  return cmd->size;
}

/* SPDX-License-Identifier: Apache-2.0 */
#include "abi/vfio/uapi.h"

/* Later kernels' have a PASID behind. */
_Static_assert(sizeof(struct vfio_device_bind_iommufd) == 16, "what a program passes");
_Static_assert(sizeof(struct vfio_device_attach_iommufd_pt) >= 12, "what a program passes");
_Static_assert(sizeof(struct vfio_device_detach_iommufd_pt) >= 8, "what a program passes");
_Static_assert(sizeof(struct vfio_device_attach_iommufd_pt_pasid) == 16, "what a program passes");
_Static_assert(sizeof(struct vfio_device_detach_iommufd_pt_pasid) == 12, "what a program passes");
__u32 st_vfio_uapi_alone(const struct vfio_device_attach_iommufd_pt* cmd);
__u32 st_vfio_uapi_alone(const struct vfio_device_attach_iommufd_pt* cmd) {
  return cmd->pt_id;
}

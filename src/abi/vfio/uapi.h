/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What <linux/vfio.h> of Debian 12 has not: a device by its own node and an iommufd. Facts from
 * Linux 6.12 (include/uapi/linux/vfio.h); PASIDs from 6.15. Own words. C11; compiles alone.
 */
#ifndef STAGETWO_UAPI_VFIO_H
#define STAGETWO_UAPI_VFIO_H

#include <linux/types.h>
#include <linux/vfio.h>

#ifndef VFIO_DEVICE_BIND_IOMMUFD
/* The node's descriptor becomes one of the device. flags 0; out_devid: the iommufd's name for it.
 */
struct vfio_device_bind_iommufd {
  __u32 argsz;
  __u32 flags;
  __s32 iommufd;
  __u32 out_devid;
};
#define VFIO_DEVICE_BIND_IOMMUFD _IO(VFIO_TYPE, VFIO_BASE + 18)

/* pt_id: an IOAS or a page table; out: the page table. flags 0. */
struct vfio_device_attach_iommufd_pt {
  __u32 argsz;
  __u32 flags;
  __u32 pt_id;
};
#define VFIO_DEVICE_ATTACH_IOMMUFD_PT _IO(VFIO_TYPE, VFIO_BASE + 19)

/* The device's own requests reach nothing any more. flags 0. */
struct vfio_device_detach_iommufd_pt {
  __u32 argsz;
  __u32 flags;
};
#define VFIO_DEVICE_DETACH_IOMMUFD_PT _IO(VFIO_TYPE, VFIO_BASE + 20)
#endif

#ifndef VFIO_DEVICE_ATTACH_PASID
/* The same of one PASID, which is read with the flag alone. */
struct vfio_device_attach_iommufd_pt_pasid {
  __u32 argsz;
  __u32 flags;
  __u32 pt_id;
  __u32 pasid;
};
struct vfio_device_detach_iommufd_pt_pasid {
  __u32 argsz;
  __u32 flags;
  __u32 pasid;
};
#define VFIO_DEVICE_ATTACH_PASID (1 << 0)
#define VFIO_DEVICE_DETACH_PASID (1 << 0)
#endif

#endif

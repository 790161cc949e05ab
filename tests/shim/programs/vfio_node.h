// SPDX-License-Identifier: Apache-2.0
// A client of a device's own node and of an iommufd, in plain C.
#pragma once

#include <dirent.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include "abi/iommufd/uapi.h"
#include "abi/vfio/uapi.h"
#include "vfio_client.h"

// By the device's folder in sysfs: vfio-dev/vfioN, and the numbers in its `dev`. `path`: where it
// is.
static inline int open_node(const char* folder, char path[280]) {
  char text[600];
  snprintf(text, sizeof text, "%s/vfio-dev", folder);
  DIR* const nodes = opendir(text);
  REQUIRE(nodes != NULL);
  path[0] = '\0';
  for (struct dirent* entry; (entry = readdir(nodes)) != NULL;) {
    if (strncmp(entry->d_name, "vfio", 4) == 0) {
      snprintf(path, 280, "/dev/vfio/devices/%s", entry->d_name);
    }
  }
  closedir(nodes);
  REQUIRE(path[0] != '\0');
  snprintf(text, sizeof text, "%s/vfio-dev/%s/dev", folder, strrchr(path, '/') + 1);
  FILE* const dev = fopen(text, "r");
  unsigned major_number = 0, minor_number = 0;
  REQUIRE(dev != NULL && fscanf(dev, "%u:%u", &major_number, &minor_number) == 2);
  fclose(dev);
  struct stat said;
  REQUIRE(stat(path, &said) == 0 && S_ISCHR(said.st_mode));
  REQUIRE(major(said.st_rdev) == major_number && minor(said.st_rdev) == minor_number);
  return open(path, O_RDWR);
}

// A space of addresses that has the memory at `iova`.
static inline uint32_t ioas_of(int iommufd, const void* at, size_t size, uint64_t iova) {
  struct iommu_ioas_alloc alloc = {.size = sizeof alloc};
  REQUIRE(ioctl(iommufd, IOMMU_IOAS_ALLOC, &alloc) == 0);
  struct iommu_ioas_map map = {
      .size = sizeof map,
      .flags = IOMMU_IOAS_MAP_FIXED_IOVA | IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE,
      .ioas_id = alloc.out_ioas_id,
      .user_va = (uintptr_t)at,
      .length = size,
      .iova = iova};
  REQUIRE(ioctl(iommufd, IOMMU_IOAS_MAP, &map) == 0);
  return alloc.out_ioas_id;
}
// A page table that PASIDs may mean.
static inline uint32_t table_of(int iommufd, uint32_t device, uint32_t ioas) {
  struct iommu_hwpt_alloc alloc = {
      .size = sizeof alloc, .flags = IOMMU_HWPT_ALLOC_PASID, .dev_id = device, .pt_id = ioas};
  REQUIRE(ioctl(iommufd, IOMMU_HWPT_ALLOC, &alloc) == 0);
  return alloc.out_hwpt_id;
}
static inline int destroy(int iommufd, uint32_t id) {
  struct iommu_destroy cmd = {.size = sizeof cmd, .id = id};
  return ioctl(iommufd, IOMMU_DESTROY, &cmd);
}

static inline int attach(int device, uint32_t pt) {
  struct vfio_device_attach_iommufd_pt_pasid cmd = {.argsz = 12, .pt_id = pt};
  return ioctl(device, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &cmd);
}
static inline int attach_pasid(int device, uint32_t pt, uint32_t pasid) {
  struct vfio_device_attach_iommufd_pt_pasid cmd = {
      .argsz = sizeof cmd, .flags = VFIO_DEVICE_ATTACH_PASID, .pt_id = pt, .pasid = pasid};
  return ioctl(device, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &cmd);
}
// PASID 0: what the device asks for without one.
static inline int detach(int device, uint32_t pasid) {
  struct vfio_device_detach_iommufd_pt_pasid cmd = {
      .argsz = sizeof cmd, .flags = pasid == 0 ? 0 : VFIO_DEVICE_DETACH_PASID, .pasid = pasid};
  if (pasid == 0) cmd.argsz = 8;
  return ioctl(device, VFIO_DEVICE_DETACH_IOMMUFD_PT, &cmd);
}

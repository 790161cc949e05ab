// SPDX-License-Identifier: Apache-2.0
// What the clients of VFIO here share, in plain C and with nothing but the kernel's headers: how a
// check fails, sysfs, memory that is mapped by type 1, and a dma-engine's ring.
#pragma once

#include <errno.h>
#include <fcntl.h>
#include <linux/idxd.h>
#include <linux/vfio.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define REQUIRE(condition)                                                               \
  do {                                                                                   \
    if (!(condition)) {                                                                  \
      printf("%d: %d: %s (%s)\n", (int)getpid(), __LINE__, #condition, strerror(errno)); \
      exit(1);                                                                           \
    }                                                                                    \
  } while (0)
#define REFUSED(call, error)                                                         \
  do {                                                                               \
    errno = 0;                                                                       \
    const long answer = (long)(call);                                                \
    if (answer != -1 || errno != (error)) {                                          \
      printf("%d: %s: %ld (%s), not %s\n", __LINE__, #call, answer, strerror(errno), \
             strerror(error));                                                       \
      exit(1);                                                                       \
    }                                                                                \
  } while (0)

enum { kPage = 4096 };

// As write(): -1 and its errno, or open()'s.
static inline ssize_t put(const char* name, const char* text) {
  const int fd = open(name, O_WRONLY);
  if (fd < 0) return -1;
  const ssize_t written = write(fd, text, strlen(text));
  const int error = errno;
  close(fd);
  errno = error;
  return written;
}

// Does /proc show this name of it?
static inline int is_shown_as(int fd, const char* name) {
  char link[64], path[256];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  const ssize_t size = readlink(link, path, sizeof path - 1);
  path[size < 0 ? 0 : size] = '\0';
  if (strcmp(path, name) == 0) return 1;
  printf("%s: %s, not %s\n", link, path, name);
  return 0;
}
// What a link in a device's folder leads to, its last part; NULL: it is not there. Until the next.
static inline const char* link_of(const char* folder, const char* name) {
  static char path[512], text[256];
  snprintf(path, sizeof path, "%s/%s", folder, name);
  const ssize_t size = readlink(path, text, sizeof text - 1);
  if (size <= 0) return NULL;
  text[size] = '\0';
  return strrchr(text, '/') + 1;
}
// The node of the group that a device's folder names. Until the next.
static inline const char* group_of(const char* folder) {
  static char path[272];
  const char* const number = link_of(folder, "iommu_group");
  if (number == NULL) return NULL;
  snprintf(path, sizeof path, "/dev/vfio/%s", number);
  return path;
}

static inline void* memory_of(size_t size) {
  void* const at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  REQUIRE(at != MAP_FAILED);
  return at;
}

static inline struct vfio_iommu_type1_dma_map map_of(const void* at, uint64_t iova, uint64_t size) {
  return (struct vfio_iommu_type1_dma_map){
      .argsz = sizeof(struct vfio_iommu_type1_dma_map),
      .flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
      .vaddr = (uintptr_t)at,
      .iova = iova,
      .size = size};
}
static inline int map_dma(int container, const void* at, uint64_t iova, uint64_t size) {
  struct vfio_iommu_type1_dma_map map = map_of(at, iova, size);
  return ioctl(container, VFIO_IOMMU_MAP_DMA, &map);
}
static inline int unmap_dma(int container, uint64_t iova, uint64_t size, uint32_t flags,
                            uint64_t* bytes) {
  struct vfio_iommu_type1_dma_unmap unmap = {
      .argsz = sizeof unmap, .flags = flags, .iova = iova, .size = size};
  const int done = ioctl(container, VFIO_IOMMU_UNMAP_DMA, &unmap);
  *bytes = unmap.size;
  return done;
}

// The group into the container, whose first it is, and the device out of it.
static inline int open_in_container(int container, int group, const char* name) {
  REQUIRE(container >= 0 && group >= 0);
  REQUIRE(ioctl(group, VFIO_GROUP_SET_CONTAINER, &container) == 0);
  REQUIRE(ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU) == 0);
  const int device = ioctl(group, VFIO_GROUP_GET_DEVICE_FD, name);
  REQUIRE(device >= 0);
  return device;
}

// ---- a dma-engine (docs/howto-dma-engine.md)

enum { kRingBytes = 128 << 10, kRingSlots = 1024, kDoorbell = 0x800 };
struct ring {
  uint32_t tail, head, asleep;
};

static inline struct ring* ring_of(int device) {
  struct vfio_region_info region = {.argsz = sizeof region, .index = 4};
  REQUIRE(ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &region) == 0);
  REQUIRE((region.flags & VFIO_REGION_INFO_FLAG_MMAP) != 0 && region.size == kRingBytes);
  void* const at =
      mmap(NULL, kRingBytes, PROT_READ | PROT_WRITE, MAP_SHARED, device, (off_t)region.offset);
  REQUIRE(at != MAP_FAILED);
  return at;
}
static inline struct dsa_hw_desc descriptor_of(int opcode, uint64_t record, uint64_t from,
                                               uint64_t to, size_t size) {
  struct dsa_hw_desc d = {.opcode = (uint8_t)opcode,
                          .flags = IDXD_OP_FLAG_CRAV | IDXD_OP_FLAG_RCR,
                          .completion_addr = record,
                          .xfer_size = (uint32_t)size};
  d.src_addr = from;
  d.dst_addr = to;
  return d;
}
static inline void submit_to(int device, struct ring* ring, const struct dsa_hw_desc* d) {
  struct dsa_hw_desc* const slots = (void*)((char*)ring + kPage);
  while (ring->tail - __atomic_load_n(&ring->head, __ATOMIC_ACQUIRE) >= kRingSlots) usleep(10);
  slots[ring->tail % kRingSlots] = *d;
  __atomic_store_n(&ring->tail, ring->tail + 1, __ATOMIC_SEQ_CST);
  const uint32_t one = 1;
  if (__atomic_load_n(&ring->asleep, __ATOMIC_SEQ_CST) != 0) {
    REQUIRE(pwrite(device, &one, 4, kDoorbell) == 4);
  }
}
static inline int status_of(const struct dsa_completion_record* record) {
  for (unsigned i = 1; __atomic_load_n(&record->status, __ATOMIC_ACQUIRE) == 0; ++i) {
    if (i % 64 == 0) usleep(20);
    REQUIRE(i < 64 * 500000);
  }
  return record->status;
}

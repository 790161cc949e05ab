// SPDX-License-Identifier: Apache-2.0
// An ordinary client of VFIO: makes a mediated device through sysfs, finds its group, drives its
// registers, hears its interrupts, maps memory, and takes it all away again. Nothing here knows of
// stagetwo. With an argument: the errnos of every request instead.
#define _GNU_SOURCE
#include <dirent.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/wait.h>

#include "vfio_client.h"

static const char kUuid[] = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001";
static const char kTypes[] = "/sys/class/mdev_bus/serial/mdev_supported_types";
static const char kDevices[] = "/sys/bus/mdev/devices";
static const uint64_t kIova = 0x100000;

static char* path(const char* folder, const char* name) {
  static char texts[32][256];
  static int next;
  char* const text = texts[next++ % 32];
  snprintf(text, sizeof texts[0], "%s/%s", folder, name);
  return text;
}

static long number(const char* name) {
  char text[32] = "";
  const int fd = open(name, O_RDONLY);
  REQUIRE(fd >= 0 && read(fd, text, sizeof text - 1) > 0);
  close(fd);
  return atol(text);
}

static int entries(const char* name) {
  int count = 0;
  DIR* const folder = opendir(name);
  REQUIRE(folder != NULL);
  for (struct dirent* entry; (entry = readdir(folder)) != NULL;) count += entry->d_name[0] != '.';
  closedir(folder);
  return count;
}

static int make_device(void) {
  REQUIRE(put(path(kTypes, "serial-1/create"), kUuid) == 36);
  return open(group_of(path(kDevices, kUuid)), O_RDWR);
}

static void check_sysfs(void) {
  const char* const left = path(kTypes, "serial-2/available_instances");
  REQUIRE(number(left) == 12);
  REFUSED(put(path(kTypes, "serial-1/create"), "83b8f4f2-509f-382f-3c1e-e6bfe0fa100"), EINVAL);
  REFUSED(put(path(kTypes, "serial-1/create"), "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001xx"), EINVAL);
  REFUSED(put(path(kTypes, "serial-1/create"), "83b8f4f2-509f-382f-3c1e-e6bfe0fa10zz"), EINVAL);
  // One write is one request, whatever lines are in it: refused, it has done nothing.
  REFUSED(put(path(kTypes, "serial-1/create"), "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001\n\n"), EINVAL);
  REFUSED(put(path(kTypes, "serial-1/create"),
              "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001\n83b8f4f2-509f-382f-3c1e-e6bfe0fa1002\n"),
          EINVAL);
  FILE* const stream = fopen(path(kTypes, "serial-1/create"), "w");
  REQUIRE(stream != NULL && fputs("83b8f4f2-509f-382f-3c1e-e6bfe0fa1001\n\n", stream) >= 0);
  REFUSED(fflush(stream), EINVAL);
  fclose(stream);
  REQUIRE(entries(kDevices) == 0);
  const int group = make_device();
  REQUIRE(group >= 0);
  REFUSED(put(path(kTypes, "serial-2/create"), kUuid), EEXIST);
  REQUIRE(number(left) == 11 && entries(kDevices) == 1);
  struct stat info;
  REQUIRE(stat(path(kDevices, kUuid), &info) == 0 && S_ISDIR(info.st_mode));
  REQUIRE(access(path(kTypes, "serial-1/create"), W_OK) == 0);
  REFUSED(open(left, O_WRONLY), EACCES);
  char* const remove = path(path(kDevices, kUuid), "remove");
  REFUSED(put(remove, "x"), EINVAL);
  REFUSED(put(remove, "1\n\n"), EINVAL);
  REFUSED(put(remove, "0\n1\n"), EINVAL);
  REQUIRE(put(remove, "0") == 1 && entries(kDevices) == 1);
  REQUIRE(put(remove, "1\n") == 2 && entries(kDevices) == 0);
  REFUSED(put(remove, "1"), ENOENT);
  struct vfio_group_status status = {.argsz = sizeof status};
  REFUSED(ioctl(group, VFIO_GROUP_GET_STATUS, &status), ENODEV);
  close(group);
  REQUIRE(number(left) == 12);
}

static int device_info(int device) {
  struct vfio_device_info info = {.argsz = sizeof info};
  REQUIRE(ioctl(device, VFIO_DEVICE_GET_INFO, &info) == 0);
  REQUIRE(info.flags == (VFIO_DEVICE_FLAGS_PCI | VFIO_DEVICE_FLAGS_RESET));
  REQUIRE(info.num_regions == VFIO_PCI_NUM_REGIONS && info.num_irqs == VFIO_PCI_NUM_IRQS);
  struct vfio_region_info region = {.argsz = sizeof region, .index = 0};
  REQUIRE(ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &region) == 0 && region.size == 8);
  struct vfio_irq_info irq = {.argsz = sizeof irq, .index = VFIO_PCI_INTX_IRQ_INDEX};
  REQUIRE(ioctl(device, VFIO_DEVICE_GET_IRQ_INFO, &irq) == 0 && irq.count == 1);
  REQUIRE(irq.flags == (VFIO_IRQ_INFO_EVENTFD | VFIO_IRQ_INFO_MASKABLE | VFIO_IRQ_INFO_AUTOMASKED));
  return 0;
}

static uint8_t in(int device, off_t at) {
  uint8_t value = 0;
  REQUIRE(pread(device, &value, 1, at) == 1);
  return value;
}
static void out(int device, off_t at, uint8_t value) {
  REQUIRE(pwrite(device, &value, 1, at) == 1);
}

static void set_bell(int device, int bell) {
  struct {
    struct vfio_irq_set head;
    int32_t fd;
  } set = {{.argsz = sizeof set,
            .flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER,
            .index = VFIO_PCI_MSI_IRQ_INDEX,
            .count = 1},
           bell};
  REQUIRE(ioctl(device, VFIO_DEVICE_SET_IRQS, &set) == 0);
}

static void drive(int device) {
  const int bell = eventfd(0, EFD_NONBLOCK);
  set_bell(device, bell);
  out(device, 2, 1);  // the FIFO
  out(device, 1, 1);  // an interrupt for what is received
  const char text[] = "through the loop";
  for (const char* c = text; *c != '\0'; ++c) out(device, 0, (uint8_t)*c);
  struct pollfd ready = {bell, POLLIN, 0};
  REQUIRE(poll(&ready, 1, 0) == 1);
  for (const char* c = text; *c != '\0'; ++c) REQUIRE(in(device, 0) == (uint8_t)*c);
  REQUIRE(in(device, 5) == 0x60);
  close(bell);
  uint32_t id = 0;
  REQUIRE(pread(device, &id, 4, (off_t)VFIO_PCI_CONFIG_REGION_INDEX << 40) == 4 &&
          id == 0x32534348);
  // A child has the same device.
  out(device, 0, 'c');
  const pid_t child = fork();
  if (child == 0) _exit(in(device, 0) == 'c' ? 0 : 1);
  int status = 1;
  REQUIRE(waitpid(child, &status, 0) == child && status == 0);
  REQUIRE(in(device, 5) == 0x60);
  out(device, 0, 'r');
  REQUIRE(ioctl(device, VFIO_DEVICE_RESET) == 0 && in(device, 5) == 0x60 && in(device, 1) == 0);
}

static void map_memory(int container) {
  char* const memory = memory_of(1 << 20);
  struct vfio_iommu_type1_dma_map map = map_of(memory, kIova, 1 << 20);
  REQUIRE(ioctl(container, VFIO_IOMMU_MAP_DMA, &map) == 0);
  REFUSED(ioctl(container, VFIO_IOMMU_MAP_DMA, &map), EEXIST);
  struct vfio_iommu_type1_dma_unmap unmap = {.argsz = sizeof unmap, .iova = kIova, .size = 4096};
  REFUSED(ioctl(container, VFIO_IOMMU_UNMAP_DMA, &unmap), EINVAL);
  unmap.size = 2 << 20;
  REQUIRE(ioctl(container, VFIO_IOMMU_UNMAP_DMA, &unmap) == 0 && unmap.size == 1 << 20);
  REQUIRE(ioctl(container, VFIO_IOMMU_UNMAP_DMA, &unmap) == 0 && unmap.size == 0);
  munmap(memory, 1 << 20);
}

static void check_info(int container) {
  char room[256] = "";
  struct vfio_iommu_type1_info* const info = (void*)room;
  info->argsz = sizeof *info;
  REQUIRE(ioctl(container, VFIO_IOMMU_GET_INFO, info) == 0);
  REQUIRE(info->cap_offset == 0 && info->argsz > sizeof *info && info->argsz <= sizeof room);
  REQUIRE(ioctl(container, VFIO_IOMMU_GET_INFO, info) == 0);
  REQUIRE((info->iova_pgsizes & 4096) != 0 && info->cap_offset == sizeof *info);
  int seen = 0;
  for (uint32_t at = info->cap_offset; at != 0;) {
    const struct vfio_info_cap_header* const cap = (const void*)(room + at);
    seen |= 1 << cap->id;
    at = cap->next;
  }
  REQUIRE(seen ==
          (1 << VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION | 1 << VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL));
}

static void use(void) {
  check_sysfs();
  const int group = make_device();
  const int container = open("/dev/vfio/vfio", O_RDWR);
  REQUIRE(group >= 0 && container >= 0);
  REQUIRE(ioctl(container, VFIO_GET_API_VERSION) == VFIO_API_VERSION);
  REQUIRE(ioctl(container, VFIO_CHECK_EXTENSION, VFIO_TYPE1v2_IOMMU) == 1);
  struct vfio_group_status status = {.argsz = sizeof status};
  REQUIRE(ioctl(group, VFIO_GROUP_GET_STATUS, &status) == 0);
  REQUIRE(status.flags == VFIO_GROUP_FLAGS_VIABLE);
  REQUIRE(ioctl(group, VFIO_GROUP_SET_CONTAINER, &container) == 0);
  REQUIRE(ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU) == 0);
  REQUIRE(ioctl(group, VFIO_GROUP_GET_STATUS, &status) == 0);
  REQUIRE(status.flags == (VFIO_GROUP_FLAGS_VIABLE | VFIO_GROUP_FLAGS_CONTAINER_SET));
  check_info(container);
  map_memory(container);
  const int device = ioctl(group, VFIO_GROUP_GET_DEVICE_FD, kUuid);
  REQUIRE(device >= 0);
  device_info(device);
  drive(device);
  REFUSED(ioctl(group, VFIO_GROUP_UNSET_CONTAINER), EBUSY);
  // Removing waits until the device is closed, by whomever.
  const pid_t remover = fork();
  if (remover == 0) {
    close(device);
    _exit(put(path(path(kDevices, kUuid), "remove"), "1") == 1 ? 0 : 1);
  }
  int ended = 0;
  usleep(50000);
  REQUIRE(waitpid(remover, &ended, WNOHANG) == 0);
  close(device);
  REQUIRE(waitpid(remover, &ended, 0) == remover && ended == 0);
  REQUIRE(ioctl(group, VFIO_GROUP_UNSET_CONTAINER) == 0);
  close(group);
  close(container);
}

// The last close is whoever's: its parent has closed long ago and asks nothing more; another
// program of the session's, which has nothing of it, waits.
static void closed_by_a_child_last(void) {
  int goes[2], asks[2];
  char byte = '\n';
  int status = -1;
  REQUIRE(pipe(goes) == 0 && pipe(asks) == 0);
  const int group = make_device();
  close(group);
  const pid_t other = fork();
  if (other == 0) {
    dup2(asks[0], STDIN_FILENO);
    for (int fd = 3; fd < 64; ++fd) close(fd);
    execl("/bin/sh", "sh", "-c", "read x; exec 3<>$0", group_of(path(kDevices, kUuid)),
          (char*)NULL);
    _exit(127);
  }
  const int mine = open(group_of(path(kDevices, kUuid)), O_RDWR);
  const int container = open("/dev/vfio/vfio", O_RDWR);
  const int device = open_in_container(container, mine, kUuid);
  REQUIRE(is_shown_as(container, "/dev/vfio/vfio"));
  REQUIRE(is_shown_as(mine, group_of(path(kDevices, kUuid))));
  REQUIRE(is_shown_as(device, "anon_inode:[vfio-device]"));
  const pid_t child = fork();
  if (child == 0) {
    close(goes[1]);
    _exit(read(goes[0], &byte, 1) == 0 ? 0 : 1);
  }
  close(device);
  close(mine);
  close(container);
  REFUSED(open(group_of(path(kDevices, kUuid)), O_RDWR), EBUSY);
  close(goes[1]);
  REQUIRE(waitpid(child, &status, 0) == child && status == 0);
  REQUIRE(write(asks[1], &byte, 1) == 1);
  REQUIRE(waitpid(other, &status, 0) == other && status == 0);
  close(goes[0]);
  close(asks[0]);
  close(asks[1]);
  REQUIRE(put(path(path(kDevices, kUuid), "remove"), "1") == 1);
}

static void check_errnos(void) {
  const int container = open("/dev/vfio/vfio", O_RDWR);
  char far[64] = "no such device";
  REFUSED(ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU), EINVAL);
  REFUSED(ioctl(container, VFIO_IOMMU_GET_INFO, far), EINVAL);
  REFUSED(open("/dev/vfio/0", O_RDWR), ENOENT);
  const int group = make_device();
  REQUIRE(group >= 0);
  REFUSED(open("/dev/vfio/0", O_RDWR), EBUSY);
  REFUSED(ioctl(group, VFIO_GROUP_GET_STATUS, NULL), EFAULT);
  struct vfio_group_status status = {.argsz = 4};
  REFUSED(ioctl(group, VFIO_GROUP_GET_STATUS, &status), EINVAL);
  REFUSED(ioctl(group, VFIO_GROUP_UNSET_CONTAINER), EINVAL);
  REFUSED(ioctl(group, VFIO_GROUP_GET_DEVICE_FD, far), ENODEV);
  REFUSED(ioctl(group, VFIO_GROUP_GET_DEVICE_FD, kUuid), EINVAL);
  REFUSED(ioctl(group, VFIO_DEVICE_RESET), ENOTTY);
  const int none = 1234, other = eventfd(0, 0);
  REFUSED(ioctl(group, VFIO_GROUP_SET_CONTAINER, &none), EBADF);
  REFUSED(ioctl(group, VFIO_GROUP_SET_CONTAINER, &other), EBADFD);
  REQUIRE(ioctl(group, VFIO_GROUP_SET_CONTAINER, &container) == 0);
  REFUSED(ioctl(group, VFIO_GROUP_SET_CONTAINER, &container), EINVAL);
  REFUSED(ioctl(group, VFIO_GROUP_GET_DEVICE_FD, kUuid), EINVAL);  // no type yet
  REFUSED(ioctl(container, VFIO_SET_IOMMU, 2), ENODEV);
  REQUIRE(ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU) == 0);
  REFUSED(ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1_IOMMU), EINVAL);
  REFUSED(ioctl(container, VFIO_DEVICE_RESET), ENOTTY);

  struct vfio_iommu_type1_dma_map map = map_of(far, kIova, 4096);
  REFUSED(ioctl(container, VFIO_IOMMU_MAP_DMA, &map), EINVAL);  // misaligned
  map.flags = 0;
  REFUSED(ioctl(container, VFIO_IOMMU_MAP_DMA, &map), EINVAL);
  map.flags = 1 << 9;
  REFUSED(ioctl(container, VFIO_IOMMU_MAP_DMA, &map), EINVAL);
  map = map_of((void*)0x10000, kIova, 4096);
  map.flags = VFIO_DMA_MAP_FLAG_VADDR;
  REFUSED(ioctl(container, VFIO_IOMMU_MAP_DMA, &map), ENOENT);
  map.argsz = 8;
  REFUSED(ioctl(container, VFIO_IOMMU_MAP_DMA, &map), EINVAL);
  struct vfio_iommu_type1_dma_unmap unmap = {
      .argsz = sizeof unmap, .flags = VFIO_DMA_UNMAP_FLAG_VADDR, .size = 4096};
  REFUSED(ioctl(container, VFIO_IOMMU_UNMAP_DMA, &unmap), EBUSY);
  unmap.flags = VFIO_DMA_UNMAP_FLAG_ALL;
  REFUSED(ioctl(container, VFIO_IOMMU_UNMAP_DMA, &unmap), EINVAL);
  unmap.flags = VFIO_DMA_UNMAP_FLAG_ALL | VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP;
  REFUSED(ioctl(container, VFIO_IOMMU_UNMAP_DMA, &unmap), EINVAL);
  struct vfio_iommu_type1_dirty_bitmap dirty = {.argsz = sizeof dirty, .flags = 3};
  REFUSED(ioctl(container, VFIO_IOMMU_DIRTY_PAGES, &dirty), EINVAL);
  dirty.flags = VFIO_IOMMU_DIRTY_PAGES_FLAG_START;
  REQUIRE(ioctl(container, VFIO_IOMMU_DIRTY_PAGES, &dirty) == 0);

  const int device = ioctl(group, VFIO_GROUP_GET_DEVICE_FD, kUuid);
  REQUIRE(device >= 0);
  struct vfio_region_info region = {.argsz = sizeof region, .index = VFIO_PCI_NUM_REGIONS};
  REFUSED(ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &region), EINVAL);
  region.argsz = 8;
  REFUSED(ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &region), EINVAL);
  struct vfio_irq_info irq = {.argsz = sizeof irq, .index = VFIO_PCI_MSIX_IRQ_INDEX};
  REFUSED(ioctl(device, VFIO_DEVICE_GET_IRQ_INFO, &irq), EINVAL);
  struct vfio_irq_set set = {.argsz = sizeof set,
                             .flags = VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER,
                             .index = VFIO_PCI_MSI_IRQ_INDEX,
                             .count = 2};
  REFUSED(ioctl(device, VFIO_DEVICE_SET_IRQS, &set), EINVAL);
  set.count = 1;
  set.flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER;
  REFUSED(ioctl(device, VFIO_DEVICE_SET_IRQS, &set), EINVAL);  // no room for the eventfd
  set.flags = VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_MASK;
  REFUSED(ioctl(device, VFIO_DEVICE_SET_IRQS, &set), ENOTTY);
  struct vfio_device_feature feature = {
      .argsz = sizeof feature, .flags = VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_MIGRATION};
  REFUSED(ioctl(device, VFIO_DEVICE_FEATURE, &feature), ENOTTY);
  feature.flags |= VFIO_DEVICE_FEATURE_SET;
  REFUSED(ioctl(device, VFIO_DEVICE_FEATURE, &feature), EINVAL);
  REFUSED(ioctl(device, VFIO_DEVICE_GET_PCI_HOT_RESET_INFO, far), ENOTTY);
  REFUSED(pread(device, far, 1, 8), EINVAL);               // behind the registers
  REFUSED(pread(device, far, 1, (off_t)9 << 40), EINVAL);  // no such region
  void* volatile nowhere = (void*)8;
  REFUSED(pread(device, nowhere, 1, 0), EFAULT);
  REQUIRE(pread(device, far, 64, 4) == 4);
  // None of these has a position to be set; what it reads by is its own all the same.
  const int files[] = {container, group, device};
  for (unsigned i = 0; i < 3; ++i) {
    REFUSED(lseek(files[i], 0, SEEK_SET), ESPIPE);
    REFUSED(lseek(files[i], 0, SEEK_CUR), ESPIPE);
    REFUSED(lseek(files[i], 0, 9), EINVAL);
  }
  uint8_t registers[4], again[4];
  struct iovec parts[2] = {{registers, 1}, {registers + 1, 3}};
  REQUIRE(preadv(device, parts, 2, 2) == 4 && pread(device, again, 4, 2) == 4);
  REQUIRE(memcmp(registers, again, 4) == 0);
  REQUIRE(readv(device, parts, 2) == 4 && read(device, again, 4) == 4);
  REQUIRE(read(device, again, 1) == -1 && errno == EINVAL);  // behind the registers
  REFUSED((intptr_t)mmap(NULL, 4096, PROT_READ, MAP_SHARED, device, 0), EINVAL);
  close(device);
}

int main(int argc, char** argv) {
  (void)argv;
  if (argc == 1) {
    use();
    closed_by_a_child_last();
  } else {
    check_errnos();
  }
  puts("done");
  return 0;
}

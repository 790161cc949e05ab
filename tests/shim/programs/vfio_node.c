// SPDX-License-Identifier: Apache-2.0
// A driver in user space that knows no groups: finds Intel I/OAT among the PCI devices, opens its
// own node, binds it to an iommufd, attaches address spaces to it, maps its registers, hears its
// interrupts and has it copy. With an argument: PASIDs, too, which kernels have from 6.15 on.
#define _GNU_SOURCE
#include <poll.h>
#include <stddef.h>
#include <sys/eventfd.h>
#include <sys/wait.h>

#include "vfio_node.h"

static const char kDevice[] = "/sys/bus/pci/devices/fffe:00:04.0";
static const uint64_t kIova = 0x40000000;

struct descriptor {
  uint32_t size, control;
  uint64_t source, destination, next, unused[4];
};
// What the device sees at kIova.
struct memory {
  struct descriptor one;
  uint8_t rest[kPage - sizeof(struct descriptor)];
  char source[kPage], target[kPage];
};

static volatile uint8_t* registers;
#define REG8(at) (*(volatile uint8_t*)(registers + (at)))
#define REG16(at) (*(volatile uint16_t*)(registers + (at)))
#define REG32(at) (*(volatile uint32_t*)(registers + (at)))
#define REG64(at) (*(volatile uint64_t*)(registers + (at)))

static uint32_t make_ioas(int iommufd, struct memory* memory) {
  return ioas_of(iommufd, memory, sizeof *memory, kIova);
}

static struct memory* make_memory(const char* text) {
  struct memory* const made = memory_of(sizeof *made);
  strcpy(made->source, text);
  made->one = (struct descriptor){.size = kPage,
                                  .control = 1,
                                  .source = kIova + offsetof(struct memory, source),
                                  .destination = kIova + offsetof(struct memory, target)};
  return made;
}

// One descriptor. 0, or the channel's error.
static uint32_t copy(void) {
  REG32(0xa8) = REG32(0xa8);
  REG8(0x84) = 0x20;
  REG64(0x90) = kIova;
  REG16(0x80) = 0x0001;  // armed
  REG16(0x86) = 1;
  while ((REG64(0x88) & 7) == 0) usleep(10);  // its thread is at it
  return REG32(0xa8);
}

static int set_irq(int device, uint32_t flags, uint32_t index, int fd) {
  struct {
    struct vfio_irq_set head;
    int32_t fd;
  } set = {{.argsz = sizeof set, .flags = flags, .index = index, .count = 1}, fd};
  return ioctl(device, VFIO_DEVICE_SET_IRQS, &set);
}

static uint64_t rings(int bell, int wait_ms) {
  struct pollfd file = {.fd = bell, .events = POLLIN};
  uint64_t count = 0;
  if (poll(&file, 1, wait_ms) == 1) REQUIRE(read(bell, &count, 8) == 8);
  return count;
}

// The line stays up until the client arms the channel again, and is unmasked by an eventfd.
static void interrupts(int device) {
  const uint32_t kBell = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER;
  const int bell = eventfd(0, EFD_NONBLOCK), again = eventfd(0, EFD_NONBLOCK);
  REQUIRE(set_irq(device, kBell, VFIO_PCI_INTX_IRQ_INDEX, bell) == 0);
  REQUIRE(set_irq(device, VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_UNMASK,
                  VFIO_PCI_INTX_IRQ_INDEX, again) == 0);
  REG8(0x03) = 0x01;
  REQUIRE(copy() == 0 && rings(bell, 10000) == 1);
  const uint64_t one = 1;
  REQUIRE(write(again, &one, 8) == 8 && rings(bell, 10000) == 1);
  REG16(0x80) = 0x0001;
  REQUIRE(write(again, &one, 8) == 8);
  REQUIRE(rings(bell, 20) == 0);
  struct vfio_irq_set off = {.argsz = sizeof off,
                             .flags = VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER,
                             .index = VFIO_PCI_INTX_IRQ_INDEX};
  REQUIRE(ioctl(device, VFIO_DEVICE_SET_IRQS, &off) == 0);
  REQUIRE(set_irq(device, kBell, VFIO_PCI_MSIX_IRQ_INDEX, bell) == 0);
  REG8(0x03) = 0x09;
  REQUIRE(copy() == 0 && rings(bell, 10000) == 1);
  // Loopback: its client rings it.
  off = (struct vfio_irq_set){.argsz = sizeof off,
                              .flags = VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER,
                              .index = VFIO_PCI_MSIX_IRQ_INDEX,
                              .count = 1};
  REQUIRE(ioctl(device, VFIO_DEVICE_SET_IRQS, &off) == 0 && rings(bell, 10000) == 1);
  close(bell);
  close(again);
}

static void map_registers(int device) {
  struct vfio_region_info bar = {.argsz = sizeof bar, .index = VFIO_PCI_BAR0_REGION_INDEX};
  REQUIRE(ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &bar) == 0);
  void* const at =
      mmap(NULL, bar.size, PROT_READ | PROT_WRITE, MAP_SHARED, device, (off_t)bar.offset);
  REQUIRE(at != MAP_FAILED);
  registers = at;
  struct vfio_region_info config = {.argsz = sizeof config, .index = VFIO_PCI_CONFIG_REGION_INDEX};
  REQUIRE(ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &config) == 0);
  const uint16_t command = 0x0006;
  REQUIRE(pwrite(device, &command, 2, (off_t)config.offset + 4) == 2);
}

static void pasids(int iommufd, int device, uint32_t id, uint32_t ioas, struct memory* memory) {
  const uint32_t table = table_of(iommufd, id, ioas);
  REQUIRE(attach(device, table) == 0);
  REFUSED(attach_pasid(device, table, 0), EINVAL);
  REFUSED(attach_pasid(device, table, 1 << 20), EINVAL);
  REFUSED(attach_pasid(device, 9999, 7), ENOENT);
  REQUIRE(attach_pasid(device, table, 7) == 0);
  REQUIRE(attach_pasid(device, table, 7) == 0);  // in its own place
  REFUSED(destroy(iommufd, table), EBUSY);
  // Requests without a PASID have their own attachment.
  memset(memory->target, 0, kPage);
  REQUIRE(detach(device, 7) == 0);
  REQUIRE(copy() == 0 && strcmp(memory->target, memory->source) == 0);
  REQUIRE(attach_pasid(device, table, 7) == 0);
  REQUIRE(detach(device, 0) == 0);
  REQUIRE(copy() != 0);
  REQUIRE(detach(device, 8) == 0);  // unused: no effect
  REFUSED(destroy(iommufd, table), EBUSY);
  REQUIRE(detach(device, 7) == 0);
  REQUIRE(destroy(iommufd, table) == 0);
}

int main(int argc, char** argv) {
  (void)argv;
  char path[280];
  const int device = open_node(kDevice, path), iommufd = open("/dev/iommu", O_RDWR);
  REQUIRE(device >= 0 && iommufd >= 0);
  REQUIRE(is_shown_as(device, path) && is_shown_as(iommufd, "/dev/iommu"));
  struct vfio_device_info info = {.argsz = 16};
  REFUSED(ioctl(device, VFIO_DEVICE_GET_INFO, &info), EINVAL);  // bind it first
  REFUSED(pread(device, path, 4, (off_t)VFIO_PCI_CONFIG_REGION_INDEX << 40), EINVAL);
  struct vfio_device_bind_iommufd bind = {.argsz = sizeof bind, .iommufd = iommufd};
  REQUIRE(ioctl(device, VFIO_DEVICE_BIND_IOMMUFD, &bind) == 0);
  REFUSED(ioctl(device, VFIO_DEVICE_BIND_IOMMUFD, &bind), EINVAL);
  REFUSED(open("/dev/vfio/0", O_RDWR), EBUSY);  // its group's way is closed
  const int second = open(path, O_RDWR);
  REQUIRE(second >= 0);
  REFUSED(ioctl(second, VFIO_DEVICE_BIND_IOMMUFD, &bind), EINVAL);
  close(second);
  REQUIRE(ioctl(device, VFIO_DEVICE_GET_INFO, &info) == 0);
  REQUIRE((info.flags & VFIO_DEVICE_FLAGS_PCI) != 0 && info.num_irqs == 5);
  map_registers(device);
  REQUIRE(REG8(0x08) == 0x33);

  struct memory *const a = make_memory("the first space's"), *const b = make_memory("the second's");
  const uint32_t first = make_ioas(iommufd, a), other = make_ioas(iommufd, b);
  REQUIRE(copy() != 0);  // nothing is attached
  REFUSED(attach(device, 9999), ENOENT);
  REQUIRE(attach(device, first) == 0);
  REQUIRE(copy() == 0 && strcmp(a->target, a->source) == 0 && b->target[0] == '\0');
  REQUIRE(attach(device, other) == 0);  // in the place of the first
  memset(a->target, 0, kPage);
  REQUIRE(copy() == 0 && strcmp(b->target, b->source) == 0 && a->target[0] == '\0');
  interrupts(device);
  REFUSED(destroy(iommufd, other), EBUSY);
  REFUSED(destroy(iommufd, bind.out_devid), EBUSY);
  // What is unmapped is not reached; what is mapped again is.
  struct iommu_ioas_unmap unmap = {
      .size = sizeof unmap, .ioas_id = other, .iova = kIova, .length = sizeof *b};
  REQUIRE(ioctl(iommufd, IOMMU_IOAS_UNMAP, &unmap) == 0);
  REQUIRE(copy() != 0);
  if (argc > 1) {
    pasids(iommufd, device, bind.out_devid, first, a);
  } else {
    REFUSED(attach_pasid(device, first, 7), EINVAL);
  }
  REQUIRE(detach(device, 0) == 0 && detach(device, 0) == 0);
  REQUIRE(copy() != 0);
  // A child has the descriptors and the mapped registers, as they are.
  const pid_t child = fork();
  if (child == 0) {
    struct vfio_region_info bar = {.argsz = sizeof bar};
    _exit(ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &bar) == 0 && REG8(0x08) == 0x33 ? 0 : 1);
  }
  int status = -1;
  REQUIRE(waitpid(child, &status, 0) == child && status == 0);
  munmap((void*)(uintptr_t)registers, 0x4000);
  close(device);
  REQUIRE(destroy(iommufd, bind.out_devid) == -1 && errno == ENOENT);
  const int group = open("/dev/vfio/0", O_RDWR);
  REQUIRE(group >= 0);  // its group's way is open again
  close(group);
  close(iommufd);
  puts("done");
  return 0;
}

// SPDX-License-Identifier: Apache-2.0
// A driver in user space: finds Intel I/OAT among the PCI devices by its numbers, opens it through
// VFIO type 1, maps its registers and has it copy. Nothing here knows of stagetwo.
#define _GNU_SOURCE
#include <dirent.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "vfio_client.h"

enum { kPages = 64 };
static const char kDevices[] = "/sys/bus/pci/devices";
static const uint64_t kIova = 0x40000000;

struct descriptor {
  uint32_t size, control;
  uint64_t source, destination, next, unused[4];
};
struct memory {
  struct descriptor ring[64];
  volatile uint64_t completion;
  uint8_t rest[kPage - 8];
  uint8_t source[16 * kPage], target[16 * kPage];
};

static volatile uint8_t* registers;
static volatile uint8_t* reg8(unsigned at) {
  return registers + at;
}
static volatile uint16_t* reg16(unsigned at) {
  return (volatile uint16_t*)(registers + at);
}
static volatile uint32_t* reg32(unsigned at) {
  return (volatile uint32_t*)(registers + at);
}
static volatile uint64_t* reg64(unsigned at) {
  return (volatile uint64_t*)(registers + at);
}

static long attribute(const char* device, const char* name) {
  char path[256], text[32] = "";
  snprintf(path, sizeof path, "%s/%s/%s", kDevices, device, name);
  FILE* const file = fopen(path, "r");
  REQUIRE(file != NULL && fgets(text, sizeof text, file) != NULL);
  fclose(file);
  return strtol(text, NULL, 0);
}

static void find_device(char* name) {
  DIR* const folder = opendir(kDevices);
  REQUIRE(folder != NULL);
  name[0] = '\0';
  for (struct dirent* entry; (entry = readdir(folder)) != NULL;) {
    if (entry->d_name[0] == '.') continue;
    if (attribute(entry->d_name, "vendor") == 0x8086 &&
        attribute(entry->d_name, "device") == 0x2021) {
      strcpy(name, entry->d_name);
    }
  }
  closedir(folder);
  REQUIRE(name[0] != '\0');
}

static int open_device(const char* name, struct memory* memory, int* container) {
  char folder[280];
  snprintf(folder, sizeof folder, "%s/%s", kDevices, name);
  REQUIRE(strcmp(link_of(folder, "driver"), "vfio-pci") == 0);
  *container = open("/dev/vfio/vfio", O_RDWR);
  const int group = open(group_of(folder), O_RDWR);
  const int device = open_in_container(*container, group, name);
  REQUIRE(map_dma(*container, memory, kIova, kPages * kPage) == 0);
  REFUSED(ioctl(group, VFIO_GROUP_GET_DEVICE_FD, "0000:ff:1f.7"), ENODEV);
  close(group);
  return device;
}

static void map_registers(int device) {
  struct vfio_region_info bar = {.argsz = sizeof bar, .index = VFIO_PCI_BAR0_REGION_INDEX};
  REQUIRE(ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &bar) == 0);
  REQUIRE(bar.size == 0x4000 && (bar.flags & VFIO_REGION_INFO_FLAG_MMAP) != 0);
  void* const at =
      mmap(NULL, bar.size, PROT_READ | PROT_WRITE, MAP_SHARED, device, (off_t)bar.offset);
  REQUIRE(at != MAP_FAILED);
  registers = at;
  struct vfio_region_info config = {.argsz = sizeof config, .index = VFIO_PCI_CONFIG_REGION_INDEX};
  REQUIRE(ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &config) == 0 && config.size == 4096);
  REQUIRE((config.flags & VFIO_REGION_INFO_FLAG_MMAP) == 0);
  uint16_t command = 0;
  const off_t place = (off_t)config.offset + 4;
  REQUIRE(pread(device, &command, 2, place) == 2);
  command |= 4;  // a master of the bus
  REQUIRE(pwrite(device, &command, 2, place) == 2);
  REQUIRE(ioctl(device, VFIO_DEVICE_RESET) == 0);
  REQUIRE(*reg8(0x08) == 0x33 && *reg8(0x00) == 1 && (*reg64(0x88) & 7) == 3);
}

static sigjmp_buf off;
static void on_bus_error(int number) {
  siglongjmp(off, number);
}
// What becomes of a touch: 0, or the signal.
static int touch(volatile uint8_t* at, int stores) {
  const int number = sigsetjmp(off, 1);
  if (number != 0) return number;
  if (stores) {
    *at = *at;
  } else {
    (void)*at;
  }
  return 0;
}

// While the function's memory is off its registers are not there, by whatever way.
static void memory_off(int device) {
  const off_t place = ((off_t)VFIO_PCI_CONFIG_REGION_INDEX << 40) + 4;
  uint16_t command = 0;
  uint8_t value = 0;
  REQUIRE(pread(device, &command, 2, place) == 2);
  const uint16_t none = command & (uint16_t)~2u;
  struct sigaction before, ours = {.sa_handler = on_bus_error};
  REQUIRE(sigaction(SIGBUS, &ours, &before) == 0);
  REQUIRE(touch(reg8(0x08), 0) == 0);
  REQUIRE(pwrite(device, &none, 2, place) == 2);
  REFUSED(pread(device, &value, 1, 8), EIO);
  REQUIRE(touch(reg8(0x08), 0) == SIGBUS && touch(reg8(0x08), 1) == SIGBUS);
  volatile uint8_t* const more = mmap(NULL, 0x4000, PROT_READ | PROT_WRITE, MAP_SHARED, device, 0);
  REQUIRE(more != MAP_FAILED && touch(more + 8, 0) == SIGBUS);
  REQUIRE(munmap((void*)(more + 3 * kPage), kPage) == 0);
  REQUIRE(pwrite(device, &command, 2, place) == 2);
  REQUIRE(*reg8(0x08) == 0x33 && more[8] == 0x33 && touch(reg8(0x08), 1) == 0);
  const int config = open("/sys/bus/pci/devices/fffe:00:04.0/config", O_RDWR);
  REQUIRE(config >= 0 && pwrite(config, &none, 2, 4) == 2 && touch(more + 8, 0) == SIGBUS);
  REQUIRE(pwrite(config, &command, 2, 4) == 2 && more[8] == 0x33 && close(config) == 0);
  // Nor where another process has put it off: at once for a store, soon for a load.
  for (int stores = 0; stores < 2; ++stores) {
    const pid_t child = fork();
    if (child == 0) _exit(pwrite(device, &none, 2, place) == 2 ? 0 : 1);
    int status = -1;
    REQUIRE(waitpid(child, &status, 0) == child && status == 0);
    for (int i = 0; !stores && i < 2000 && touch(more + 8, 0) == 0; ++i) usleep(1000);
    REQUIRE(touch(more + 8, stores) == SIGBUS);
    REQUIRE(pwrite(device, &command, 2, place) == 2 && more[8] == 0x33);
  }
  REQUIRE(munmap((void*)more, 0x4000) == 0);
  REQUIRE(sigaction(SIGBUS, &before, NULL) == 0);
}

// A system call's buffer may be registers, as it may be of the hardware: whole, behind memory that
// is none, and at the end of what is mapped.
static void read_into_registers(int device) {
  const uint32_t low = 0x12345640, all[2] = {0x89abcd80, 0x0000007f};
  uint32_t seen[2] = {0};
  int ends[2];
  REQUIRE(pipe(ends) == 0);
  REQUIRE(write(ends[1], &low, 4) == 4 && read(ends[0], (void*)reg32(0x98), 4) == 4);
  REQUIRE(pread(device, seen, 4, 0x98) == 4 && seen[0] == low && *reg32(0x98) == low);
  FILE* const file = tmpfile();
  REQUIRE(file != NULL && pwrite(fileno(file), all, 8, 3) == 8);
  REQUIRE(pread(fileno(file), (void*)reg64(0x98), 8, 3) == 8);
  REQUIRE(pread(device, seen, 8, 0x98) == 8 && memcmp(seen, all, 8) == 0);
  REQUIRE(lseek(fileno(file), 7, SEEK_SET) == 7);
  REQUIRE(syscall(SYS_read, fileno(file), reg64(0x98), 8) == 4);
  REQUIRE(pread(device, seen, 8, 0x98) == 8 && seen[0] == all[1] && seen[1] == all[1]);
  fclose(file);
  // The device hears of it.
  const uint8_t reset = 0x20;
  REQUIRE(write(ends[1], &reset, 1) == 1 && read(ends[0], (void*)reg8(0x84), 1) == 1);
  REQUIRE(*reg8(0x84) == 0);
  // As far as it is mapped to be written.
  uint8_t* const two = memory_of(2 * kPage);
  REQUIRE(mmap(two + kPage, kPage, PROT_READ, MAP_SHARED | MAP_FIXED, device, 0) == two + kPage);
  REQUIRE(write(ends[1], all, 8) == 8);
  REFUSED(read(ends[0], two + kPage + 0x98, 4), EFAULT);
  REQUIRE(mmap(two + kPage, kPage, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, device, 0) ==
          two + kPage);
  REQUIRE(read(ends[0], two + kPage - 4, 8) == 8 && memcmp(two + kPage - 4, all, 4) == 0);
  REQUIRE(munmap(two, 2 * kPage) == 0 && close(ends[0]) == 0 && close(ends[1]) == 0);
}

static uint64_t iova_of(struct memory* memory, const volatile void* what) {
  return kIova + (uint64_t)((const volatile uint8_t*)what - (const uint8_t*)memory);
}

// As a driver of the hardware starts a channel.
static void begin(struct memory* memory) {
  *reg32(0xa8) = *reg32(0xa8);
  *reg8(0x84) = 0x20;
  REQUIRE(*reg8(0x84) == 0 && (*reg64(0x88) & 7) == 3);
  memory->completion = 0;
  *reg64(0x98) = iova_of(memory, &memory->completion);
  *reg64(0x90) = iova_of(memory, memory->ring);
  *reg16(0x80) = 0x000d;  // errors complete and stop; interrupts are armed
  REQUIRE(*reg64(0x88) == 4);
}

// The channel's status when its thread has done what was asked for.
static uint64_t done(void) {
  for (unsigned i = 0; (*reg64(0x88) & 7) == 0 && i < 1000000; ++i) usleep(10);
  return *reg64(0x88);
}

static void copies(struct memory* memory) {
  for (unsigned i = 0; i < 64; ++i) {
    memory->ring[i] =
        (struct descriptor){.size = kPage / 4,
                            .control = i % 8 == 7 ? 8 : 0,
                            .source = iova_of(memory, memory->source + i * kPage / 4),
                            .destination = iova_of(memory, memory->target + i * kPage / 4),
                            .next = iova_of(memory, &memory->ring[(i + 1) % 64])};
  }
  begin(memory);
  for (unsigned count = 1; count <= 64; ++count) {
    *reg16(0x86) = (uint16_t)count;
    REQUIRE(done() == (iova_of(memory, &memory->ring[count - 1]) | 1));
    if (count % 8 == 0) REQUIRE(memory->completion == *reg64(0x88));
  }
  REQUIRE(memcmp(memory->source, memory->target, sizeof memory->source) == 0);
}

// Its address is taken away, the memory goes elsewhere, the map follows; the channel goes on all
// the time.
static struct memory* moves(int container, struct memory* memory) {
  enum { kBytes = kPages * kPage };
  REQUIRE(ioctl(container, VFIO_CHECK_EXTENSION, VFIO_UPDATE_VADDR) == 1);
  uint64_t bytes = 0;
  struct vfio_iommu_type1_dma_map map = map_of(memory, kIova, kBytes);
  map.flags = VFIO_DMA_MAP_FLAG_VADDR;
  REFUSED(ioctl(container, VFIO_IOMMU_MAP_DMA, &map), EINVAL);
  REQUIRE(unmap_dma(container, kIova, kBytes, VFIO_DMA_UNMAP_FLAG_VADDR, &bytes) == 0);
  REQUIRE(bytes == kBytes);
  REFUSED(unmap_dma(container, kIova, kBytes, VFIO_DMA_UNMAP_FLAG_VADDR, &bytes), EINVAL);
  void* const room = memory_of(kBytes);
  struct memory* const moved = mremap(memory, kBytes, kBytes, MREMAP_MAYMOVE | MREMAP_FIXED, room);
  REQUIRE(moved == room);
  memset(moved->target, 0, sizeof moved->target);
  copies(moved);
  map.vaddr = (uintptr_t)moved;
  REQUIRE(ioctl(container, VFIO_IOMMU_MAP_DMA, &map) == 0);
  REFUSED(ioctl(container, VFIO_IOMMU_MAP_DMA, &map), EINVAL);
  memset(moved->target, 0, sizeof moved->target);
  copies(moved);
  return moved;
}

static void rings(int device, struct memory* memory) {
  const int bell = eventfd(0, EFD_NONBLOCK);
  struct {
    struct vfio_irq_set head;
    int32_t fd;
  } set = {{.argsz = sizeof set,
            .flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER,
            .index = VFIO_PCI_MSIX_IRQ_INDEX,
            .count = 1},
           bell};
  REQUIRE(ioctl(device, VFIO_DEVICE_SET_IRQS, &set) == 0);
  memory->ring[0].control = 1;
  begin(memory);
  *reg8(0x03) = 0x09;
  *reg16(0x86) = 1;
  struct pollfd wait = {.fd = bell, .events = POLLIN};
  REQUIRE(poll(&wait, 1, 10000) == 1);
  close(bell);
}

int main(void) {
  char name[256];
  int container = -1;
  struct memory* memory = memory_of(kPages * kPage);
  REQUIRE(sizeof *memory <= kPages * kPage);
  for (unsigned i = 0; i < sizeof memory->source; ++i)
    memory->source[i] = (uint8_t)(i * 5 + i / 251);
  find_device(name);
  const int device = open_device(name, memory, &container);
  map_registers(device);
  memory_off(device);
  read_into_registers(device);
  copies(memory);
  memory = moves(container, memory);
  rings(device, memory);
  // What is mapped no longer is not reached.
  struct vfio_iommu_type1_dma_unmap unmap = {
      .argsz = sizeof unmap, .iova = kIova, .size = kPages * kPage};
  begin(memory);
  REQUIRE(ioctl(container, VFIO_IOMMU_UNMAP_DMA, &unmap) == 0 && unmap.size == kPages * kPage);
  memset(memory->target, 0, sizeof memory->target);
  *reg16(0x86) = 1;
  REQUIRE((done() & 7) == 3 && (*reg32(0xa8) & 0x100) != 0 && memory->target[0] == 0);
  // The mapping keeps the device.
  close(device);
  *reg32(0xa8) = *reg32(0xa8);
  REQUIRE((*reg32(0xa8) & 0x100) == 0);
  REQUIRE(munmap((void*)registers, 0x4000) == 0);
  close(container);
  puts("done");
  return 0;
}

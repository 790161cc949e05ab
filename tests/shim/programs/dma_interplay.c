// SPDX-License-Identifier: Apache-2.0
// A device's DMA and what else becomes of the same memory: a guest's slot over it goes, half of it
// becomes private, it is reclaimed. To be run with a memory limit far below the guest's memory.
#define _GNU_SOURCE
#include "abi/kvm/uapi.h"
#include "vfio_client.h"

enum { kSlotBytes = 16 << 20 };

struct client {
  int container, group, device;
  struct ring* ring;
  struct dsa_completion_record* record;
};

static int map(struct client* c, void* at, uint64_t iova, size_t size) {
  return map_dma(c->container, at, iova, size);
}

static void open_client(struct client* c, const char* type, const char* uuid) {
  char path[256];
  snprintf(path, sizeof path, "/sys/class/mdev_bus/dma-engine/mdev_supported_types/%s/create",
           type);
  REQUIRE(put(path, uuid) == 36);
  snprintf(path, sizeof path, "/sys/bus/mdev/devices/%s", uuid);
  c->group = open(group_of(path), O_RDWR);
  c->container = open("/dev/vfio/vfio", O_RDWR);
  c->device = open_in_container(c->container, c->group, uuid);
  c->ring = ring_of(c->device);
  // An IOVA is the address of the same memory, so that both kinds are asked in the same way.
  c->record = memory_of(kPage);
  REQUIRE(map(c, c->record, (uintptr_t)c->record, kPage) == 0);
}

static int move(struct client* c, const void* from, void* to, size_t size) {
  struct dsa_hw_desc d =
      descriptor_of(DSA_OPCODE_MEMMOVE, (uintptr_t)c->record, (uintptr_t)from, (uintptr_t)to, size);
  d.flags |= IDXD_OP_FLAG_BOF;
  memset(c->record, 0, sizeof *c->record);
  submit_to(c->device, c->ring, &d);
  return status_of(c->record);
}

static void set_slot(int vm, unsigned slot, uint64_t guest, void* at, size_t size) {
  const struct kvm_userspace_memory_region region = {
      .slot = slot, .guest_phys_addr = guest, .memory_size = size, .userspace_addr = (uintptr_t)at};
  REQUIRE(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region) == 0);
}

// The slot is the guest's; the mapping is the device's.
static void slot_removal(struct client* mapped, int vm) {
  char* const at = memory_of(4 * kPage);
  set_slot(vm, 1, 1u << 30, at, 4 * kPage);
  REQUIRE(map(mapped, at, (uintptr_t)at, 4 * kPage) == 0);
  strcpy(at, "before");
  REQUIRE(move(mapped, at, at + kPage, 64) == 1 && strcmp(at + kPage, "before") == 0);
  set_slot(vm, 1, 1u << 30, at, 0);
  strcpy(at, "after the slot");
  REQUIRE(move(mapped, at, at + 2 * kPage, 64) == 1);
  REQUIRE(strcmp(at + 2 * kPage, "after the slot") == 0);
}

// What is private has no address, so no device is given it. The shared half stays what was mapped.
static void private_memory(struct client* mapped, int kvm) {
  const int vm = ioctl(kvm, KVM_CREATE_VM, KVM_X86_SW_PROTECTED_VM);
  REQUIRE(vm >= 0);
  struct kvm_create_guest_memfd size = {.size = 4 * kPage};
  const int file = ioctl(vm, KVM_CREATE_GUEST_MEMFD, &size);
  REQUIRE(file >= 0);
  char* const shared = memory_of(4 * kPage);
  struct kvm_userspace_memory_region2 both = {.slot = 0,
                                              .flags = KVM_MEM_GUEST_MEMFD,
                                              .guest_phys_addr = 0,
                                              .memory_size = 4 * kPage,
                                              .userspace_addr = (uintptr_t)shared,
                                              .guest_memfd = (uint32_t)file};
  REQUIRE(ioctl(vm, KVM_SET_USER_MEMORY_REGION2, &both) == 0);
  REQUIRE(mmap(NULL, kPage, PROT_READ, MAP_SHARED, file, 0) == MAP_FAILED && errno == ENODEV);
  char* const hole = memory_of(kPage);
  munmap(hole, kPage);
  REQUIRE(map(mapped, hole, (uintptr_t)hole, kPage) == -1 && errno == EFAULT);
  REQUIRE(map(mapped, shared, (uintptr_t)shared, 4 * kPage) == 0);
  strcpy(shared, "shared");
  struct kvm_memory_attributes make_private = {
      .address = 0, .size = 2 * kPage, .attributes = KVM_MEMORY_ATTRIBUTE_PRIVATE};
  REQUIRE(ioctl(vm, KVM_SET_MEMORY_ATTRIBUTES, &make_private) == 0);
  // Left mapped by its VMM: the device has the shared half, as any other touch of the process does.
  REQUIRE(move(mapped, shared, shared + kPage, 64) == 1 && strcmp(shared + kPage, "shared") == 0);
  close(file);
  close(vm);
}

// What is mapped is pinned and not taken; what the device shares addresses of comes back for it.
static void reclaim(struct client* mapped, struct client* sharing, int vm) {
  char* const at = memory_of(kSlotBytes);
  set_slot(vm, 0, 0, at, kSlotBytes);
  REQUIRE(map(mapped, at, (uintptr_t)at, 16 * kPage) == 0);
  for (size_t i = 0; i < kSlotBytes; i += 8) *(uint64_t*)(at + i) = i / 512;
  usleep(300000);  // longer than it takes to come down to the limit
  static unsigned char there[kSlotBytes / kPage];
  unsigned absent = 0, absent_pinned = 0;
  REQUIRE(mincore(at, kSlotBytes, there) == 0);
  for (unsigned i = 0; i < kSlotBytes / kPage; ++i) {
    absent += (there[i] & 1) == 0;
    absent_pinned += i < 16 && (there[i] & 1) == 0;
  }
  char* const to = memory_of(kSlotBytes);
  REQUIRE(move(sharing, at, to, kSlotBytes) == 1);
  for (size_t i = 0; i < kSlotBytes; i += 8) {
    REQUIRE(*(uint64_t*)(to + i) == i / 512);
  }
  REQUIRE(move(mapped, at, at + 8 * kPage, 8 * kPage) == 1);
  REQUIRE(memcmp(at, at + 8 * kPage, 8 * kPage) == 0);
  REQUIRE(absent_pinned == 0);
  printf("reclaim: %u pages were absent, none of them pinned\n", absent);
}

int main(void) {
  setvbuf(stdout, NULL, _IOLBF, 0);
  struct client mapped, sharing;
  open_client(&mapped, "dma-engine-1", "d0a5b652-825f-3413-9000-00000000aa01");
  open_client(&sharing, "dma-engine-sva", "d0a5b652-825f-3413-9000-00000000aa02");
  const int kvm = open("/dev/kvm", O_RDWR);
  const int vm = ioctl(kvm, KVM_CREATE_VM, 0);
  REQUIRE(vm >= 0);
  slot_removal(&mapped, vm);
  private_memory(&mapped, kvm);
  reclaim(&mapped, &sharing, vm);
  puts("done");
  return 0;
}

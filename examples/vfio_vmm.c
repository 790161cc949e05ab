// SPDX-License-Identifier: Apache-2.0
// A machine with a device of VFIO's: the guest has a driver of its own for a copy accelerator,
// whose registers it reaches through its VMM, whose ring is memory it writes to directly, and which
// reads and writes the guest's memory by itself. The IOVA of a page is the guest's address of it,
// so what is not the guest's memory is a fault the guest is told of.
//
// With dirty tracking on: what the guest writes is in KVM's log, what the device writes is not. It
// is in the container's, which for a device with an IOMMU names every page that is mapped.
//
//     build/bin/stagetwo run -- build/examples/vfio_vmm [rounds] [uuid]
//
// With a UUID the device is there already, and stays.
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <linux/vfio.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

enum {
  kPage = 4096,
  kPml4 = 0x1000,
  kPdpt = 0x2000,
  kPd = 0x3000,
  kCode = 0x10000,
  kStackTop = 0x20000,
  kSource = 0x100000,
  kTarget = 0x180000,
  kRecord = 0x200000,
  kMoved = 0x10000,
  kMemorySize = 0x400000,
  kRing = 0x8000000,       // the device's memory, in the guest
  kRegisters = 0x9000000,  // its registers: the VMM's
  kRingRegion = 4,
};

// The guest's driver. r15: how often. It says by port 0xea how a descriptor ended, by 0xeb whether
// what arrived is what was sent.
__asm__(
    ".pushsection .rodata\n"
    ".globl guest_begin, guest_end\n"
    "guest_begin:\n"
    "  mov $0x8000000, %r12\n"
    "  mov $0x9000000, %r13\n"
    "  mov 0x10(%r13), %rax\n"  // its capabilities: it blocks on faults, and takes commands
    "  and $0x11, %al\n"
    "  out %al, $0xec\n"
    "round:\n"
    "  mov $0x100000, %edi\n"
    "  mov $0x2000, %ecx\n"
    "  movabs $0x9e3779b97f4a7c15, %rdx\n"
    "  mov %r15, %rax\n"
    "1: imul %rdx, %rax\n"
    "  inc %rax\n"
    "  mov %rax, (%rdi)\n"
    "  add $8, %rdi\n"
    "  dec %ecx\n"
    "  jnz 1b\n"
    "  mov $0x100000, %r8\n"
    "  mov $0x180000, %r9\n"
    "  call move\n"
    "  out %al, $0xea\n"
    "  mov $0x100000, %esi\n"
    "  mov $0x180000, %edi\n"
    "  mov $0x2000, %ecx\n"
    "  cld\n"
    "  repe cmpsq\n"
    "  sete %al\n"
    "  out %al, $0xeb\n"
    "  mov $0x7000000, %r9\n"  // no memory of ours
    "  call move\n"
    "  out %al, $0xea\n"
    "  cmp %r9, 8(%r11)\n"  // the record says where
    "  sete %al\n"
    "  out %al, $0xeb\n"
    "  dec %r15\n"
    "  jnz round\n"
    "  hlt\n"
    // 64 KiB from r8 to r9, and wait. al: the status.
    "move:\n"
    "  mov $0x200000, %r11d\n"
    "  movq $0, (%r11)\n"
    "  mov (%r12), %eax\n"  // the tail
    "  mov %eax, %edx\n"
    "  and $1023, %edx\n"
    "  shl $6, %edx\n"
    "  lea 0x1000(%r12,%rdx), %rdx\n"
    "  movl $0, (%rdx)\n"
    "  movl $0x0300000c, 4(%rdx)\n"  // a move, with a completion record
    "  mov %r11, 8(%rdx)\n"
    "  mov %r8, 16(%rdx)\n"
    "  mov %r9, 24(%rdx)\n"
    "  movq $0x10000, 32(%rdx)\n"
    "  movq $0, 40(%rdx)\n"
    "  inc %eax\n"
    "  xchg %eax, (%r12)\n"
    "  cmpl $0, 8(%r12)\n"  // does it sleep?
    "  je 2f\n"
    "  movl $1, 0x800(%r13)\n"
    "2: pause\n"
    "  movzbl (%r11), %eax\n"
    "  test %al, %al\n"
    "  jz 2b\n"
    "  ret\n"
    "guest_end:\n"
    ".popsection\n");
extern const char guest_begin[], guest_end[];

struct machine {
  int kvm, vm, vcpu, container, group, device;
  uint8_t* memory;
  void* ring;
  size_t ring_size;
  struct kvm_run* run;
  unsigned moved, refused, wrong, doorbells;
};

static void must(int ok, const char* what) {
  if (ok) return;
  fprintf(stderr, "vfio_vmm: %s: %s\n", what, strerror(errno));
  exit(1);
}

// ---- the device

static void put(const char* name, const char* text) {
  const int fd = open(name, O_WRONLY);
  must(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text), name);
  close(fd);
}

static void open_device(struct machine* m, const char* uuid) {
  char path[256], link[256];
  snprintf(path, sizeof path, "/sys/bus/mdev/devices/%s/iommu_group", uuid);
  const ssize_t size = readlink(path, link, sizeof link - 1);
  must(size > 0, path);
  link[size] = '\0';
  snprintf(path, sizeof path, "/dev/vfio/%s", strrchr(link, '/') + 1);
  m->group = open(path, O_RDWR);
  m->container = open("/dev/vfio/vfio", O_RDWR);
  must(m->group >= 0 && m->container >= 0, path);
  must(ioctl(m->group, VFIO_GROUP_SET_CONTAINER, &m->container) == 0, "VFIO_GROUP_SET_CONTAINER");
  must(ioctl(m->container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU) == 0, "VFIO_SET_IOMMU");
  m->device = ioctl(m->group, VFIO_GROUP_GET_DEVICE_FD, uuid);
  must(m->device >= 0, "VFIO_GROUP_GET_DEVICE_FD");
  struct vfio_region_info region = {.argsz = sizeof region, .index = kRingRegion};
  must(ioctl(m->device, VFIO_DEVICE_GET_REGION_INFO, &region) == 0, "VFIO_DEVICE_GET_REGION_INFO");
  m->ring_size = region.size;
  m->ring =
      mmap(NULL, region.size, PROT_READ | PROT_WRITE, MAP_SHARED, m->device, (off_t)region.offset);
  must(m->ring != MAP_FAILED, "mmap of the ring");
}

// What the device may reach is what the guest has, at the same addresses.
static void map_memory(struct machine* m) {
  struct vfio_iommu_type1_dma_map map = {.argsz = sizeof map,
                                         .flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
                                         .vaddr = (uintptr_t)m->memory,
                                         .iova = 0,
                                         .size = kMemorySize};
  must(ioctl(m->container, VFIO_IOMMU_MAP_DMA, &map) == 0, "VFIO_IOMMU_MAP_DMA");
  struct vfio_iommu_type1_dirty_bitmap start = {.argsz = sizeof start,
                                                .flags = VFIO_IOMMU_DIRTY_PAGES_FLAG_START};
  must(ioctl(m->container, VFIO_IOMMU_DIRTY_PAGES, &start) == 0, "dirty pages: start");
}

// ---- the machine

static void create_memory(struct machine* m) {
  m->memory = mmap(NULL, kMemorySize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  must(m->memory != MAP_FAILED, "mmap");
  uint64_t* const pml4 = (uint64_t*)(m->memory + kPml4);
  uint64_t* const pdpt = (uint64_t*)(m->memory + kPdpt);
  uint64_t* const pd = (uint64_t*)(m->memory + kPd);
  pml4[0] = kPdpt | 3;
  pdpt[0] = kPd | 3;
  for (unsigned i = 0; i < 512; i++) pd[i] = ((uint64_t)i << 21) | 0x83;
  memcpy(m->memory + kCode, guest_begin, (size_t)(guest_end - guest_begin));
  const struct kvm_userspace_memory_region plain = {.slot = 0,
                                                    .flags = KVM_MEM_LOG_DIRTY_PAGES,
                                                    .memory_size = kMemorySize,
                                                    .userspace_addr = (uintptr_t)m->memory};
  must(ioctl(m->vm, KVM_SET_USER_MEMORY_REGION, &plain) == 0, "the slot of memory");
  const struct kvm_userspace_memory_region ring = {.slot = 1,
                                                   .guest_phys_addr = kRing,
                                                   .memory_size = m->ring_size,
                                                   .userspace_addr = (uintptr_t)m->ring};
  must(ioctl(m->vm, KVM_SET_USER_MEMORY_REGION, &ring) == 0, "the slot of the ring");
}

static void create_vcpu(struct machine* m, unsigned rounds) {
  m->vcpu = ioctl(m->vm, KVM_CREATE_VCPU, 0);
  must(m->vcpu >= 0, "KVM_CREATE_VCPU");
  const int size = ioctl(m->kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
  m->run = mmap(NULL, (size_t)size, PROT_READ | PROT_WRITE, MAP_SHARED, m->vcpu, 0);
  must(m->run != MAP_FAILED, "mmap of the run page");
  struct kvm_sregs s;
  must(ioctl(m->vcpu, KVM_GET_SREGS, &s) == 0, "KVM_GET_SREGS");
  const struct kvm_segment code = {
      .limit = 0xffffffff, .selector = 0x8, .type = 11, .present = 1, .s = 1, .l = 1, .g = 1};
  const struct kvm_segment data = {
      .limit = 0xffffffff, .selector = 0x10, .type = 3, .present = 1, .s = 1, .db = 1, .g = 1};
  s.cs = code;
  s.ds = s.es = s.fs = s.gs = s.ss = data;
  s.cr3 = kPml4;
  s.cr4 = 1u << 5;
  s.efer = (1u << 8) | (1u << 10);
  s.cr0 = 1u | (1u << 4) | (1u << 31);
  must(ioctl(m->vcpu, KVM_SET_SREGS, &s) == 0, "KVM_SET_SREGS");
  struct kvm_regs r = {.rip = kCode, .rsp = kStackTop, .rflags = 2, .r15 = rounds};
  must(ioctl(m->vcpu, KVM_SET_REGS, &r) == 0, "KVM_SET_REGS");
}

static void told(struct machine* m, unsigned port, uint8_t value) {
  if (port == 0xec) {
    m->wrong += value != 0x11;
  } else if (port == 0xeb) {
    m->wrong += value != 1;
  } else if (value == 1) {
    m->moved++;
  } else {
    m->refused++;
    m->wrong += value != 0x83;  // a page fault of a write
  }
}

static void run(struct machine* m) {
  for (;;) {
    must(ioctl(m->vcpu, KVM_RUN, 0) == 0, "KVM_RUN");
    struct kvm_run* const r = m->run;
    if (r->exit_reason == KVM_EXIT_HLT) return;
    if (r->exit_reason == KVM_EXIT_IO) {
      told(m, r->io.port, ((uint8_t*)r)[r->io.data_offset]);
    } else if (r->exit_reason == KVM_EXIT_MMIO) {
      const off_t at = (off_t)r->mmio.phys_addr - kRegisters;
      must(at >= 0 && at + r->mmio.len <= kPage, "an access to the registers");
      const ssize_t done = r->mmio.is_write ? pwrite(m->device, r->mmio.data, r->mmio.len, at)
                                            : pread(m->device, r->mmio.data, r->mmio.len, at);
      must(done == (ssize_t)r->mmio.len, "a register");
      m->doorbells += r->mmio.is_write;
    } else {
      fprintf(stderr, "vfio_vmm: exit %u\n", r->exit_reason);
      exit(1);
    }
  }
}

// ---- what is dirty

static int bit_of(const uint64_t* bits, uint64_t address) {
  return (int)(bits[address / kPage / 64] >> (address / kPage % 64) & 1);
}

static unsigned count(const uint64_t* bits) {
  unsigned set = 0;
  for (unsigned i = 0; i < kMemorySize / kPage / 64; i++) {
    set += (unsigned)__builtin_popcountll(bits[i]);
  }
  return set;
}

static void check_dirty(struct machine* m) {
  uint64_t guest[kMemorySize / kPage / 64] = {0}, device[kMemorySize / kPage / 64] = {0};
  struct kvm_dirty_log log = {.slot = 0};
  log.dirty_bitmap = guest;
  must(ioctl(m->vm, KVM_GET_DIRTY_LOG, &log) == 0, "KVM_GET_DIRTY_LOG");
  uint64_t room[8] = {0};
  struct vfio_iommu_type1_dirty_bitmap* const ask = (void*)room;
  struct vfio_iommu_type1_dirty_bitmap_get* const get = (void*)ask->data;
  ask->argsz = sizeof *ask + sizeof *get;
  ask->flags = VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP;
  get->size = kMemorySize;
  get->bitmap.pgsize = kPage;
  get->bitmap.size = sizeof device;
  get->bitmap.data = (void*)device;
  must(ioctl(m->container, VFIO_IOMMU_DIRTY_PAGES, ask) == 0, "dirty pages: get");
  for (uint64_t at = 0; at < kMoved; at += kPage) {
    must(bit_of(guest, kSource + at), "what the guest wrote is in KVM's log");
    must(!bit_of(guest, kTarget + at), "what the device wrote is not");
    must(bit_of(device, kTarget + at), "it is in the container's");
  }
  printf("dirty pages: %u in KVM's log, %u in the container's\n", count(guest), count(device));
}

int main(int argc, char** argv) {
  static const char own[] = "5a5b6525-825f-3413-9000-0000000000f1";
  const unsigned rounds = argc > 1 ? (unsigned)atoi(argv[1]) : 16;
  const char* const uuid = argc > 2 ? argv[2] : own;
  must(rounds > 0, "rounds");
  if (uuid == own) {
    put("/sys/class/mdev_bus/dma-engine/mdev_supported_types/dma-engine-1/create", own);
  }
  struct machine m = {0};
  open_device(&m, uuid);
  m.kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
  must(m.kvm >= 0, "open /dev/kvm");
  m.vm = ioctl(m.kvm, KVM_CREATE_VM, 0);
  must(m.vm >= 0, "KVM_CREATE_VM");
  create_memory(&m);
  map_memory(&m);
  create_vcpu(&m, rounds);
  run(&m);
  must(m.moved == rounds && m.refused == rounds && m.wrong == 0, "what the guest has seen");
  printf(
      "the guest's driver: %u moves of 64 KiB arrived, %u beyond its memory were refused,"
      " %u doorbells\n",
      m.moved, m.refused, m.doorbells);
  check_dirty(&m);
  munmap(m.ring, m.ring_size);
  close(m.device);
  close(m.group);
  close(m.container);
  if (uuid == own) put("/sys/bus/mdev/devices/5a5b6525-825f-3413-9000-0000000000f1/remove", "1");
  return 0;
}

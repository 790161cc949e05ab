// SPDX-License-Identifier: Apache-2.0
// The smallest machine that shows the main job: a guest that prints through a port, fills memory
// nobody has touched yet, talks to a device that is not there, and keeps its view of memory
// coherent with ours while we take a page away under it.
//
// Only the public KVM ABI is used, so the same program runs on the kernel's own /dev/kvm:
//
//     build/bin/stagetwo run -- build/examples/hello_vmm
//     build/examples/hello_vmm          (where /dev/kvm exists)
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

enum {
  kPage = 4096,
  kPml4 = 0x1000,  // The guest's page tables,
  kPdpt = 0x2000,
  kPdLow = 0x3000,      // the first GiB in 2 MiB pages,
  kPdDevices = 0x4000,  // and the fourth, where the device is.
  kCode = 0x10000,
  kStackTop = 0x20000,
  kData = 0x200000,
  kDataPages = 256,
  kMemorySize = 0x400000,
  kConsolePort = 0xe9,
  kServicePort = 0xea,
};
#define DEVICE_ADDRESS UINT64_C(0xd0000000)

// What the guest asks for by a byte on the service port.
enum { kAskDiscard = 1, kAskReport = 2 };

// The guest: 64-bit code that runs where it is copied to. rbx counts pages, rsi walks memory.
__asm__(
    ".pushsection .rodata\n"
    ".globl guest_begin, guest_end\n"
    "guest_begin:\n"
    "  lea text(%rip), %rsi\n"
    "1: mov (%rsi), %al\n"
    "  test %al, %al\n"
    "  jz 2f\n"
    "  out %al, $0xe9\n"  // The console takes a character at a time.
    "  inc %rsi\n"
    "  jmp 1b\n"
    "2: mov $0x200000, %rsi\n"  // Each page gets its own number; each store is a first touch.
    "  mov $256, %rbx\n"
    "3: mov %rbx, (%rsi)\n"
    "  add $4096, %rsi\n"
    "  dec %rbx\n"
    "  jnz 3b\n"
    "  mov $0xd0000000, %rdi\n"
    "  movq $42, (%rdi)\n"   // No memory here: the store leaves the guest,
    "  mov 8(%rdi), %r8\n"   // and the load waits for an answer.
    "  mov 0x200000, %r9\n"  // Page 0 as we wrote it,
    "  mov $1, %al\n"
    "  out %al, $0xea\n"  // and again after the host has discarded it.
    "  mov 0x200000, %r10\n"
    "  mov $2, %al\n"
    "  out %al, $0xea\n"
    "  hlt\n"
    "text: .asciz \"hello from a guest\\n\"\n"
    "guest_end:\n"
    ".popsection\n");
extern const char guest_begin[], guest_end[];

struct machine {
  int kvm, vm, vcpu;
  uint8_t* memory;
  struct kvm_run* run;
  unsigned port_exits, mmio_exits;
};

static void must(int ok, const char* what) {
  if (ok) return;
  fprintf(stderr, "hello_vmm: %s: %s\n", what, strerror(errno));
  exit(1);
}

static unsigned resident_pages(const struct machine* m) {
  unsigned char present[kDataPages];
  unsigned count = 0;
  must(mincore(m->memory + kData, (size_t)kDataPages * kPage, present) == 0, "mincore");
  for (unsigned i = 0; i < kDataPages; i++) count += present[i] & 1u;
  return count;
}

static void set_entry(struct machine* m, unsigned table, unsigned index, uint64_t value) {
  memcpy(m->memory + table + 8u * index, &value, sizeof value);
}

// Identity page tables for the first and the fourth GiB.
static void build_page_tables(struct machine* m) {
  const uint64_t present_write = 3, large = 0x80;
  set_entry(m, kPml4, 0, kPdpt | present_write);
  set_entry(m, kPdpt, 0, kPdLow | present_write);
  set_entry(m, kPdpt, 3, kPdDevices | present_write);
  for (unsigned i = 0; i < 512; i++) {
    const uint64_t at = (uint64_t)i << 21;
    set_entry(m, kPdLow, i, at | present_write | large);
    set_entry(m, kPdDevices, i, (at + (UINT64_C(3) << 30)) | present_write | large);
  }
}

static void create_machine(struct machine* m) {
  m->kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
  must(m->kvm >= 0, "open /dev/kvm");
  must(ioctl(m->kvm, KVM_GET_API_VERSION, 0) == KVM_API_VERSION, "KVM_GET_API_VERSION");
  m->vm = ioctl(m->kvm, KVM_CREATE_VM, 0);
  must(m->vm >= 0, "KVM_CREATE_VM");

  void* memory =
      mmap(NULL, kMemorySize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  must(memory != MAP_FAILED, "mmap of guest memory");
  m->memory = memory;
  // Page by page, so that first touches can be counted below. A kernel without huge pages refuses.
  (void)madvise(memory, kMemorySize, MADV_NOHUGEPAGE);
  struct kvm_userspace_memory_region slot = {.slot = 0,
                                             .guest_phys_addr = 0,
                                             .memory_size = kMemorySize,
                                             .userspace_addr = (uintptr_t)memory};
  must(ioctl(m->vm, KVM_SET_USER_MEMORY_REGION, &slot) == 0, "KVM_SET_USER_MEMORY_REGION");
  build_page_tables(m);
  memcpy(m->memory + kCode, guest_begin, (size_t)(guest_end - guest_begin));

  m->vcpu = ioctl(m->vm, KVM_CREATE_VCPU, 0);
  must(m->vcpu >= 0, "KVM_CREATE_VCPU");
  const int run_size = ioctl(m->kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
  must(run_size > 0, "KVM_GET_VCPU_MMAP_SIZE");
  void* run = mmap(NULL, (size_t)run_size, PROT_READ | PROT_WRITE, MAP_SHARED, m->vcpu, 0);
  must(run != MAP_FAILED, "mmap of the run page");
  m->run = run;
}

// 64-bit mode at once: flat segments, paging on, no interrupts.
static void enter_long_mode(struct machine* m) {
  struct kvm_sregs s;
  must(ioctl(m->vcpu, KVM_GET_SREGS, &s) == 0, "KVM_GET_SREGS");
  const struct kvm_segment code = {
      .limit = 0xffffffff, .selector = 0x8, .type = 11, .present = 1, .s = 1, .l = 1, .g = 1};
  const struct kvm_segment data = {
      .limit = 0xffffffff, .selector = 0x10, .type = 3, .present = 1, .s = 1, .db = 1, .g = 1};
  s.cs = code;
  s.ds = s.es = s.fs = s.gs = s.ss = data;
  s.cr3 = kPml4;
  s.cr4 = 1u << 5;                      // PAE
  s.efer = (1u << 8) | (1u << 10);      // LME, LMA
  s.cr0 = 1u | (1u << 4) | (1u << 31);  // PE, ET, PG
  must(ioctl(m->vcpu, KVM_SET_SREGS, &s) == 0, "KVM_SET_SREGS");
  struct kvm_regs r = {.rip = kCode, .rsp = kStackTop, .rflags = 2};
  must(ioctl(m->vcpu, KVM_SET_REGS, &r) == 0, "KVM_SET_REGS");
}

static void serve(struct machine* m, unsigned char request) {
  struct kvm_regs r;
  must(ioctl(m->vcpu, KVM_GET_REGS, &r) == 0, "KVM_GET_REGS");
  if (request == kAskDiscard) {
    printf("guest  filled its memory: %u of %u pages are now resident\n", resident_pages(m),
           (unsigned)kDataPages);
    must(madvise(m->memory + kData, kPage, MADV_DONTNEED) == 0, "madvise");
    printf("host   took the first page away (MADV_DONTNEED) while the guest waits\n");
  } else if (request == kAskReport) {
    printf("guest  read %llu there before, %llu after: no stale translation\n",
           (unsigned long long)r.r9, (unsigned long long)r.r10);
    printf("guest  read 0x%llx from the device\n", (unsigned long long)r.r8);
    must(r.r9 == kDataPages && r.r10 == 0 && r.r8 == 0x57a6e2, "what the guest saw");
  }
}

static void handle_port(struct machine* m) {
  const struct kvm_run* run = m->run;
  const uint8_t* bytes = (const uint8_t*)run + run->io.data_offset;
  m->port_exits++;
  must(run->io.direction == KVM_EXIT_IO_OUT && run->io.size == 1, "a byte going out");
  if (run->io.port == kConsolePort) fwrite(bytes, 1, run->io.count, stdout);
  if (run->io.port == kServicePort) serve(m, bytes[0]);
}

static void handle_mmio(struct machine* m) {
  struct kvm_run* run = m->run;
  uint64_t value = 0x57a6e2;
  m->mmio_exits++;
  if (run->mmio.is_write) {
    memcpy(&value, run->mmio.data, sizeof value);
    must(run->mmio.phys_addr == DEVICE_ADDRESS && value == 42, "what the device was told");
    printf("device was written %llu at 0x%llx\n", (unsigned long long)value,
           (unsigned long long)run->mmio.phys_addr);
  } else {
    memcpy(run->mmio.data, &value, sizeof value);
  }
}

int main(void) {
  struct machine m = {0};
  setvbuf(stdout, NULL, _IOLBF, 0);
  create_machine(&m);
  enter_long_mode(&m);
  printf("host   gives a guest %u pages it has not touched: %u are resident\n",
         (unsigned)kDataPages, resident_pages(&m));
  for (;;) {
    must(ioctl(m.vcpu, KVM_RUN, 0) == 0 || errno == EINTR, "KVM_RUN");
    switch (m.run->exit_reason) {
      case KVM_EXIT_IO:
        handle_port(&m);
        break;
      case KVM_EXIT_MMIO:
        handle_mmio(&m);
        break;
      case KVM_EXIT_INTR:
        break;
      case KVM_EXIT_HLT:
        printf("guest  halted after %u port and %u device exits\n", m.port_exits, m.mmio_exits);
        return 0;
      default:
        fprintf(stderr, "hello_vmm: exit reason %u was not expected\n", m.run->exit_reason);
        return 1;
    }
  }
}

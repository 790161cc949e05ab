// SPDX-License-Identifier: Apache-2.0
// KVM_GET_DIRTY_LOG beside a guest that goes on storing: what a harvest of 4,096 pages costs while
// their vCPU runs, so with the flush it has to acknowledge. The kernel's dirty_log_perf_test times
// its harvests with every vCPU at rest. Only the public KVM ABI is used; tools/bench_kvm.py runs
// it with and without the engine.
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>

enum {
  kPage = 4096,
  kPml4 = 0x1000,
  kPdpt = 0x2000,
  kPd = 0x3000,
  kCode = 0x10000,
  kPasses = 0x20000,  // the guest counts its passes here
  kLowSize = 0x200000,
  kData = 0x200000,
  kDataPages = 4096,
  kHarvests = 20,
};

// The guest stores to every page of the second slot, over and over.
__asm__(
    ".pushsection .rodata\n"
    ".globl guest_begin, guest_end\n"
    "guest_begin:\n"
    "1: mov $0x200000, %rsi\n"
    "  mov $4096, %ecx\n"
    "2: mov %rbx, (%rsi)\n"
    "  add $4096, %rsi\n"
    "  dec %rcx\n"
    "  jnz 2b\n"
    "  inc %rbx\n"
    "  mov %rbx, 0x20000\n"
    "  jmp 1b\n"
    "guest_end:\n"
    ".popsection\n");
extern const char guest_begin[], guest_end[];

static int kvm, vm, vcpu;
static struct kvm_run* run;
static uint8_t* low;
static atomic_int over;

static void must(int ok, const char* what) {
  if (ok) return;
  fprintf(stderr, "dirty_harvest: %s: %s\n", what, strerror(errno));
  exit(1);
}

static uint8_t* add_slot(unsigned slot, uint64_t gpa, size_t size, unsigned flags) {
  void* memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  must(memory != MAP_FAILED, "mmap of guest memory");
  (void)madvise(memory, size, MADV_NOHUGEPAGE);
  struct kvm_userspace_memory_region region = {.slot = slot,
                                               .flags = flags,
                                               .guest_phys_addr = gpa,
                                               .memory_size = size,
                                               .userspace_addr = (uintptr_t)memory};
  must(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region) == 0, "KVM_SET_USER_MEMORY_REGION");
  return memory;
}

static void set_entry(unsigned table, unsigned index, uint64_t value) {
  memcpy(low + table + 8u * index, &value, sizeof value);
}

static void create_machine(void) {
  kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
  must(kvm >= 0, "open /dev/kvm");
  vm = ioctl(kvm, KVM_CREATE_VM, 0);
  must(vm >= 0, "KVM_CREATE_VM");
  low = add_slot(0, 0, kLowSize, 0);
  uint8_t* const data = add_slot(1, kData, (size_t)kDataPages * kPage, KVM_MEM_LOG_DIRTY_PAGES);
  memset(data, 1, (size_t)kDataPages * kPage);
  set_entry(kPml4, 0, kPdpt | 3);
  set_entry(kPdpt, 0, kPd | 3);
  for (unsigned i = 0; i < 512; i++) set_entry(kPd, i, (uint64_t)i << 21 | 0x83);
  memcpy(low + kCode, guest_begin, (size_t)(guest_end - guest_begin));
  vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
  must(vcpu >= 0, "KVM_CREATE_VCPU");
  const int run_size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
  must(run_size > 0, "KVM_GET_VCPU_MMAP_SIZE");
  void* shared = mmap(NULL, (size_t)run_size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
  must(shared != MAP_FAILED, "mmap of the run page");
  run = shared;
}

static void enter_long_mode(void) {
  struct kvm_sregs s;
  must(ioctl(vcpu, KVM_GET_SREGS, &s) == 0, "KVM_GET_SREGS");
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
  must(ioctl(vcpu, KVM_SET_SREGS, &s) == 0, "KVM_SET_SREGS");
  struct kvm_regs r = {.rip = kCode, .rflags = 2};
  must(ioctl(vcpu, KVM_SET_REGS, &r) == 0, "KVM_SET_REGS");
}

static void kick(int number) {
  (void)number;
  run->immediate_exit = 1;
}

static void* run_guest(void* nothing) {
  (void)nothing;
  enter_long_mode();
  while (atomic_load(&over) == 0) {
    const int done = ioctl(vcpu, KVM_RUN, 0);
    must(done < 0 && errno == EINTR, "KVM_RUN");
  }
  return NULL;
}

static uint64_t passes(void) {
  return atomic_load((_Atomic uint64_t*)(void*)(low + kPasses));
}

static void harvest(unsigned n, uint64_t* bitmap) {
  // Two more: one of them whole since the harvest before.
  const uint64_t goal = passes() + 2;
  while (passes() < goal) nanosleep(&(struct timespec){.tv_nsec = 100000}, NULL);
  struct kvm_dirty_log log = {.slot = 1, .dirty_bitmap = bitmap};
  struct timespec from, to;
  clock_gettime(CLOCK_MONOTONIC, &from);
  must(ioctl(vm, KVM_GET_DIRTY_LOG, &log) == 0, "KVM_GET_DIRTY_LOG");
  clock_gettime(CLOCK_MONOTONIC, &to);
  unsigned pages = 0;
  for (unsigned i = 0; i < kDataPages / 64; i++) pages += (unsigned)__builtin_popcountll(bitmap[i]);
  must(pages == kDataPages, "every page was stored to");
  printf("Harvest %u beside the guest time: %.9fs\n", n,
         (double)(to.tv_sec - from.tv_sec) + (double)(to.tv_nsec - from.tv_nsec) / 1e9);
}

int main(void) {
  static uint64_t bitmap[kDataPages / 64];
  create_machine();
  const struct sigaction action = {.sa_handler = kick};
  must(sigaction(SIGUSR1, &action, NULL) == 0, "sigaction");
  pthread_t guest;
  must(pthread_create(&guest, NULL, run_guest, NULL) == 0, "pthread_create");
  for (unsigned i = 0; i < kHarvests; i++) harvest(i, bitmap);
  atomic_store(&over, 1);
  must(pthread_kill(guest, SIGUSR1) == 0, "pthread_kill");
  must(pthread_join(guest, NULL) == 0, "pthread_join");
  return 0;
}

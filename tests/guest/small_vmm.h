// SPDX-License-Identifier: Apache-2.0
#pragma once

// What the small VMMs of this folder share: one VM, one vCPU in real mode, a slot of code and a
// window of eight pages on which the guest works. Knows nothing but the public KVM ABI.

#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { kPage = 4096, kPages = 8, kBytes = kPage * kPages, kCode = 0x1000, kWindow = 0x10000 };

static int vm;
static int vcpu;
static struct kvm_run* run;
__attribute__((unused)) static char* window;
__attribute__((unused)) static atomic_int stop;

static void check(int holds, const char* what) {
  if (holds) return;
  printf("failed: %s: %s\n", what, strerror(errno));
  fflush(stdout);
  _exit(1);
}

static void slot(uint32_t id, uint64_t gpa, uint64_t size, void* at) {
  struct kvm_userspace_memory_region region = {
      .slot = id, .guest_phys_addr = gpa, .memory_size = size, .userspace_addr = (uint64_t)at};
  check(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region) == 0, "KVM_SET_USER_MEMORY_REGION");
}

__attribute__((unused)) static uint16_t word(int page) {
  return *(volatile uint16_t*)(window + page * kPage);
}

// The guest has changed `page` since.
__attribute__((unused)) static void wait_for_store(int page) {
  const uint16_t before = word(page);
  const time_t start = time(NULL);
  while (word(page) == before) {
    check(time(NULL) - start < 20, "the guest goes on");
    sched_yield();
  }
}

__attribute__((unused)) static void* map_at(void* at, int flags) {
  return mmap(at, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);
}

// Pre: the VM is there. `kvm`: /dev/kvm. Returns the run page of the vCPU, which becomes `fd`.
static struct kvm_run* open_vcpu(int kvm, unsigned id, int* fd) {
  *fd = ioctl(vm, KVM_CREATE_VCPU, id);
  check(*fd >= 0, "KVM_CREATE_VCPU");
  const int bytes = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
  void* const at = mmap(NULL, (size_t)bytes, PROT_READ | PROT_WRITE, MAP_SHARED, *fd, 0);
  check(at != MAP_FAILED, "mmap of the vCPU");
  return at;
}
__attribute__((unused)) static void create_vcpu(int kvm) {
  run = open_vcpu(kvm, 0, &vcpu);
}

__attribute__((unused)) static void start_at_code(void) {
  struct kvm_regs regs = {.rip = kCode, .rflags = 2};
  check(ioctl(vcpu, KVM_SET_REGS, &regs) == 0, "KVM_SET_REGS");
}

// The guest starts at kCode, its data segment is the window.
__attribute__((unused)) static void create(const unsigned char* code, size_t size) {
  const int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
  check(kvm >= 0, "open /dev/kvm");
  vm = ioctl(kvm, KVM_CREATE_VM, 0);
  check(vm >= 0, "KVM_CREATE_VM");
  char* text = map_at(NULL, 0);
  memcpy(text, code, size);
  window = map_at(NULL, 0);
  slot(0, kCode, kPage, text);
  slot(1, kWindow, kBytes, window);
  create_vcpu(kvm);
  struct kvm_sregs sregs;
  check(ioctl(vcpu, KVM_GET_SREGS, &sregs) == 0, "KVM_GET_SREGS");
  sregs.cs.base = 0;
  sregs.cs.selector = 0;
  sregs.ds.base = kWindow;
  sregs.ds.selector = kWindow >> 4;
  check(ioctl(vcpu, KVM_SET_SREGS, &sregs) == 0, "KVM_SET_SREGS");
  start_at_code();
}

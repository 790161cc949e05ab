// SPDX-License-Identifier: Apache-2.0
// A small 64-bit guest for test programs: identity page tables for the first GiB in 2 MiB pages,
// code at 64 KiB, one vCPU. Only the public KVM ABI, so every program also runs on a real /dev/kvm.
#pragma once

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
  kPml4 = 0x1000,
  kPdpt = 0x2000,
  kPd = 0x3000,
  kCode = 0x10000,
  kStackTop = 0x20000,
  kData = 0x200000,  // memory that only the guest's own code uses
  kMemorySize = 0x400000,
};

struct machine {
  int kvm, vm, vcpu, run_size;
  uint8_t* memory;
  struct kvm_run* run;
};

// Ends the program with the sentence and errno when `ok` is false.
#define REQUIRE(ok)                                                                 \
  do {                                                                              \
    if (!(ok)) {                                                                    \
      const int saved = errno;                                                      \
      fprintf(stderr, "%s:%d: %s (errno %d, %s)\n", __FILE__, __LINE__, #ok, saved, \
              strerror(saved));                                                     \
      _exit(1);                                                                     \
    }                                                                               \
  } while (0)

// The call fails with exactly that errno.
#define REFUSES(call, expected)                   \
  do {                                            \
    errno = 0;                                    \
    REQUIRE((call) == -1 && errno == (expected)); \
  } while (0)

static inline void set_entry(struct machine* m, unsigned table, unsigned index, uint64_t value) {
  memcpy(m->memory + table + 8u * index, &value, sizeof value);
}

static inline int set_slot(int vm, unsigned slot, uint64_t gpa, void* memory, uint64_t size,
                           unsigned flags) {
  struct kvm_userspace_memory_region region = {.slot = slot,
                                               .flags = flags,
                                               .guest_phys_addr = gpa,
                                               .memory_size = size,
                                               .userspace_addr = (uintptr_t)memory};
  return ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region);
}

static inline void enter_long_mode(struct machine* m) {
  struct kvm_sregs s;
  REQUIRE(ioctl(m->vcpu, KVM_GET_SREGS, &s) == 0);
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
  REQUIRE(ioctl(m->vcpu, KVM_SET_SREGS, &s) == 0);
}

static inline void set_rip(struct machine* m, uint64_t rip) {
  struct kvm_regs r = {.rip = rip, .rsp = kStackTop, .rflags = 2};
  REQUIRE(ioctl(m->vcpu, KVM_SET_REGS, &r) == 0);
}

// A machine that will run `code` (position independent).
static inline void create_machine(struct machine* m, const void* code, size_t size) {
  m->kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
  REQUIRE(m->kvm >= 0);
  m->vm = ioctl(m->kvm, KVM_CREATE_VM, 0);
  REQUIRE(m->vm >= 0);
  void* memory =
      mmap(NULL, kMemorySize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  REQUIRE(memory != MAP_FAILED);
  m->memory = memory;
  REQUIRE(set_slot(m->vm, 0, 0, memory, kMemorySize, 0) == 0);
  set_entry(m, kPml4, 0, kPdpt | 3);
  set_entry(m, kPdpt, 0, kPd | 3);
  for (unsigned i = 0; i < 512; i++) set_entry(m, kPd, i, ((uint64_t)i << 21) | 0x83);
  memcpy(m->memory + kCode, code, size);
  m->vcpu = ioctl(m->vm, KVM_CREATE_VCPU, 0);
  REQUIRE(m->vcpu >= 0);
  m->run_size = ioctl(m->kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
  REQUIRE(m->run_size > 0);
  void* run = mmap(NULL, (size_t)m->run_size, PROT_READ | PROT_WRITE, MAP_SHARED, m->vcpu, 0);
  REQUIRE(run != MAP_FAILED);
  m->run = run;
  enter_long_mode(m);
  set_rip(m, kCode);
}

static inline void destroy_machine(struct machine* m) {
  REQUIRE(munmap(m->run, (size_t)m->run_size) == 0);
  REQUIRE(close(m->vcpu) == 0);
  REQUIRE(close(m->vm) == 0);
  REQUIRE(close(m->kvm) == 0);
  REQUIRE(munmap(m->memory, kMemorySize) == 0);
}

// jmp .
static const uint8_t kEndless[] = {0xeb, 0xfe};
// hlt
static const uint8_t kHalt[] = {0xf4};

// Runs until an exit that is not an interruption.
static inline unsigned run_to_exit(struct machine* m) {
  for (;;) {
    const int answer = ioctl(m->vcpu, KVM_RUN, 0);
    if (answer == 0) return m->run->exit_reason;
    REQUIRE(errno == EINTR || errno == EAGAIN);
  }
}

// A test program is a table of cases, one of which is named on the command line.
struct test_case {
  const char* name;
  void (*run)(void);
};

static inline int run_case(int argc, char** argv, const struct test_case* cases) {
  for (; argc > 1 && cases->name != NULL; cases++) {
    if (strcmp(cases->name, argv[1]) != 0) continue;
    cases->run();
    return 0;
  }
  fprintf(stderr, "no such case\n");
  return 1;
}

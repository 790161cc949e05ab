// SPDX-License-Identifier: Apache-2.0
// A window of the program's memory that is lent to a guest, and whether the guest's page table
// still knows it: KVM's own statistics say so.
#pragma once

#include "machine.h"

enum { kTouched = 16, kWindowBytes = kTouched * kPage, kWindow = 0x800000 };

static struct machine m;
static uint64_t mapped_before;

// mov (%rbx), %rax; mov %rax, (%rbx); out %al, $0x10; jmp back
static const uint8_t kTouch[] = {0x48, 0x8b, 0x03, 0x48, 0x89, 0x03, 0xe6, 0x10, 0xeb, 0xf6};

// How many pages of 4 KiB the guest's page table maps, as /sys/kernel/debug or a stats reader sees.
static inline uint64_t mapped(void) {
  const int fd = ioctl(m.vm, KVM_GET_STATS_FD, 0);
  REQUIRE(fd >= 0);
  struct kvm_stats_header header;
  REQUIRE(pread(fd, &header, sizeof header, 0) == sizeof header);
  const size_t stride = sizeof(struct kvm_stats_desc) + header.name_size;
  for (uint32_t i = 0; i < header.num_desc; i++) {
    char bytes[256] __attribute__((aligned(8)));
    REQUIRE(stride <= sizeof bytes);
    REQUIRE(pread(fd, bytes, stride, header.desc_offset + (off_t)(i * stride)) == (ssize_t)stride);
    const struct kvm_stats_desc* about = (const struct kvm_stats_desc*)bytes;
    if (strcmp(about->name, "pages_4k") != 0) continue;
    uint64_t value = 0;
    REQUIRE(pread(fd, &value, sizeof value, header.data_offset + about->offset) == sizeof value);
    close(fd);
    return value;
  }
  REQUIRE(!"pages_4k");
  return 0;
}

static inline int run_at(uint64_t gpa) {
  struct kvm_regs r;
  REQUIRE(ioctl(m.vcpu, KVM_GET_REGS, &r) == 0);
  r.rbx = gpa;
  r.rip = kCode;
  REQUIRE(ioctl(m.vcpu, KVM_SET_REGS, &r) == 0);
  int answer;
  do {
    answer = ioctl(m.vcpu, KVM_RUN, 0);
  } while (answer == -1 && (errno == EINTR || errno == EAGAIN));
  return answer;
}

static inline uint64_t touch(unsigned page) {
  REQUIRE(run_at(kWindow + (uint64_t)page * kPage) == 0);
  REQUIRE(m.run->exit_reason == KVM_EXIT_IO);
  struct kvm_regs r;
  REQUIRE(ioctl(m.vcpu, KVM_GET_REGS, &r) == 0);
  return r.rax;
}

static inline void start(void) {
  create_machine(&m, kTouch, sizeof kTouch);
}

static inline uint8_t* page_of(void* inside) {
  return (uint8_t*)(((uintptr_t)inside + kPage - 1) & ~(uintptr_t)(kPage - 1));
}

// The guest uses every page of the window that begins at `at`.
static inline void lend(uint8_t* at) {
  static int lent;
  if (lent) REQUIRE(set_slot(m.vm, 1, kWindow, NULL, 0, 0) == 0);
  REQUIRE(set_slot(m.vm, 1, kWindow, at, kWindowBytes, 0) == 0);
  lent = 1;
  REQUIRE(run_at(kData) == 0);  // what every run touches is mapped
  mapped_before = mapped();
  for (unsigned i = 0; i < kTouched; i++) {
    memset(at + i * kPage, (int)(0x40 + i), kPage);
    REQUIRE((touch(i) & 0xff) == 0x40 + i);
  }
  REQUIRE(mapped() == mapped_before + kTouched);
}

static inline int seen(void) {
  return mapped() == mapped_before;
}
static inline void guest_finds_nothing(void) {
  REFUSES(run_at(kWindow), EFAULT);
}

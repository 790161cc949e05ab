// SPDX-License-Identifier: Apache-2.0
// Closes of a guest_memfd that libc makes itself: what reopens a stream, and a stream's end in a
// full table. Each is the last close, and the guest's next access finds no file. Also the engine's
// numbers beside the program's, and an inode without handles.
#define _GNU_SOURCE
#include "abi/kvm/uapi.h"
//
#include <dirent.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#include "guest_file.h"

enum { kGpa = 0x8000, kFilled = 0x5a };

static int file, vcpu;
static struct kvm_run* run;

static uint8_t* code;

// A VM with one page of code at 0x1000 and the file's private pages at 0x8000.
static void make_guest(void) {
  make_vm(KVM_X86_SW_PROTECTED_VM);
  code = mmap(NULL, kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  memcpy(code, (uint8_t[]){0xa0, 0x00, 0x80, 0xf4}, 4);         // al = [0x8000]; hlt
  memcpy(code + 0x10, (uint8_t[]){0xa2, 0x00, 0x80, 0xf4}, 4);  // [0x8000] = al; hlt
  REQUIRE(set_slot(vm_fd, 0, 0x1000, code, kPage, 0) == 0);
  file = create(kPages * kPage, 0);
  struct kvm_userspace_memory_region2 slot = {.slot = 1,
                                              .flags = KVM_MEM_GUEST_MEMFD,
                                              .guest_phys_addr = kGpa,
                                              .memory_size = kPages * kPage,
                                              .userspace_addr = UINT64_C(1) << 32,
                                              .guest_memfd = (uint32_t)file};
  REQUIRE(ioctl(vm_fd, KVM_SET_USER_MEMORY_REGION2, &slot) == 0);
  struct kvm_memory_attributes all = {
      .address = kGpa, .size = kPages * kPage, .attributes = KVM_MEMORY_ATTRIBUTE_PRIVATE};
  REQUIRE(ioctl(vm_fd, KVM_SET_MEMORY_ATTRIBUTES, &all) == 0);
  vcpu = ioctl(vm_fd, KVM_CREATE_VCPU, 0);
  run = mmap(NULL, kPage, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
  struct kvm_sregs sregs;
  REQUIRE(ioctl(vcpu, KVM_GET_SREGS, &sregs) == 0);
  sregs.cs.base = sregs.cs.selector = 0;
  REQUIRE(ioctl(vcpu, KVM_SET_SREGS, &sregs) == 0);
}
// What is in the guest's first private byte; -1: there is none.
static int guest_runs(uint64_t rip, uint64_t rax) {
  struct kvm_regs regs = {.rip = rip, .rax = rax, .rflags = 2};
  REQUIRE(ioctl(vcpu, KVM_SET_REGS, &regs) == 0);
  if (ioctl(vcpu, KVM_RUN, 0) != 0) return -1;
  REQUIRE(run->exit_reason == KVM_EXIT_HLT && ioctl(vcpu, KVM_GET_REGS, &regs) == 0);
  return (int)(regs.rax & 0xff);
}
static int guest_reads(void) {
  return guest_runs(0x1000, 0);
}
static void guest_writes(uint8_t value) {
  REQUIRE(guest_runs(0x1010, value) == value);
}

static void closes(void) {
  make_guest();
  guest_writes(kFilled);
  REQUIRE(freopen("/dev/null", "r+", fdopen(file, "r+")) != NULL);
  REQUIRE(guest_reads() == -1 && errno == EFAULT && run->exit_reason == KVM_EXIT_MEMORY_FAULT);
  make_guest();
  guest_writes(kFilled);
  errno = 0;
  REQUIRE(freopen(NULL, "r", fdopen(file, "r+")) == NULL && errno == ENXIO);
  REQUIRE(guest_reads() == -1 && errno == EFAULT);
}
static void closes_of_a_full_table(int by_reopening) {
  make_guest();
  guest_writes(kFilled);
  FILE* const stream = fdopen(file, "r+");
  const struct rlimit few = {64, 64};
  REQUIRE(setrlimit(RLIMIT_NOFILE, &few) == 0);
  while (dup(0) >= 0) {
  }
  REQUIRE(errno == EMFILE);
  if (by_reopening) {
    REQUIRE(freopen("/dev/null", "r+", stream) == NULL && errno == EMFILE);
  } else {
    REQUIRE(fclose(stream) == 0);
  }
  REQUIRE(guest_reads() == -1 && errno == EFAULT);
}
static void closes_full(void) {
  closes_of_a_full_table(0);
}
static void reopens_full(void) {
  closes_of_a_full_table(1);
}

// Descriptors that are in the table and not the program's.
static void engines(void) {
  make_guest();
  DIR* const all = opendir("/proc/self/fd");
  unsigned seen = 0;
  for (struct dirent* one = readdir(all); one != NULL; one = readdir(all)) {
    const int fd = atoi(one->d_name);
    if (one->d_name[0] == '.' || fcntl(fd, F_GETFD) >= 0) continue;
    REQUIRE(errno == EBADF);
    seen++;
    REFUSES(dup(fd), EBADF);
    REFUSES(dup2(fd, 60), EBADF);
    REFUSES(fcntl(fd, F_DUPFD, 0), EBADF);
    REFUSES(syscall(SYS_dup, fd), EBADF);
    REFUSES(close(fd), EBADF);
  }
  REQUIRE(seen >= 3);
}

// An inode without handles.
static void handles(void) {
  make_guest();
  struct {
    struct file_handle head;
    char body[128];
  } handle = {.head = {.handle_bytes = 128}};
  int mount;
  char name[32];
  snprintf(name, sizeof name, "/proc/self/fd/%d", file);
  REFUSES(name_to_handle_at(file, "", &handle.head, &mount, AT_EMPTY_PATH), EOPNOTSUPP);
  REFUSES(name_to_handle_at(AT_FDCWD, name, &handle.head, &mount, AT_SYMLINK_FOLLOW), EOPNOTSUPP);
  REFUSES(name_to_handle_at(open(name, O_PATH), "", &handle.head, &mount, AT_EMPTY_PATH),
          EOPNOTSUPP);
}

int main(int argc, char** argv) {
  static const struct test_case kCases[] = {
      {"closes", closes},   {"closes_full", closes_full}, {"reopens_full", reopens_full},
      {"engines", engines}, {"handles", handles},         {NULL, NULL}};
  return run_case(argc, argv, kCases);
}

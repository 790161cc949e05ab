// SPDX-License-Identifier: Apache-2.0
// A VM with files of private memory, and how they come to other processes.
#pragma once

#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "machine.h"

enum { kPages = 4, kPunch = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE };

static int kvm_fd, vm_fd;

static inline int make_vm(unsigned long type) {
  kvm_fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
  REQUIRE(kvm_fd >= 0);
  vm_fd = ioctl(kvm_fd, KVM_CREATE_VM, type);
  REQUIRE(vm_fd >= 0);
  return vm_fd;
}
static inline int create(uint64_t size, uint64_t flags) {
  struct kvm_create_guest_memfd asked = {.size = size, .flags = flags};
  memset(asked.reserved, 0xff, sizeof asked.reserved);  // not looked at
  return ioctl(vm_fd, KVM_CREATE_GUEST_MEMFD, &asked);
}

// What a process without the VM may do with the file.
static inline void use_elsewhere(int fd) {
  REQUIRE(fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, kPage) == 0);
  REQUIRE(fallocate(fd, kPunch, 0, kPage) == 0);
  REFUSES(fallocate(fd, FALLOC_FL_KEEP_SIZE, kPages * kPage, kPage), EINVAL);
  REQUIRE(mmap(NULL, kPage, PROT_READ, MAP_SHARED, fd, 0) == MAP_FAILED && errno == ENODEV);
  struct stat s;
  REQUIRE(fstat(fd, &s) == 0 && s.st_size == kPages * kPage && s.st_blocks == 0);
}

static inline void send_descriptor(int socket, int fd) {
  char byte = 0, control[CMSG_SPACE(sizeof fd)] = {0};
  struct iovec part = {&byte, 1};
  struct msghdr message = {
      .msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
  struct cmsghdr* const head = CMSG_FIRSTHDR(&message);
  head->cmsg_level = SOL_SOCKET;
  head->cmsg_type = SCM_RIGHTS;
  head->cmsg_len = CMSG_LEN(sizeof fd);
  memcpy(CMSG_DATA(head), &fd, sizeof fd);
  REQUIRE(sendmsg(socket, &message, 0) == 1);
}
static inline int receive_descriptor(int socket) {
  char byte = 0, control[CMSG_SPACE(sizeof(int))] = {0};
  struct iovec part = {&byte, 1};
  struct msghdr message = {
      .msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
  REQUIRE(recvmsg(socket, &message, 0) == 1);
  int fd = -1;
  memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof fd);
  return fd;
}
static inline void ends_well(pid_t child) {
  int status = -1;
  REQUIRE(waitpid(child, &status, 0) == child && status == 0);
}

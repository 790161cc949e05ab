// SPDX-License-Identifier: Apache-2.0
// A client of /dev/iommu in plain C: the requests of the public ABI and of the test command.
#pragma once

#include "abi/iommufd/test_uapi.h"
#include "abi/iommufd/uapi.h"
//
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define REQUIRE(ok)                                                                 \
  do {                                                                              \
    if (!(ok)) {                                                                    \
      const int saved = errno;                                                      \
      fprintf(stderr, "%s:%d: %s (errno %d, %s)\n", __FILE__, __LINE__, #ok, saved, \
              strerror(saved));                                                     \
      _exit(1);                                                                     \
    }                                                                               \
  } while (0)
#define REFUSES(call, expected)                   \
  do {                                            \
    errno = 0;                                    \
    REQUIRE((call) == -1 && errno == (expected)); \
  } while (0)

enum { kPage = 4096, kAperture = 1 << 24 };
enum { kBoth = IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE };

struct mock_device {
  uint32_t test_device, hwpt, device;
};

static inline uint32_t ioas_of(int iommu) {
  struct iommu_ioas_alloc cmd = {.size = sizeof cmd};
  REQUIRE(ioctl(iommu, IOMMU_IOAS_ALLOC, &cmd) == 0);
  return cmd.out_ioas_id;
}
static inline int destroy(int iommu, uint32_t id) {
  struct iommu_destroy cmd = {.size = sizeof cmd, .id = id};
  return ioctl(iommu, IOMMU_DESTROY, &cmd);
}
static inline int map_at(int iommu, uint32_t ioas, const void* at, uint64_t bytes, uint64_t iova) {
  struct iommu_ioas_map cmd = {.size = sizeof cmd,
                               .flags = kBoth | IOMMU_IOAS_MAP_FIXED_IOVA,
                               .ioas_id = ioas,
                               .user_va = (uintptr_t)at,
                               .length = bytes,
                               .iova = iova};
  return ioctl(iommu, IOMMU_IOAS_MAP, &cmd);
}
static inline int unmap_at(int iommu, uint32_t ioas, uint64_t iova, uint64_t bytes) {
  struct iommu_ioas_unmap cmd = {
      .size = sizeof cmd, .ioas_id = ioas, .iova = iova, .length = bytes};
  return ioctl(iommu, IOMMU_IOAS_UNMAP, &cmd);
}
static inline int test_op(int iommu, uint32_t op, uint32_t id, struct iommu_test_cmd* cmd) {
  cmd->size = sizeof *cmd;
  cmd->op = op;
  cmd->id = id;
  return ioctl(iommu, IOMMU_TEST_CMD, cmd);
}
static inline struct mock_device device_on(int iommu, uint32_t pt) {
  struct iommu_test_cmd cmd = {0};
  REQUIRE(test_op(iommu, IOMMU_TEST_OP_MOCK_DOMAIN_FLAGS, pt, &cmd) == 0);
  return (struct mock_device){cmd.mock_domain_flags.out_stdev_id, cmd.mock_domain_flags.out_hwpt_id,
                              cmd.mock_domain_flags.out_idev_id};
}
static inline int replace(int iommu, uint32_t test_device, uint32_t pt) {
  struct iommu_test_cmd cmd = {.mock_domain_replace = {.pt_id = pt}};
  return test_op(iommu, IOMMU_TEST_OP_MOCK_DOMAIN_REPLACE, test_device, &cmd);
}
// Without driver data where `data` is null.
static inline uint32_t hwpt_of(int iommu, uint32_t device, uint32_t pt, uint32_t flags,
                               uint32_t fault, struct iommu_hwpt_selftest* data) {
  struct iommu_hwpt_alloc cmd = {.size = sizeof cmd,
                                 .flags = flags,
                                 .dev_id = device,
                                 .pt_id = pt,
                                 .data_type = data ? IOMMU_HWPT_DATA_SELFTEST : 0,
                                 .data_len = data ? sizeof *data : 0,
                                 .data_uptr = (uintptr_t)data,
                                 .fault_id = fault};
  REQUIRE(ioctl(iommu, IOMMU_HWPT_ALLOC, &cmd) == 0);
  return cmd.out_hwpt_id;
}
// Through an access, which is a descriptor: bytes at an IOVA, as a device without tables sees them.
static inline int access_of(int iommu, uint32_t ioas) {
  struct iommu_test_cmd cmd = {0};
  REQUIRE(test_op(iommu, IOMMU_TEST_OP_CREATE_ACCESS, ioas, &cmd) == 0);
  return (int)cmd.create_access.out_access_fd;
}
static inline int access_rw(int iommu, int access, uint64_t iova, void* bytes, uint64_t size,
                            uint32_t flags) {
  struct iommu_test_cmd cmd = {
      .access_rw = {.iova = iova, .length = size, .uptr = (uintptr_t)bytes, .flags = flags}};
  return test_op(iommu, IOMMU_TEST_OP_ACCESS_RW, (uint32_t)access, &cmd);
}

static inline void send_descriptors(int socket, const int* fds, unsigned count) {
  char byte = 0, control[CMSG_SPACE(4 * sizeof(int))] = {0};
  struct iovec part = {&byte, 1};
  struct msghdr message = {.msg_iov = &part,
                           .msg_iovlen = 1,
                           .msg_control = control,
                           .msg_controllen = CMSG_SPACE(count * sizeof(int))};
  struct cmsghdr* const head = CMSG_FIRSTHDR(&message);
  head->cmsg_level = SOL_SOCKET;
  head->cmsg_type = SCM_RIGHTS;
  head->cmsg_len = CMSG_LEN(count * sizeof(int));
  memcpy(CMSG_DATA(head), fds, count * sizeof(int));
  REQUIRE(sendmsg(socket, &message, 0) == 1);
}
static inline void receive_descriptors(int socket, int* fds, unsigned count) {
  char byte = 0, control[CMSG_SPACE(4 * sizeof(int))] = {0};
  struct iovec part = {&byte, 1};
  struct msghdr message = {
      .msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
  REQUIRE(recvmsg(socket, &message, 0) == 1);
  REQUIRE(CMSG_FIRSTHDR(&message)->cmsg_len == CMSG_LEN(count * sizeof(int)));
  memcpy(fds, CMSG_DATA(CMSG_FIRSTHDR(&message)), count * sizeof(int));
}
static inline void ends_well(pid_t child) {
  int status = -1;
  REQUIRE(waitpid(child, &status, 0) == child && status == 0);
}
// This program once more, which knows nothing but the number it is given.
static inline pid_t start_again(const char* how, int socket) {
  const pid_t child = fork();
  REQUIRE(child >= 0);
  if (child != 0) return child;
  char number[12];
  snprintf(number, sizeof number, "%d", socket);
  execl("/proc/self/exe", "client", how, number, (char*)NULL);
  _exit(127);
}

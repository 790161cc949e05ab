// SPDX-License-Identifier: Apache-2.0
// Processes that share an iommufd: one that is killed in the middle of what it asks for, one of
// another PID namespace, and a thread that fills its process's memory.
//   kills     a child maps, unmaps and copies without end and is killed, again and again
//   space     the child is of a PID namespace of its own; prints "no namespace" where none is to be
//   had handler   the page a map waits for is filled by a thread that asks the same iommufd first
#define _GNU_SOURCE
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "iommufd_client.h"

enum { kPages = 64, kMine = 16 };

static int pinned_times(int fd, const void* at, uint64_t bytes, unsigned times) {
  struct iommu_test_cmd cmd = {
      .check_refs = {.length = bytes, .uptr = (uintptr_t)at, .refs = times}};
  return test_op(fd, IOMMU_TEST_OP_MD_CHECK_REFS, 0, &cmd) == 0;
}

static void* memory_of(size_t bytes) {
  void* const at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  REQUIRE(at != MAP_FAILED);
  return at;
}

static void work_without_end(int fd, uint32_t ioas, uint32_t plain, void* at) {
  for (;;) {
    map_at(fd, ioas, at, kPages * 4096, kAperture);
    unmap_at(fd, ioas, kAperture, kPages * 4096);
    map_at(fd, plain, at, 4096, kAperture);
    struct iommu_ioas_copy copy = {.size = sizeof(copy),
                                   .flags = kBoth | IOMMU_IOAS_MAP_FIXED_IOVA,
                                   .dst_ioas_id = ioas,
                                   .src_ioas_id = plain,
                                   .length = 4096,
                                   .dst_iova = kAperture + (900 << 12),
                                   .src_iova = kAperture};
    ioctl(fd, IOMMU_IOAS_COPY, &copy);
    unmap_at(fd, plain, kAperture, 4096);
    unmap_at(fd, ioas, kAperture + (900 << 12), 4096);
  }
}

static void kills(int fd) {
  const uint32_t ioas = ioas_of(fd), plain = ioas_of(fd);
  device_on(fd, ioas);
  void *const theirs = memory_of(kPages * 4096), *const mine = memory_of(kMine * 4096);
  memset(theirs, 1, kPages * 4096);
  memset(mine, 2, kMine * 4096);
  REQUIRE(map_at(fd, ioas, mine, kMine * 4096, kAperture + (512 << 12)) == 0);
  for (int round = 0; round < 30; ++round) {
    int ends[2];
    REQUIRE(pipe(ends) == 0);
    const pid_t child = fork();
    if (child == 0) {
      REQUIRE(write(ends[1], "", 1) == 1);
      work_without_end(fd, ioas, plain, theirs);
    }
    char byte;
    REQUIRE(read(ends[0], &byte, 1) == 1);
    usleep(500 + (round * 7919) % 3000);
    REQUIRE(kill(child, SIGKILL) == 0 && waitpid(child, NULL, 0) == child);
    REQUIRE(map_at(fd, ioas, mine, 4096, kAperture + (1024 << 12)) == 0);
    REQUIRE(unmap_at(fd, ioas, kAperture + (1024 << 12), 4096) == 0);
    REQUIRE(pinned_times(fd, mine, kMine * 4096, 1));
    // What it had mapped whole is there, and can be taken away.
    unmap_at(fd, ioas, kAperture, kPages * 4096);
    unmap_at(fd, plain, kAperture, 4096);
    unmap_at(fd, ioas, kAperture + (900 << 12), 4096);
    close(ends[0]);
    close(ends[1]);
  }
  REQUIRE(unmap_at(fd, ioas, 0, ~0ull) == 0);
  REQUIRE(pinned_times(fd, mine, kMine * 4096, 0));
}

static int space(int fd) {
  const uint32_t ioas = ioas_of(fd);
  device_on(fd, ioas);
  if (unshare(CLONE_NEWPID) != 0) return 0;
  const pid_t child = fork();
  if (child == 0) {
    for (;;) {
      const uint32_t own = ioas_of(fd);
      REQUIRE(destroy(fd, own) == 0);
    }
  }
  const size_t bytes = 16 << 20;
  for (int round = 0; round < 4; ++round) {
    void* const at = memory_of(bytes);
    madvise(at, bytes, MADV_NOHUGEPAGE);
    REQUIRE(map_at(fd, ioas, at, bytes, kAperture) == 0);
    REQUIRE(unmap_at(fd, ioas, kAperture, bytes) == 0);
    munmap(at, bytes);
  }
  int status = 0;
  REQUIRE(waitpid(child, &status, WNOHANG) == 0);
  REQUIRE(kill(child, SIGKILL) == 0 && waitpid(child, &status, 0) == child);
  REQUIRE(destroy(fd, ioas_of(fd)) == 0);
  return 1;
}

static int uffd, shared_fd;

static void* fill(void* page) {
  for (int i = 0; i < 3; ++i) {
    struct pollfd wait = {uffd, POLLIN, 0};
    struct uffd_msg message;
    REQUIRE(poll(&wait, 1, 10000) == 1);
    REQUIRE(read(uffd, &message, sizeof(message)) == sizeof(message));
    REQUIRE(destroy(shared_fd, ioas_of(shared_fd)) == 0);
    struct uffdio_copy copy = {
        .dst = message.arg.pagefault.address & ~4095ull, .src = (uintptr_t)page, .len = 4096};
    REQUIRE(ioctl(uffd, UFFDIO_COPY, &copy) == 0);
  }
  return NULL;
}

static int handler(int fd) {
  const uint32_t ioas = ioas_of(fd);
  device_on(fd, ioas);
  shared_fd = fd;
  unsigned char *const page = memory_of(4096), *const at = memory_of(3 * 4096);
  memset(page, 0x5a, 4096);
  uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
  if (uffd < 0) uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | 1);
  if (uffd < 0) return 0;
  struct uffdio_api api = {.api = UFFD_API};
  REQUIRE(ioctl(uffd, UFFDIO_API, &api) == 0);
  struct uffdio_register watch = {.range = {(uintptr_t)at, 3 * 4096},
                                  .mode = UFFDIO_REGISTER_MODE_MISSING};
  REQUIRE(ioctl(uffd, UFFDIO_REGISTER, &watch) == 0);
  pthread_t thread;
  REQUIRE(pthread_create(&thread, NULL, fill, page) == 0);
  REQUIRE(map_at(fd, ioas, at, 3 * 4096, kAperture) == 0);
  REQUIRE(pthread_join(thread, NULL) == 0);
  REQUIRE(at[0] == 0x5a && pinned_times(fd, at, 3 * 4096, 1));
  return 1;
}

int main(int count, char** args) {
  REQUIRE(count == 2);
  alarm(30);
  const int fd = open("/dev/iommu", O_RDWR);
  REQUIRE(fd >= 0);
  int there = 1;
  if (strcmp(args[1], "kills") == 0) kills(fd);
  if (strcmp(args[1], "space") == 0) there = space(fd);
  if (strcmp(args[1], "handler") == 0) there = handler(fd);
  puts(there ? "done" : "not to be had here");
  return 0;
}

// SPDX-License-Identifier: Apache-2.0
// Processes that share an iommufd and end without closing anything: what their descriptors were
// users of is free again, as where the kernel closes them, and not before another one has let go.
// Before that: who opens one by its name in /proc shares nothing.
#define _GNU_SOURCE
#include <linux/openat2.h>
#include <signal.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "iommufd_client.h"

static uint32_t pin_page(int fd, int access) {
  struct iommu_test_cmd cmd = {
      .access_pages = {.iova = kAperture, .length = kPage, .flags = MOCK_FLAGS_ACCESS_WRITE}};
  REQUIRE(test_op(fd, IOMMU_TEST_OP_ACCESS_PAGES, (uint32_t)access, &cmd) == 0);
  return cmd.access_pages.out_access_pages_id;
}
static int unpin_page(int fd, int access, uint32_t number) {
  struct iommu_test_cmd cmd = {.destroy_access_pages = {.access_pages_id = number}};
  return test_op(fd, IOMMU_TEST_OP_DESTROY_ACCESS_PAGES, (uint32_t)access, &cmd);
}
static int pinning_access_of(int fd, uint32_t ioas) {
  struct iommu_test_cmd cmd = {
      .create_access = {.flags = MOCK_FLAGS_ACCESS_CREATE_NEEDS_PIN_PAGES}};
  REQUIRE(test_op(fd, IOMMU_TEST_OP_CREATE_ACCESS, ioas, &cmd) == 0);
  return (int)cmd.create_access.out_access_fd;
}
static int pinned_times(int fd, const void* at, unsigned times) {
  struct iommu_test_cmd cmd = {
      .check_refs = {.length = kPage, .uptr = (uintptr_t)at, .refs = times}};
  return test_op(fd, IOMMU_TEST_OP_MD_CHECK_REFS, 0, &cmd) == 0;
}
static struct iommu_fault_alloc fault_queue(int fd) {
  struct iommu_fault_alloc cmd = {.size = sizeof cmd};
  REQUIRE(ioctl(fd, IOMMU_FAULT_QUEUE_ALLOC, &cmd) == 0);
  return cmd;
}

// An access of a child that ends: by itself or killed, with pins or without, alone or beside a
// device's.
static void accesses(int fd, void* at) {
  for (int how = 0; how < 8; ++how) {
    const uint32_t ioas = ioas_of(fd);
    REQUIRE(map_at(fd, ioas, at, kPage, kAperture) == 0);
    struct mock_device device = {0};
    if (how & 4) device = device_on(fd, ioas);
    const pid_t child = fork();
    if (child == 0) {
      const int access = pinning_access_of(fd, ioas);
      if (how & 1) pin_page(fd, access);
      if (how & 2) raise(SIGKILL);
      _exit(0);
    }
    int status = 0;
    REQUIRE(waitpid(child, &status, 0) == child && status == (how & 2 ? SIGKILL : 0));
    if (how & 4) {
      REQUIRE(destroy(fd, device.test_device) == 0);
    }
    REQUIRE(unmap_at(fd, ioas, 0, ~0ull) == 0);
    REQUIRE(pinned_times(fd, at, 0));
    REQUIRE(destroy(fd, ioas) == 0);
  }
}

// One that the child has, too, goes with the last of them.
static void inherited(int fd) {
  int ends[2];
  REQUIRE(pipe(ends) == 0);
  const uint32_t ioas = ioas_of(fd);
  const int access = access_of(fd, ioas);
  const uint32_t queue = fault_queue(fd).out_fault_id;  // its descriptor: access + 1
  const pid_t child = fork();
  if (child == 0) {
    char byte;
    close(ends[1]);
    _exit(read(ends[0], &byte, 1) == 0 ? 0 : 1);
  }
  REQUIRE(close(access) == 0 && close(access + 1) == 0);
  REFUSES(destroy(fd, ioas), EBUSY);
  REFUSES(destroy(fd, queue), EBUSY);
  close(ends[1]);
  ends_well(child);
  close(ends[0]);
  REQUIRE(destroy(fd, ioas) == 0);
  REQUIRE(destroy(fd, queue) == 0);
}

// It is the child's as well as its maker's: each of them pins by it, unpins what the other pinned,
// and lets go of that where it unmaps.
static void used_by_children(int fd, char* at) {
  const uint32_t ioas = ioas_of(fd);
  REQUIRE(map_at(fd, ioas, at, kPage, kAperture) == 0);
  const int access = pinning_access_of(fd, ioas);
  const uint32_t own = pin_page(fd, access);
  int ends[2];
  REQUIRE(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0);
  const pid_t child = fork();
  if (child == 0) {
    char byte = 7;
    REQUIRE(access_rw(fd, access, kAperture, &byte, 1, MOCK_ACCESS_RW_WRITE) == 0);
    REQUIRE(access_rw(fd, access, kAperture + 1, &byte, 1, 0) == 0 && byte == at[1]);
    REQUIRE(unpin_page(fd, access, own) == 0);
    REFUSES(unpin_page(fd, access, own), ENOENT);
    const uint32_t number = pin_page(fd, access);
    REQUIRE(write(ends[1], &number, sizeof number) == sizeof number);
    REQUIRE(read(ends[1], &byte, 1) == 1);
    REQUIRE(unmap_at(fd, ioas, 0, ~0ull) == 0);  // the maker has pinned, and lives
    REQUIRE(map_at(fd, ioas, at, kPage, kAperture) == 0);
    pin_page(fd, access);
    REQUIRE(write(ends[1], &number, sizeof number) == sizeof number);
    REQUIRE(read(ends[1], &byte, 1) == 1);
    _exit(0);
  }
  uint32_t number = 0;
  REQUIRE(read(ends[0], &number, sizeof number) == sizeof number && at[0] == 7);
  REQUIRE(unpin_page(fd, access, number) == 0);
  pin_page(fd, access);
  REQUIRE(write(ends[0], "", 1) == 1);
  REQUIRE(read(ends[0], &number, sizeof number) == sizeof number);
  REQUIRE(unmap_at(fd, ioas, 0, ~0ull) == 0);  // the child has pinned, and lives
  REQUIRE(pinned_times(fd, at, 0));
  REQUIRE(write(ends[0], "", 1) == 1);
  ends_well(child);
  REQUIRE(close(access) == 0 && close(ends[0]) == 0 && close(ends[1]) == 0);
  REQUIRE(destroy(fd, ioas) == 0);
}

// What a child made and sent before it ended is used by whoever receives it, also of a message
// nobody has read yet.
static void sent(int fd) {
  int ends[2];
  REQUIRE(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0);
  const uint32_t ioas = ioas_of(fd);
  const pid_t child = fork();
  if (child == 0) {
    const struct iommu_fault_alloc made = fault_queue(fd);
    const int fds[] = {(int)made.out_fault_fd, access_of(fd, ioas)};
    send_descriptors(ends[1], fds, 2);
    _exit((int)made.out_fault_id);
  }
  int status = 0;
  REQUIRE(waitpid(child, &status, 0) == child);
  const uint32_t queue = (uint32_t)WEXITSTATUS(status);
  REFUSES(destroy(fd, queue), EBUSY);
  REFUSES(destroy(fd, ioas), EBUSY);
  int fds[2];
  receive_descriptors(ends[0], fds, 2);
  REFUSES(destroy(fd, queue), EBUSY);
  REFUSES(destroy(fd, ioas), EBUSY);
  REQUIRE(fcntl(fds[0], F_SETFL, O_NONBLOCK) == 0);
  char byte[64];
  REQUIRE(read(fds[0], byte, sizeof byte) <= 0);
  REFUSES(destroy(fd, queue), EBUSY);
  for (int i = 0; i < 2; ++i) REQUIRE(close(fds[i]) == 0);
  REQUIRE(destroy(fd, queue) == 0);
  REQUIRE(destroy(fd, ioas) == 0);
  // Of one that nobody else has: its number is free, and a new one of that number is another.
  const pid_t alone = fork();
  if (alone == 0) _exit((int)fault_queue(fd).out_fault_id);
  REQUIRE(waitpid(alone, &status, 0) == alone);
  REQUIRE(destroy(fd, (uint32_t)WEXITSTATUS(status)) == 0);
  const struct iommu_fault_alloc again = fault_queue(fd);
  REFUSES(destroy(fd, again.out_fault_id), EBUSY);
  REQUIRE(close((int)again.out_fault_fd) == 0);
  REQUIRE(destroy(fd, again.out_fault_id) == 0);
  close(ends[0]);
  close(ends[1]);
}

// By its name in /proc the device is opened, not the iommufd.
static void opened_again(int fd) {
  const uint32_t ioas = ioas_of(fd);
  char name[64];
  snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
  const int folder = open("/proc/self/fd", O_RDONLY | O_DIRECTORY);
  REQUIRE(folder >= 0);
  FILE* const stream = fopen(name, "r+");
  REQUIRE(stream != NULL);
  const struct open_how how = {.flags = O_RDWR};
  const int again[] = {open(name, O_RDWR | O_CLOEXEC), openat(folder, name + 14, O_RDONLY),
                       (int)syscall(SYS_openat2, folder, name + 14, &how, sizeof how),
                       fileno(stream)};
  REQUIRE(fcntl(again[0], F_GETFD) == FD_CLOEXEC && fcntl(again[1], F_GETFD) == 0);
  for (int i = 0; i < 4; ++i) {
    REQUIRE(again[i] >= 0);
    REFUSES(destroy(again[i], ioas), ENOENT);
    REQUIRE(ioas_of(again[i]) == ioas);  // its first
    if (i < 3) REQUIRE(close(again[i]) == 0);
  }
  REQUIRE(fclose(stream) == 0 && close(folder) == 0 && destroy(fd, ioas) == 0);
  // The kernel decides before it asks the file.
  REFUSES(open(name, O_RDWR | O_DIRECTORY), ENOTDIR);
  REFUSES(open(name, O_RDWR | O_NOFOLLOW), ELOOP);
  REFUSES(open(name, O_RDWR | O_CREAT | O_EXCL, 0600), EEXIST);
  const struct open_how no_links = {.flags = O_RDWR, .resolve = RESOLVE_NO_MAGICLINKS};
  REFUSES(syscall(SYS_openat2, AT_FDCWD, name, &no_links, sizeof no_links), ELOOP);
}

int main(void) {
  alarm(30);
  const int fd = open("/dev/iommu", O_RDWR);
  REQUIRE(fd >= 0);
  opened_again(fd);
  void* const at = mmap(NULL, kPage, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  REQUIRE(at != MAP_FAILED);
  accesses(fd, at);
  inherited(fd);
  used_by_children(fd, at);
  sent(fd);
  puts("done");
  return 0;
}

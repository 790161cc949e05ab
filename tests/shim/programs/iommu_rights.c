// SPDX-License-Identifier: Apache-2.0
// Who may lock memory without limit and gives that up is charged for the next page it maps; rights
// in a user namespace of one's own are none.
#define _GNU_SOURCE
#include <linux/capability.h>
#include <sched.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#include "iommufd_client.h"

enum { kLimit = 8, kPages = 32 };
int capset(void* head, const void* from);

static struct __user_cap_header_struct head = {_LINUX_CAPABILITY_VERSION_3, 0};
static struct __user_cap_data_struct none[2];

static void by_capset(void) {
  REQUIRE(capset(&head, none) == 0);
}
static void by_syscall(void) {
  REQUIRE(syscall(SYS_capset, &head, none) == 0);
}
static void by_user(void) {
  REQUIRE(setresuid(65534, 65534, 65534) == 0);
}
static void by_effective_user(void) {
  REQUIRE(seteuid(65534) == 0);
}
static void by_user_syscall(void) {
  REQUIRE(syscall(SYS_setuid, 65534) == 0);
}

// A page at a time; answers how many it may.
static unsigned map_pages(int fd, uint32_t ioas, const uint8_t* at, unsigned from) {
  unsigned i = from;
  while (i < kPages && map_at(fd, ioas, at + i * kPage, kPage, kAperture + i * kPage) == 0) ++i;
  REQUIRE(i == kPages || errno == ENOMEM);
  return i - from;
}

static void gives_up(int fd, void (*how)(void)) {
  const pid_t child = fork();
  if (child != 0) return ends_well(child);
  const uint32_t ioas = ioas_of(fd);
  device_on(fd, ioas);
  uint8_t* const at =
      mmap(NULL, kPages * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  REQUIRE(at != MAP_FAILED);
  memset(at, 1, kPages * kPage);
  const struct rlimit limit = {kLimit * kPage, kLimit * kPage};
  REQUIRE(setrlimit(RLIMIT_MEMLOCK, &limit) == 0);
  REQUIRE(map_pages(fd, ioas, at, kPages - 4) == 4);
  REQUIRE(unmap_at(fd, ioas, 0, ~0ull) == 0);
  how();
  REQUIRE(map_pages(fd, ioas, at, 0) == kLimit);
  REQUIRE(unmap_at(fd, ioas, 0, ~0ull) == 0);
  _exit(0);
}

// Before a device is opened, and after its first pages were pinned (`fd`) with other rights.
static void in_own_namespace(int fd) {
  const pid_t child = fork();
  if (child != 0) return ends_well(child);
  const uint32_t before = fd < 0 ? 0 : ioas_of(fd);
  uint8_t* const at =
      mmap(NULL, kPages * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  REQUIRE(at != MAP_FAILED);
  memset(at, 1, kPages * kPage);
  if (fd >= 0) device_on(fd, before);
  const struct rlimit limit = {kLimit * kPage, kLimit * kPage};
  REQUIRE(setrlimit(RLIMIT_MEMLOCK, &limit) == 0);
  const unsigned had = fd < 0 ? 0 : map_pages(fd, before, at, kPages - 4);
  REQUIRE(unshare(CLONE_NEWUSER) == 0);
  struct __user_cap_data_struct has[2] = {{0}};
  REQUIRE(syscall(SYS_capget, &head, has) == 0 && (has[0].effective & 1u << CAP_IPC_LOCK) != 0);
  const int user = fd >= 0 ? fd : open("/dev/iommu", O_RDWR);
  REQUIRE(user >= 0);
  const uint32_t ioas = ioas_of(user);
  device_on(user, ioas);
  const unsigned maps = map_pages(user, ioas, at, 0);
  REQUIRE(maps == kLimit || maps == kLimit - had);  // who had no right before was charged then
  REQUIRE(unmap_at(user, ioas, 0, ~0ull) == 0);
  if (had != 0) REQUIRE(unmap_at(fd, before, 0, ~0ull) == 0);
  _exit(0);
}
static int has_namespaces(void) {
  const pid_t child = fork();
  if (child == 0) _exit(unshare(CLONE_NEWUSER) == 0 || (errno != EPERM && errno != ENOSPC));
  int status = 0;
  REQUIRE(waitpid(child, &status, 0) == child && WIFEXITED(status));
  return WEXITSTATUS(status);
}

int main(int argc, char** argv) {
  alarm(30);
  if (argc == 2 && strcmp(argv[1], "namespace") == 0) {
    if (!has_namespaces()) return puts("not to be had here"), 0;
    in_own_namespace(-1);
    const int before = open("/dev/iommu", O_RDWR);
    REQUIRE(before >= 0);
    in_own_namespace(before);
    puts("done");
    return 0;
  }
  const int fd = open("/dev/iommu", O_RDWR);
  REQUIRE(fd >= 0);
  gives_up(fd, by_capset);
  gives_up(fd, by_syscall);
  gives_up(fd, by_user);
  gives_up(fd, by_effective_user);
  gives_up(fd, by_user_syscall);
  puts("done");
  return 0;
}

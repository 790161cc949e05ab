// SPDX-License-Identifier: Apache-2.0
// A program that has opened its devices and then locks itself in: another root, another user, no
// more descriptors. What it opened goes on as before.
#define _GNU_SOURCE
#include <grp.h>
#include <linux/types.h>
#include <sched.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "abi/hmm/uapi.h"
#include "deny.h"
#include "machine.h"

enum { kPages = 16, kBytes = kPages * kPage };
static int device;
static uint8_t* memory;
static uint8_t bounce[kBytes];

static uint64_t ask(unsigned long request, uint8_t* at, uint64_t pages) {
  struct hmm_dmirror_cmd cmd = {.addr = (uintptr_t)at, .ptr = (uintptr_t)bounce, .npages = pages};
  REQUIRE(ioctl(device, request, &cmd) == 0);
  return cmd.cpages;
}

static void expect_bytes(const uint8_t* at, int byte) {
  for (int i = 0; i < kBytes; i++) REQUIRE(at[i] == byte);
}

static void use_the_device(int byte) {
  memset(memory, byte, kBytes);
  REQUIRE(ask(HMM_DMIRROR_MIGRATE_TO_DEV, memory, kPages) == kPages);
  expect_bytes(memory, byte);
  REQUIRE(ask(HMM_DMIRROR_READ, memory, kPages) == kPages);
  expect_bytes(bounce, byte);
  ask(HMM_DMIRROR_SNAPSHOT, memory, kPages);
  REQUIRE(ask(HMM_DMIRROR_EXCLUSIVE, memory, kPages) == kPages);
  memory[0] = 1;
  REQUIRE(madvise(memory, kBytes, MADV_DONTNEED) == 0);
  expect_bytes(memory, 0);
}

// Whoever may not do it as it is may do it as the root of a name space of its own.
static void become_root(void) {
  if (geteuid() == 0) return;
  if (unshare(CLONE_NEWUSER) == 0) return;
  puts("skipped: needs root, or user name spaces");
  exit(0);
}

static void another_root(void) {
  become_root();
  char name[] = "/tmp/stagetwo-root.XXXXXX";
  REQUIRE(mkdtemp(name) != NULL);
  const int above = open("/tmp", O_PATH | O_DIRECTORY | O_CLOEXEC);
  const int answer = chroot(name);
  REQUIRE(chdir("/") == 0);
  REQUIRE(unlinkat(above, strrchr(name, '/') + 1, AT_REMOVEDIR) == 0);
  close(above);
  REQUIRE(answer == 0);
}
static void another_user(void) {
  if (geteuid() != 0) {
    puts("skipped: needs root (setresuid)");
    exit(0);
  }
  REQUIRE(setgroups(0, NULL) == 0);
  REQUIRE(setresgid(65534, 65534, 65534) == 0);
  REQUIRE(setresuid(65534, 65534, 65534) == 0);
}
static void no_descriptors(void) {
  const struct rlimit none = {0, 0};
  REQUIRE(setrlimit(RLIMIT_NOFILE, &none) == 0);
}

int main(int argc, char** argv) {
  REQUIRE(argc >= 2);
  if (argc > 2) deny_userfaultfd();
  device = open("/dev/hmm_dmirror0", O_RDWR);
  REQUIRE(device >= 0);
  memory = mmap(NULL, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  REQUIRE(memory != MAP_FAILED);
  if (strcmp(argv[1], "root") == 0) another_root();
  if (strcmp(argv[1], "user") == 0) another_user();
  if (strcmp(argv[1], "descriptors") == 0) no_descriptors();
  use_the_device(3);
  // Its children were not there when the device was opened.
  memset(memory, 4, kBytes);
  REQUIRE(ask(HMM_DMIRROR_MIGRATE_TO_DEV, memory, kPages) == kPages);
  const pid_t child = fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    expect_bytes(memory, 4);
    _exit(0);
  }
  int status = -1;
  REQUIRE(waitpid(child, &status, 0) == child && status == 0);
  expect_bytes(memory, 4);
  return 0;
}

// SPDX-License-Identifier: Apache-2.0
// Bytes taken out of a file that a guest has as its memory, by every name there is for it. The
// guest's page table has forgotten them when the call returns.
#define _GNU_SOURCE
#include <linux/falloc.h>
#include <linux/openat2.h>
#include <linux/types.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "abi/hmm/uapi.h"
#include "lent.h"

static char path[64];
static int file;
static uint8_t* at;

static void make_file(int flags) {
  strcpy(path, "/tmp/stagetwo_file_changes_XXXXXX");
  file = mkstemp(path);
  REQUIRE(file >= 0);
  REQUIRE(ftruncate(file, kWindowBytes) == 0);
  at = mmap(NULL, kWindowBytes, PROT_READ | PROT_WRITE, flags, file, 0);
  REQUIRE(at != MAP_FAILED);
}
static void remove_file(void) {
  REQUIRE(munmap(at, kWindowBytes) == 0);
  REQUIRE(close(file) == 0 && unlink(path) == 0);
}

static int open_raw_how(void) {
  const struct open_how how = {.flags = O_WRONLY | O_TRUNC};
  return (int)syscall(SYS_openat2, AT_FDCWD, path, &how, sizeof how);
}
static int close_stream(FILE* stream) {
  return stream == NULL ? -1 : fclose(stream);
}
static int reopen_stream(void) {
  FILE* const stream = fopen("/dev/null", "r");
  return stream == NULL ? -1 : close_stream(freopen(path, "w", stream));
}
static int second_descriptor(int way) {
  const int other = open(path, O_RDWR);
  REQUIRE(other >= 0);
  const int result = way == 0 ? ftruncate(other, 0) : (int)syscall(SYS_ftruncate, other, 0);
  close(other);
  return result;
}

// Every way to end a file earlier; 0: it worked.
static int shorten(unsigned way) {
  switch (way) {
    case 0:
      return truncate(path, 0);
    case 1:
      return close(open(path, O_WRONLY | O_TRUNC));
    case 2:
      return close(openat(AT_FDCWD, path, O_RDWR | O_TRUNC | O_CREAT, 0600));
    case 3:
      return close(creat(path, 0600));
    case 4:
      return close_stream(fopen(path, "w"));
    case 5:
      return close_stream(fopen(path, "w+e"));
    case 6:
      return reopen_stream();
    case 7:
      return (int)syscall(SYS_truncate, path, 0);
    case 8:
      return close((int)syscall(SYS_open, path, O_WRONLY | O_TRUNC, 0));
    case 9:
      return close((int)syscall(SYS_creat, path, 0600));
    case 10:
      return close(open_raw_how());
    case 11:
      return second_descriptor(0);
    case 12:
      return second_descriptor(1);
    default:
      return 1;
  }
}

static void shortened_by(int flags) {
  start();
  for (unsigned way = 0; way <= 12; way++) {
    make_file(flags);
    lend(at);
    REQUIRE(shorten(way) == 0);
    if (!seen()) fprintf(stderr, "way %u\n", way);
    REQUIRE(seen());
    guest_finds_nothing();
    REQUIRE(ftruncate(file, kWindowBytes) == 0);
    REQUIRE(touch(3) == 0);
    remove_file();
  }
}
static void shortened(void) {
  shortened_by(MAP_SHARED);
}
static void shortened_under_private_memory(void) {
  shortened_by(MAP_PRIVATE);
}

// What a refused call would have taken is still there.
static void refused(void) {
  start();
  make_file(MAP_SHARED);
  lend(at);
  REFUSES(truncate(path, -1), EINVAL);
  REFUSES(open(path, O_WRONLY | O_TRUNC | O_CREAT | O_EXCL, 0600), EEXIST);
  REFUSES(truncate("/tmp/stagetwo no such file", 0), ENOENT);
  REFUSES(truncate((const char*)8, 0), EFAULT);
  for (unsigned i = 0; i < kTouched; i++) REQUIRE((touch(i) & 0xff) == 0x40 + i);
  remove_file();
}

// Holes through another descriptor than the one that was mapped. Of a private mapping the pages
// that were written stay.
static void holes(void) {
  static const int kModes[] = {FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, FALLOC_FL_ZERO_RANGE,
                               FALLOC_FL_COLLAPSE_RANGE};
  start();
  for (unsigned i = 0; i < 2 * sizeof kModes / sizeof kModes[0]; i++) {
    make_file(MAP_SHARED);
    lend(at);
    const int other = open(path, O_RDWR);
    const int mode = kModes[i / 2];
    const long done = i % 2 == 0 ? fallocate(other, mode, 0, kWindowBytes / 2)
                                 : syscall(SYS_fallocate, other, mode, 0L, (long)kWindowBytes / 2);
    if (done == -1 && errno == EOPNOTSUPP) {
      close(other);
      remove_file();
      continue;
    }
    REQUIRE(done == 0);
    close(other);
    REQUIRE(mapped() <= mapped_before + kTouched / 2);
    REQUIRE((touch(3) & 0xff) == (mode == FALLOC_FL_COLLAPSE_RANGE ? 0x43 + kTouched / 2 : 0));
    remove_file();
  }
}

// What only changes the bytes rings nobody and needs to: the mapping shows them.
static void written(void) {
  start();
  make_file(MAP_SHARED);
  lend(at);
  static uint8_t bytes[kPage];
  memset(bytes, 0x99, kPage);
  REQUIRE(pwrite(file, bytes, kPage, 3 * kPage) == kPage);
  REQUIRE((touch(3) & 0xff) == 0x99);
  const int other = open(path, O_RDWR);
  off_t from = 3 * kPage;
  off_t to = 5 * kPage;
  REQUIRE(copy_file_range(other, &from, other, &to, kPage, 0) == kPage);
  REQUIRE((touch(5) & 0xff) == 0x99);
  REQUIRE(mapped() == mapped_before + kTouched);
  close(other);
  remove_file();
}

static sigjmp_buf back;
static void jump(int signal) {
  siglongjmp(back, signal);
}
static int signal_of_touch(volatile const uint8_t* there) {
  const int signal = sigsetjmp(back, 1);
  if (signal == 0) (void)*there;
  return signal;
}
static void to_device(int device) {
  static uint8_t bounce[kWindowBytes];
  memset(at, 0x5A, kWindowBytes);
  struct hmm_dmirror_cmd move = {
      .addr = (uintptr_t)at, .ptr = (uintptr_t)bounce, .npages = kTouched};
  REQUIRE(ioctl(device, HMM_DMIRROR_MIGRATE_TO_DEV, &move) == 0 && move.cpages == kTouched);
}
static int shorten_by_a_child(int order, int done) {
  char any = 0;
  REQUIRE(write(order, path, sizeof path) == sizeof path);
  REQUIRE(read(done, &any, 1) == 1);
  return 0;
}
// A device has a private mapping's copies when its file ends before them: they are gone, also where
// another process did it. A hole leaves them.
static void copies_on_a_device(void) {
  int orders[2];
  int answers[2];
  REQUIRE(pipe(orders) == 0 && pipe(answers) == 0);
  const pid_t child = fork();
  while (child == 0) {
    if (read(orders[0], path, sizeof path) != sizeof path) _exit(1);
    if (truncate(path, 0) != 0 || write(answers[1], "x", 1) != 1) _exit(2);
  }
  signal(SIGBUS, jump);
  const int device = open("/dev/hmm_dmirror0", O_RDWR);
  REQUIRE(device >= 0);
  for (unsigned way = 0; way < 4; way++) {
    make_file(MAP_PRIVATE);
    to_device(device);
    if (way == 0) REQUIRE(truncate(path, 0) == 0);
    if (way == 1) REQUIRE(ftruncate(file, 0) == 0);
    if (way == 2) REQUIRE(shorten_by_a_child(orders[1], answers[0]) == 0);
    if (way == 3) REQUIRE(fallocate(file, 3, 0, kWindowBytes) == 0);
    REQUIRE(signal_of_touch(at + 3 * kPage) == (way == 3 ? 0 : SIGBUS));
    REQUIRE(ftruncate(file, kWindowBytes) == 0);
    REQUIRE(at[3 * kPage] == (way == 3 ? 0x5A : 0));
    remove_file();
  }
  REQUIRE(kill(child, SIGKILL) == 0 && waitpid(child, NULL, 0) == child);
}

int main(int argc, char** argv) {
  static const struct test_case kCases[] = {
      {"shortened", shortened},
      {"shortened_under_private_memory", shortened_under_private_memory},
      {"refused", refused},
      {"holes", holes},
      {"written", written},
      {"copies_on_a_device", copies_on_a_device},
      {NULL, NULL},
  };
  return run_case(argc, argv, kCases);
}

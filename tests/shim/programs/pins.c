// SPDX-License-Identifier: Apache-2.0
// Pages that a device reads for long (the kernel's driver for page references), and what the
// program does to its own mapping of them: the device goes on with the page it was given.
#define _GNU_SOURCE
#include <linux/falloc.h>
#include <linux/types.h>
#include <linux/userfaultfd.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "abi/hmm/gup_uapi.h"
#include "machine.h"

enum { kPages = 16, kHalf = 8, kBytes = kPages * kPage, kMoveRequest = 0x05 };

static int references = -1;
static uint8_t seen[kBytes];

static uint8_t* anonymous(void) {
  void* const at = mmap(NULL, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  REQUIRE(at != MAP_FAILED);
  return at;
}
static void pin(void* at, unsigned pages, int for_writing) {
  if (references < 0) references = open("/sys/kernel/debug/gup_test", O_RDWR);
  struct pin_longterm_test all = {
      .addr = (uintptr_t)at, .size = (uint64_t)pages * kPage, .flags = (uint32_t)for_writing};
  REQUIRE(ioctl(references, PIN_LONGTERM_TEST_START, &all) == 0);
}
static void unpin(void) {
  REQUIRE(ioctl(references, PIN_LONGTERM_TEST_STOP) == 0);
}
static int are(const uint8_t* at, unsigned pages, uint8_t value) {
  for (unsigned i = 0; i < pages * kPage; i++) {
    if (at[i] != value) return 0;
  }
  return 1;
}
static int device_sees(unsigned pages, uint8_t value) {
  __u64 to = (uintptr_t)seen;
  REQUIRE(ioctl(references, PIN_LONGTERM_TEST_READ, &to) == 0);
  return are(seen, pages, value);
}

// ---- fork --------------------------------------------------------------------------------------

// The child has stored to its copies when it reports; the parent stores then, and the device sees
// the parent's page.
static void forks_with(int advice, int undo) {
  uint8_t* const at = anonymous();
  memset(at, 1, kBytes);
  pin(at, kPages, 1);
  REQUIRE(advice < 0 || madvise(at, kBytes / 2, advice) == 0);
  int up[2];
  REQUIRE(pipe(up) == 0);
  const pid_t child = fork();
  if (child == 0) {
    unsigned char there;
    const int mapped = mincore(at, kPage, &there) == 0;
    REQUIRE(mapped == (advice != MADV_DONTFORK));
    if (mapped) REQUIRE(are(at, kHalf, advice == MADV_WIPEONFORK ? 0 : 1));
    REQUIRE(are(at + kBytes / 2, kHalf, 1));
    memset(at + kBytes / 2, 9, kBytes / 2);
    REQUIRE(write(up[1], "x", 1) == 1);
    _exit(0);
  }
  char any;
  close(up[1]);
  REQUIRE(read(up[0], &any, 1) == 1 && device_sees(kPages, 1));
  memset(at, 2, kBytes);
  REQUIRE(device_sees(kPages, 2));
  int status = -1;
  REQUIRE(waitpid(child, &status, 0) == child && status == 0);
  REQUIRE(madvise(at, kBytes, MADV_DONTNEED) == 0 && are(at, kPages, 0));
  REQUIRE(device_sees(kPages, 2));
  REQUIRE(undo < 0 || madvise(at, kBytes / 2, undo) == 0);
  unpin();
  close(up[0]);
  munmap(at, kBytes);
}
static void forks(void) {
  forks_with(-1, -1);
  forks_with(MADV_DONTFORK, MADV_DOFORK);
  forks_with(MADV_WIPEONFORK, MADV_KEEPONFORK);
}

// ---- private copies of a file's pages ----------------------------------------------------------

static int new_file(void) {
  static const uint8_t ones[kBytes] = {[0 ... kBytes - 1] = 1};
  char name[] = "/tmp/stagetwo-pins-XXXXXX";
  const int fd = mkstemp(name);
  REQUIRE(fd >= 0 && unlink(name) == 0 && pwrite(fd, ones, kBytes, 0) == kBytes);
  return fd;
}
enum { kEnds, kEndsLater, kHole, kDiscard };

// A pin for reading makes the page the program's own, too.
static void copy_of_a_file(int for_writing, int what) {
  const int fd = new_file();
  uint8_t* const at = mmap(NULL, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
  REQUIRE(at != MAP_FAILED);
  pin(at, kPages, for_writing);
  memset(seen, 7, kBytes);
  REQUIRE(pwrite(fd, seen, kBytes, 0) == kBytes && are(at, kPages, 1));
  memset(at, 2, kBytes);
  REQUIRE(device_sees(kPages, 2));
  if (what == kEnds) REQUIRE(ftruncate(fd, kPage + 1) == 0 && are(at, 2, 2));
  if (what == kEndsLater) REQUIRE(munmap(at, kBytes) == 0 && ftruncate(fd, 0) == 0);
  if (what == kHole) {
    REQUIRE(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, kBytes) == 0);
    REQUIRE(are(at, kPages, 2));
  }
  if (what == kDiscard) REQUIRE(madvise(at, kBytes, MADV_DONTNEED) == 0 && are(at, kPages, 7));
  REQUIRE(device_sees(kPages, 2));
  if (what == kEnds) {  // what stands is still the device's, what went is not
    memset(at, 3, kPage);
    REQUIRE(ftruncate(fd, kBytes) == 0);
    at[2 * kPage] = 4;
    REQUIRE(!device_sees(kPages, 2) && seen[0] == 3 && seen[2 * kPage] == 2);
  }
  unpin();
  close(fd);
  if (what != kEndsLater) munmap(at, kBytes);
}
static void copies_of_a_file(void) {
  for (int what = kEnds; what <= kDiscard; what++) {
    copy_of_a_file(0, what);
    copy_of_a_file(1, what);
  }
}

// ---- locked memory -----------------------------------------------------------------------------

static long locked_kib(void) {
  FILE* const file = fopen("/proc/self/status", "r");
  char line[256];
  long value = -1;
  while (value < 0 && fgets(line, sizeof line, file) != NULL) {
    if (strncmp(line, "VmLck:", 6) == 0) value = atol(line + 6);
  }
  fclose(file);
  return value;
}
static void locked_memory(void) {
  enum { kDontneedLocked = 24 };
  const long before = locked_kib();
  uint8_t* const at = anonymous();
  memset(at, 1, kBytes);
  if (mlock(at, kBytes) != 0) return;  // RLIMIT_MEMLOCK
  pin(at, kPages, 1);
  REFUSES(madvise(at, kBytes, MADV_DONTNEED), EINVAL);
  REQUIRE(are(at, kPages, 1));
  memset(at, 2, kBytes);
  REQUIRE(device_sees(kPages, 2));
  REQUIRE(madvise(at, kBytes, kDontneedLocked) == 0 && are(at, kPages, 0));
  REQUIRE(device_sees(kPages, 2));
  REFUSES(madvise(at, kBytes, MADV_DONTNEED), EINVAL);
  unpin();
  pin(at, kPages, 1);
  REQUIRE(munmap(at, kBytes) == 0 && device_sees(kPages, 0));
  REQUIRE(locked_kib() == before);
  unpin();
}

// ---- the program's own userfaultfd -------------------------------------------------------------

static int userfault(uint64_t features) {
  const int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
  struct uffdio_api api = {.api = UFFD_API, .features = features};
  return fd >= 0 && ioctl(fd, UFFDIO_API, &api) == 0 ? fd : -1;
}
static void watch(int fd, void* at) {
  struct uffdio_register request = {.range = {(uintptr_t)at, kBytes},
                                    .mode = UFFDIO_REGISTER_MODE_MISSING};
  REQUIRE(ioctl(fd, UFFDIO_REGISTER, &request) == 0);
}
static void refused_change_of_watched_memory(void) {
  const int fd = userfault(0);
  if (fd < 0) return;
  uint8_t* const at = anonymous();
  memset(at, 1, kBytes);
  pin(at, kPages, 1);
  watch(fd, at);
  REQUIRE(mmap(at, kBytes, PROT_READ, MAP_SHARED | MAP_FIXED, -1, 0) == MAP_FAILED);
  REQUIRE(errno == EBADF && are(at, kPages, 1));
  REQUIRE(madvise(at, kPage, MADV_DONTNEED) == 0);
  struct uffdio_zeropage zero = {.range = {(uintptr_t)at, kPage}};
  REQUIRE(ioctl(fd, UFFDIO_ZEROPAGE, &zero) == 0);
  REQUIRE(device_sees(kPages, 1));
  unpin();
}

struct move_request {
  uint64_t to, from, size, mode;
  int64_t moved;
};
static long move_of(unsigned first, unsigned pages, int64_t* moved) {
  const int fd = userfault(1u << 16);
  if (fd < 0) return -1;
  uint8_t* const at = anonymous();
  uint8_t* const to = anonymous();
  memset(at, 1, kBytes);
  watch(fd, to);
  pin(at + first * kPage, pages, 1);
  struct move_request request = {(uintptr_t)to, (uintptr_t)at, kBytes, 0, 0};
  const int answer = ioctl(fd, _IOWR(UFFDIO, kMoveRequest, struct move_request), &request);
  const int error = answer == 0 ? 0 : errno;
  *moved = request.moved;
  REQUIRE(device_sees(pages, 1));
  memset(at + first * kPage, 2, pages * kPage);
  REQUIRE(device_sees(pages, 2));
  unpin();
  close(fd);
  return error;
}
// The kernel moves no page that is pinned, and those before it.
static void move_of_pinned_pages(void) {
  int64_t moved = 0;
  const long whole = move_of(0, kPages, &moved);
  if (whole == -1 || whole == EINVAL) return;  // before Linux 6.8
  REQUIRE(whole == EBUSY && moved == -EBUSY);
  REQUIRE(move_of(kHalf, kHalf, &moved) == EAGAIN && moved == kHalf * kPage);
}

int main(int argc, char** argv) {
  static const struct test_case kCases[] = {
      {"forks", forks},
      {"copies_of_a_file", copies_of_a_file},
      {"locked_memory", locked_memory},
      {"refused_change_of_watched_memory", refused_change_of_watched_memory},
      {"move_of_pinned_pages", move_of_pinned_pages},
      {NULL, NULL},
  };
  return run_case(argc, argv, kCases);
}

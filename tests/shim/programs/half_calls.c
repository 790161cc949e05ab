// SPDX-License-Identifier: Apache-2.0
// The table of tests/support/half_calls.h by libc's own functions: what came of each call is
// printed. `native` has no device; the other states put the pages into its hands first, and then
// what is printed is to be the same. `denied`: without userfaultfd; `parts`: by process_madvise.
#define _GNU_SOURCE
#include "tests/support/half_calls.h"

#include <linux/types.h>
#include <stdbool.h>

#include "abi/hmm/gup_uapi.h"
#include "abi/hmm/uapi.h"
#include "deny.h"
#include "machine.h"

static const char* state;
static int device = -1, references = -1, own = -1, pipe_ends[2];

static bool is(const char* name) {
  return strcmp(state, name) == 0;
}

// ---- the calls ---------------------------------------------------------------------------------

static int advise_by_parts(void* at, size_t size, int advice) {
  const struct iovec part = {at, size};
  return syscall(SYS_process_madvise, own, &part, 1, advice, 0) < 0 ? -1 : 0;
}
static void* remap(void* at, size_t size, size_t new_size, int flags, void* to) {
  return mremap(at, size, new_size, flags, to);
}

static int read_at(const char* at, char* byte) {
  if (write(pipe_ends[1], at, 1) != 1) return 0;
  REQUIRE(read(pipe_ends[0], byte, 1) == 1);
  return 1;
}
static int may_write_at(char* at) {
  char same = 0, rest = 0;
  REQUIRE(read_at(at, &same) && write(pipe_ends[1], &same, 1) == 1);
  if (read(pipe_ends[0], at, 1) == 1) return 1;
  REQUIRE(errno == EFAULT && read(pipe_ends[0], &rest, 1) == 1);
  return 0;
}
static bool shows(const char* at, char wanted) {
  char byte = 0;
  return read_at(at, &byte) && byte == wanted;
}
static const struct half_look kLook = {read_at, may_write_at};

// ---- the states --------------------------------------------------------------------------------

static void to_device(char* area, unsigned long how) {
  static char bounce[kHalfPage];
  for (size_t i = 0; i < kHalfPages; i++) {
    struct hmm_dmirror_cmd one = {
        .addr = (uintptr_t)half_page(area, i), .ptr = (uintptr_t)bounce, .npages = 1};
    // What is not there, or locked, stays as it is.
    (void)!ioctl(device, how, &one);
  }
}
static bool pin(char* area) {
  struct pin_longterm_test all = {.addr = (uintptr_t)area, .size = kHalfPages * kHalfPage};
  return ioctl(references, PIN_LONGTERM_TEST_START, &all) == 0;
}
static void device_reads(char* to) {
  __u64 at = (uintptr_t)to;
  REQUIRE(ioctl(references, PIN_LONGTERM_TEST_READ, &at) == 0);
}
// The bytes are those of the pages that were pinned, wherever the program has them now.
static void check_pins(char* area) {
  static char seen[kHalfPages * kHalfPage];
  device_reads(seen);
  for (size_t page = 0; page < kHalfPages; page++) {
    REQUIRE(*half_page(seen, page) == half_letter(page) || *half_page(seen, page) == 'F');
    for (size_t i = 0; i < kHalfPages; i++) {
      char* const at = half_page(area, i);
      if (!shows(at, half_letter(page)) || !may_write_at(at)) continue;
      at[8] = 0x77;
      device_reads(seen);
      REQUIRE(half_page(seen, page)[8] == 0x77);
    }
  }
  REQUIRE(ioctl(references, PIN_LONGTERM_TEST_STOP) == 0);
}

static void run(const struct half_case* which, const struct half_calls* by) {
  char* const area = mmap(NULL, kHalfPages * kHalfPage, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  REQUIRE(area != MAP_FAILED);
  half_fill(area, 0, kHalfPages);
  which->lay(area);
  const bool pinned = is("pinned") && pin(area);
  which->cut(by, area);
  if (is("absent")) to_device(area, HMM_DMIRROR_MIGRATE_TO_DEV);
  if (is("exclusive")) to_device(area, HMM_DMIRROR_EXCLUSIVE);
  errno = 0;
  const long answer = which->call(by, area);
  const int error = answer == 0 ? 0 : errno;
  char text[4 * kHalfPages];
  half_describe(&kLook, area, text);
  printf("%s: %s %s\n", which->name, error == 0 ? "done" : strerrorname_np(error), text);
  fflush(stdout);
  if (pinned) check_pins(area);
  munmap(area, kHalfPages * kHalfPage);
}

int main(int argc, char** argv) {
  REQUIRE(argc >= 2 && pipe(pipe_ends) == 0);
  state = argv[1];
  struct half_calls by = {munmap, madvise, mprotect, mmap, remap};
  for (int i = 2; i < argc; i++) {
    if (strcmp(argv[i], "denied") == 0) REQUIRE(deny_userfaultfd() == 0);
    if (strcmp(argv[i], "parts") != 0) continue;
    own = (int)syscall(SYS_pidfd_open, getpid(), 0);
    by.advise = advise_by_parts;
  }
  if (!is("native")) {
    device = open("/dev/hmm_dmirror0", O_RDWR);
    references = open("/sys/kernel/debug/gup_test", O_RDWR);
    REQUIRE(device >= 0 && references >= 0);
  }
  for (int i = 0; i < kHalfCount; i++) run(&kHalfCases[i], &by);
  return 0;
}

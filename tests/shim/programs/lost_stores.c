// SPDX-License-Identifier: Apache-2.0
// A device that has stored to a page asks again after the process has lost the right to store to it
// without a fault: a fork, /proc/self/clear_refs. The page's bit in pagemap says the kernel saw it.
#define _GNU_SOURCE
#include <linux/types.h>
#include <sys/wait.h>

#include "abi/hmm/uapi.h"
#include "machine.h"

enum { kSoftDirtyBit = 55 };
static int device;
static uint8_t* page;
static uint8_t bounce[kPage];

static void open_device(void) {
  device = open("/dev/hmm_dmirror0", O_RDWR);
  REQUIRE(device >= 0);
  page = mmap(NULL, 2 * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  REQUIRE(page != MAP_FAILED);
  memset(page, 1, 2 * kPage);
}

// How often the device had to fault for it.
static uint64_t faults_of_a_store(uint8_t value) {
  memset(bounce, value, sizeof bounce);
  struct hmm_dmirror_cmd store = {.addr = (uintptr_t)page, .ptr = (uintptr_t)bounce, .npages = 1};
  REQUIRE(ioctl(device, HMM_DMIRROR_WRITE, &store) == 0 && page[7] == value);
  return store.faults;
}

static int soft_dirty(int which) {
  const int pagemap = open("/proc/self/pagemap", O_RDONLY);
  uint64_t entry = 0;
  REQUIRE(pread(pagemap, &entry, 8, (off_t)(((uintptr_t)page / kPage + which) * 8)) == 8);
  close(pagemap);
  return entry >> kSoftDirtyBit & 1;
}

static void fork_takes_the_right(void) {
  open_device();
  REQUIRE(faults_of_a_store(2) == 1 && faults_of_a_store(3) == 0);
  const pid_t child = fork();
  if (child == 0) _exit(page[7] == 3 ? 0 : 1);
  REQUIRE(faults_of_a_store(4) == 1 && faults_of_a_store(5) == 0);
  int status = -1;
  REQUIRE(waitpid(child, &status, 0) == child && status == 0);
}

static void clear_refs_takes_the_right(void) {
  open_device();
  REQUIRE(faults_of_a_store(2) == 1 && faults_of_a_store(3) == 0);
  const int clear_refs = open("/proc/self/clear_refs", O_WRONLY);
  REQUIRE(clear_refs >= 0);
  REQUIRE(write(clear_refs, "1\n", 2) == 2 && faults_of_a_store(4) == 0);
  REFUSES(write(clear_refs, "9", 1), EINVAL);
  REFUSES(write(clear_refs, "four", 4), EINVAL);
  REQUIRE(faults_of_a_store(5) == 0);
  const int tracked = soft_dirty(0);  // every page is, until the first time
  REQUIRE(write(clear_refs, " 4\n", 3) == 3);
  REQUIRE(!soft_dirty(0));
  REQUIRE(faults_of_a_store(6) == 1 && faults_of_a_store(7) == 0);
  REQUIRE(soft_dirty(0) == tracked && !soft_dirty(1));
  char name[64];
  snprintf(name, sizeof name, "/proc/%d/clear_refs", getpid());
  FILE* const stream = fopen(name, "w");
  REQUIRE(stream != NULL && fputs("4", stream) >= 0 && fclose(stream) == 0);
  close(clear_refs);
}

int main(int argc, char** argv) {
  static const struct test_case kCases[] = {
      {"fork", fork_takes_the_right},
      {"clear_refs", clear_refs_takes_the_right},
      {NULL, NULL},
  };
  return run_case(argc, argv, kCases);
}

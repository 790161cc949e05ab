// SPDX-License-Identifier: Apache-2.0
// Calls over a mapping of which some pages are with a device: what came of each is printed, and is
// to be the same as `native`, where there is no device. `denied`: without userfaultfd.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/types.h>
#include <linux/userfaultfd.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "abi/hmm/uapi.h"
#include "deny.h"
#include "machine.h"

enum { kPageBytes = 4096, kPages = 16, kFirst = 4, kCount = 8, kHuge = 2 << 20 };
enum { kCollapse = 25, kUffdMove = 5, kSeal = 462 };

static int device = -1;

static char* page(char* area, size_t i) {
  return area + i * kPageBytes;
}
static char* mapped(size_t bytes) {
  char* at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  REQUIRE(at != MAP_FAILED);
  return at;
}
static bool goes_to_device(char* at, size_t pages) {
  char* const bounce = mapped(pages * kPageBytes);
  struct hmm_dmirror_cmd all = {.addr = (uintptr_t)at, .ptr = (uintptr_t)bounce, .npages = pages};
  const bool went = ioctl(device, HMM_DMIRROR_MIGRATE_TO_DEV, &all) == 0;
  munmap(bounce, pages * kPageBytes);
  return went;
}
static void to_device(char* at, size_t pages) {
  if (device >= 0) REQUIRE(goes_to_device(at, pages));
}

// A mapping of its own, each page another byte; half of what the calls are about is away. Its first
// and last page are divided from it by their rights.
static char* area_with_absent_pages(void) {
  char* const area = mapped(kPages * kPageBytes);
  mprotect(area, kPageBytes, PROT_NONE);
  mprotect(page(area, kPages - 1), kPageBytes, PROT_NONE);
  for (size_t i = 1; i < kPages - 1; i++) memset(page(area, i), 'a' + (int)i, kPageBytes);
  to_device(page(area, 1), 7);
  return area;
}
static void print(const char* name, int number, long answer, const char* at, size_t pages) {
  printf("%s %d: %s", name, number, answer == -1 ? strerrorname_np(errno) : "done");
  for (size_t i = 0; at != NULL && i < pages; i++) printf(" %d", at[i * kPageBytes]);
  printf("\n");
  fflush(stdout);
}

typedef long (*Call)(char* at, size_t bytes, int number);
static void over(const char* name, Call call, int number, bool readable) {
  char* const area = area_with_absent_pages();
  errno = 0;
  const long answer = call(page(area, kFirst), kCount * kPageBytes, number);
  print(name, number, answer, readable ? page(area, kFirst) : NULL, kCount);
  munlock(area, kPages * kPageBytes);
  munmap(area, kPages * kPageBytes);
}

static long call_madvise(char* at, size_t bytes, int advice) {
  return madvise(at, bytes, advice);
}
static long call_process_madvise(char* at, size_t bytes, int advice) {
  const int own = (int)syscall(SYS_pidfd_open, getpid(), 0);
  const struct iovec part = {at, bytes};
  const long done = syscall(SYS_process_madvise, own, &part, 1, advice, 0);
  const int error = errno;
  close(own);
  errno = error;
  return done < 0 ? -1 : 0;
}
static long call_mprotect(char* at, size_t bytes, int prot) {
  return mprotect(at, bytes, prot);
}
static long call_mlock(char* at, size_t bytes, int flags) {
  return flags < 0 ? mlock(at, bytes) : mlock2(at, bytes, (unsigned)flags);
}
static long call_munlock(char* at, size_t bytes, int unused) {
  (void)unused;
  return munlock(at, bytes);
}
static long call_msync(char* at, size_t bytes, int flags) {
  return msync(at, bytes, flags);
}
static long call_mincore(char* at, size_t bytes, int unused) {
  (void)unused;
  unsigned char there[kPages];
  return mincore(at, bytes, there);
}
static long call_name(char* at, size_t bytes, int unused) {
  (void)unused;
  enum { kSetVma = 0x53564d41, kName = 0 };
  return prctl(kSetVma, kName, at, bytes, "name");
}
static long call_mbind(char* at, size_t bytes, int mode) {
  return syscall(SYS_mbind, at, bytes, mode, NULL, 0, 0);
}
static long call_remap_file_pages(char* at, size_t bytes, int unused) {
  (void)unused;
  return remap_file_pages(at, bytes, 0, 0, 0);
}
// To another place, wherever the kernel wants, back to where it was.
static long call_mremap(char* at, size_t bytes, int flags) {
  char* const there = mremap(at, bytes, bytes + kPageBytes, flags);
  if (there == MAP_FAILED) return -1;
  for (size_t i = 0; i < kCount; i++) REQUIRE(there[i * kPageBytes] == 'a' + kFirst + (int)i);
  REQUIRE(mremap(there, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, at) == at);
  return 0;
}
static long call_mremap_leaving(char* at, size_t bytes, int flags) {
  char* const there = (char*)syscall(SYS_mremap, at, bytes, bytes, MREMAP_MAYMOVE | flags, 0);
  if (there == MAP_FAILED) return -1;
  for (size_t i = 0; i < kCount; i++) REQUIRE(there[i * kPageBytes] == 'a' + kFirst + (int)i);
  return munmap(there, bytes);
}
// Pages move to memory that the program watches itself.
static long call_uffd_move(char* at, size_t bytes, int unused) {
  (void)unused;
  struct {
    __u64 to, from, size, mode;
    __s64 moved;
  } move = {0, (uintptr_t)at, bytes, 0, 0};
  const int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
  struct uffdio_api api = {.api = UFFD_API};
  REQUIRE(fd >= 0 && ioctl(fd, UFFDIO_API, &api) == 0);
  char* const to = mapped(bytes);
  struct uffdio_register all = {{(uintptr_t)to, bytes}, UFFDIO_REGISTER_MODE_MISSING, 0};
  REQUIRE(ioctl(fd, UFFDIO_REGISTER, &all) == 0);
  move.to = (uintptr_t)to;
  const long answer = ioctl(fd, _IOWR(UFFDIO, kUffdMove, move), &move);
  const int error = errno;
  printf("%lld bytes; ", (long long)move.moved);
  close(fd);
  munmap(to, bytes);
  errno = error;
  return answer;
}

// Small pages become a large one, which only one mapping can have.
static void collapse(Call advise) {
  char* const all = mapped(2 * kHuge);
  char* const at = (char*)(((uintptr_t)all + kHuge - 1) & ~(uintptr_t)(kHuge - 1));
  madvise(at, kHuge, MADV_NOHUGEPAGE);
  for (size_t i = 0; i < kHuge; i += kPageBytes) at[i] = (char)(i / kPageBytes % 100);
  madvise(at, kHuge, MADV_HUGEPAGE);
  to_device(page(at, 64), 32);
  errno = 0;
  const long answer = advise(at, kHuge, kCollapse);
  print("collapse", kCollapse, answer, page(at, 60), 8);
  munmap(all, 2 * kHuge);
}

// Two pieces touched apart, a page of the first away; what is mapped in the hole between them is
// one mapping with the first, and moves with it.
static void fill_hole(int flags) {
  char* const area = mapped(kPages * kPageBytes);
  munmap(area, kPages * kPageBytes);
  for (size_t first = 4; first <= 12; first += 8) {
    const int fixed = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;
    REQUIRE(mmap(page(area, first), 4 * kPageBytes, PROT_READ | PROT_WRITE, fixed, -1, 0) ==
            page(area, first));
    memset(page(area, first), 'a' + (int)first, 4 * kPageBytes);
  }
  to_device(page(area, 4), 4);
  REQUIRE(mmap(page(area, 8), 4 * kPageBytes, PROT_READ | PROT_WRITE,
               MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0) == page(area, 8));
  memset(page(area, 8), 'i', 4 * kPageBytes);
  char* const there = mremap(page(area, 6), 4 * kPageBytes, 8 * kPageBytes, MREMAP_MAYMOVE);
  print("hole", flags, there == MAP_FAILED ? -1 : 0, there == MAP_FAILED ? NULL : there, 8);
  munmap(area, kPages * kPageBytes);
}

// Afterwards nobody gives rights to what has none: where pages are hidden so, none goes any more.
static void seal(int how, bool denied) {
  char* const area = area_with_absent_pages();
  if (how == 2) to_device(page(area, 1), 14);
  errno = 0;
  const size_t first = how == 1 ? 4 : 1, pages = how == 1 ? 8 : 14;
  const long sealed = syscall(kSeal, page(area, first), pages * kPageBytes, 0);
  print("mseal", how, sealed, page(area, 1), 14);
  if (device >= 0 && sealed == 0) REQUIRE(goes_to_device(page(area, first), pages) == !denied);
  print("after mseal", how, mprotect(page(area, 6), kPageBytes, PROT_READ), page(area, 1), 14);
  print("flags of mseal", how, syscall(kSeal, area, (size_t)kPageBytes, 1), NULL, 0);
}

static void run(bool denied) {
  for (int advice = 0; advice <= 25; advice++) {
    if (advice != kCollapse) over("madvise", call_madvise, advice, advice != MADV_FREE);
  }
  for (int advice = 20; advice <= 24; advice++)
    over("process_madvise", call_process_madvise, advice, true);
  for (int prot = 0; prot <= 7; prot++) over("mprotect", call_mprotect, prot, (prot & 1) != 0);
  over("mprotect", call_mprotect, PROT_READ | PROT_GROWSDOWN, true);
  for (int flags = -1; flags <= 2; flags++) over("mlock", call_mlock, flags, true);
  over("munlock", call_munlock, 0, true);
  for (int flags = 0; flags <= 7; flags++) over("msync", call_msync, flags, true);
  over("mincore", call_mincore, 0, true);
  over("name", call_name, 0, true);
  for (int mode = 0; mode <= 1; mode++) over("mbind", call_mbind, mode, true);
  over("remap_file_pages", call_remap_file_pages, 0, true);
  for (int flags = 0; flags <= 1; flags++) over("mremap", call_mremap, flags, true);
  over("mremap", call_mremap_leaving, 0, false);
  over("mremap", call_mremap_leaving, 4, true);
  if (!denied) over("UFFDIO_MOVE", call_uffd_move, 0, false);
  fill_hole(0);
  fill_hole(MAP_FIXED);
  fill_hole(MAP_FIXED_NOREPLACE);
  for (int how = 0; how <= 2; how++) seal(how, denied);
  collapse(call_madvise);
  collapse(call_process_madvise);
}

int main(int argc, char** argv) {
  REQUIRE(argc == 3);
  const bool denied = strcmp(argv[2], "denied") == 0;
  if (denied) REQUIRE(deny_userfaultfd() == 0);
  if (strcmp(argv[1], "native") != 0) {
    device = open("/dev/hmm_dmirror0", O_RDWR);
    REQUIRE(device >= 0);
  }
  run(denied);
  return 0;
}

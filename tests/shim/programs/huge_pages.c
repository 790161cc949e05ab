// SPDX-License-Identifier: Apache-2.0
// Huge pages as a program meets them, served by the stand-in: the answers of hugetlbfs.
#define _GNU_SOURCE
#include <linux/memfd.h>
#include <sys/stat.h>

#include "machine.h"

enum { kHuge = 2 * 1024 * 1024 };
static const int kHugeFlags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB;
static const int kRw = PROT_READ | PROT_WRITE;

static long meminfo(const char* name) {
  char line[256];
  long value = -1;
  FILE* file = fopen("/proc/meminfo", "r");
  REQUIRE(file != NULL);
  while (fgets(line, sizeof line, file) != NULL) {
    if (strncmp(line, name, strlen(name)) == 0) value = atol(line + strlen(name));
  }
  fclose(file);
  return value;
}

static long pool_file(const char* size, const char* name) {
  char path[128], text[32] = {0};
  snprintf(path, sizeof path, "/sys/kernel/mm/hugepages/hugepages-%s/%s", size, name);
  const int fd = open(path, O_RDONLY);
  REQUIRE(fd >= 0);
  REQUIRE(read(fd, text, sizeof text - 1) > 0);
  close(fd);
  return atol(text);
}

static uint8_t* map_huge(size_t size, int more) {
  uint8_t* at = mmap(NULL, size, kRw, kHugeFlags | more, -1, 0);
  REQUIRE(at != MAP_FAILED);
  REQUIRE((uintptr_t)at % kHuge == 0);
  return at;
}

static void mappings(void) {
  uint8_t* at = map_huge(4 * kHuge, 0);
  memset(at, 1, 4 * kHuge);
  REFUSES(munmap(at + kPage, kHuge), EINVAL);
  REFUSES(munmap(at, kPage), EINVAL);
  REFUSES(mprotect(at, kPage, PROT_READ), EINVAL);
  REFUSES(mprotect(at + kPage, kHuge, PROT_READ), EINVAL);
  REFUSES(madvise(at + kPage, kHuge, MADV_DONTNEED), EINVAL);
  REFUSES(madvise(at, kHuge, MADV_FREE), EINVAL);
  REQUIRE(mmap(at + kPage, kPage, kRw, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) ==
          MAP_FAILED);
  REQUIRE(mprotect(at, kHuge, PROT_READ) == 0);
  REQUIRE(madvise(at + kHuge, kHuge + kPage, MADV_DONTNEED) == 0);
  REQUIRE(at[kHuge] == 0 && at[2 * kHuge] == 1);
  REQUIRE(mremap(at, 4 * kHuge, 5 * kHuge, MREMAP_MAYMOVE) == MAP_FAILED && errno == EINVAL);
  REQUIRE(munmap(at + 3 * kHuge, kHuge) == 0);
  REQUIRE(munmap(at, 3 * kHuge) == 0);
  REQUIRE(mmap(NULL, kHuge, kRw, kHugeFlags | 24 << 26, -1, 0) == MAP_FAILED && errno == EINVAL);
  const long giant = 1L << 30;
  at = mmap(NULL, (size_t)giant, kRw, kHugeFlags | 30 << 26, -1, 0);
  REQUIRE(at != MAP_FAILED && (uintptr_t)at % (uintptr_t)giant == 0);
  at[giant - 1] = 1;
  REQUIRE(munmap(at, (size_t)giant) == 0);
}

static void files(void) {
  struct stat info;
  const int fd = memfd_create("huge", MFD_CLOEXEC | MFD_HUGETLB);
  REQUIRE(fd >= 0);
  REQUIRE(fstat(fd, &info) == 0 && info.st_blksize == kHuge);
  REFUSES(ftruncate(fd, kHuge + kPage), EINVAL);
  REQUIRE(ftruncate(fd, 2 * kHuge) == 0);
  REFUSES(write(fd, "x", 1), EINVAL);
  uint8_t* one = mmap(NULL, 2 * kHuge, kRw, MAP_SHARED, fd, 0);
  uint8_t* two = mmap(NULL, kHuge, kRw, MAP_SHARED, fd, kHuge);
  REQUIRE(one != MAP_FAILED && two != MAP_FAILED);
  REQUIRE((uintptr_t)one % kHuge == 0 && (uintptr_t)two % kHuge == 0);
  two[5] = 7;
  REQUIRE(one[kHuge + 5] == 7);
  REQUIRE(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, kHuge, kHuge) == 0);
  REQUIRE(two[5] == 0);
  REQUIRE(mmap(NULL, kHuge, kRw, MAP_SHARED, fd, kPage) == MAP_FAILED && errno == EINVAL);
  REQUIRE(munmap(one, 2 * kHuge) == 0 && munmap(two, kHuge) == 0);
  close(fd);
  REFUSES(memfd_create("huge", MFD_HUGETLB | 24u << 26), EINVAL);
}

static void pool(void) {
  const char* size = "2048kB";
  const long total = pool_file(size, "nr_hugepages");
  REQUIRE(total > 2);
  REQUIRE(meminfo("HugePages_Total:") == total && meminfo("HugePages_Free:") == total);
  REQUIRE(meminfo("Hugepagesize:") == 2048 && meminfo("MemTotal:") > 0);
  REQUIRE(meminfo("Hugetlb:") ==
          total * 2048 + pool_file("1048576kB", "nr_hugepages") * 1024 * 1024);
  uint8_t* at = map_huge(2 * kHuge, 0);
  REQUIRE(pool_file(size, "free_hugepages") == total - 2);
  REQUIRE(meminfo("HugePages_Free:") == total - 2);
  const int fd = open("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", O_WRONLY);
  if (geteuid() != 0) {
    REQUIRE(fd == -1 && errno == EACCES);
  } else {
    REFUSES(write(fd, "many", 4), EINVAL);
    REQUIRE(write(fd, "3\n", 2) == 2);
    REQUIRE(meminfo("HugePages_Total:") == 3 && meminfo("HugePages_Free:") == 1);
    REQUIRE(mmap(NULL, 2 * kHuge, kRw, kHugeFlags, -1, 0) == MAP_FAILED && errno == ENOMEM);
    close(fd);
  }
  REQUIRE(munmap(at, 2 * kHuge) == 0);
}

// A guest in such memory, with the device awake: an unmap is still seen by it.
static void guest(void) {
  static struct machine m;
  static const uint8_t kReadLoop[] = {0x48, 0x8b, 0x04, 0x25, 0x00, 0x00,
                                      0x20, 0x00, 0xe6, 0x10, 0xeb, 0xf4};
  struct kvm_regs r;
  create_machine(&m, kReadLoop, sizeof kReadLoop);
  uint8_t* at = map_huge(kHuge, 0);
  REQUIRE(set_slot(m.vm, 0, 0, NULL, 0, 0) == 0);
  REQUIRE(set_slot(m.vm, 0, 0, m.memory, kData, 0) == 0);
  REQUIRE(set_slot(m.vm, 1, kData, at, kHuge, 0) == 0);
  at[0] = 42;
  REQUIRE(run_to_exit(&m) == KVM_EXIT_IO);
  REQUIRE(ioctl(m.vcpu, KVM_GET_REGS, &r) == 0 && r.rax == 42);
  REFUSES(munmap(at, kPage), EINVAL);
  REQUIRE(madvise(at, kHuge, MADV_DONTNEED) == 0);
  REQUIRE(run_to_exit(&m) == KVM_EXIT_IO);
  REQUIRE(ioctl(m.vcpu, KVM_GET_REGS, &r) == 0 && r.rax == 0);
}

// Without the option nothing is ours.
static void kernels_own(void) {
  REQUIRE(memfd_create("huge", MFD_HUGETLB | 24u << 26) == -1);
  uint8_t* at = mmap(NULL, kHuge, kRw, kHugeFlags, -1, 0);
  if (pool_file("2048kB", "free_hugepages") == 0) REQUIRE(at == MAP_FAILED && errno == ENOMEM);
  if (at != MAP_FAILED) munmap(at, kHuge);
}

int main(int argc, char** argv) {
  static const struct test_case kCases[] = {
      {"mappings", mappings},       {"files", files}, {"pool", pool}, {"guest", guest},
      {"kernels_own", kernels_own}, {NULL, NULL},
  };
  return run_case(argc, argv, kCases);
}

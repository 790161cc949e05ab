// SPDX-License-Identifier: Apache-2.0
// exec with the iommufd kept: what the program before it has mapped is not this one's memory.
//   pins    private memory, page by page and in one piece; then pages of the new program's own
//   files   memory of a file, in an IOAS with a device and in one without, which the new program
//           takes over (as a VMM that updates itself does)
// What the program before has left: number of the iommufd, IOASes, file.
#define _GNU_SOURCE
#include "iommufd_client.h"

enum { kPages = 100, kBytes = kPages * kPage };
static const uint64_t kInOnePiece = kAperture + (1 << 20), kOwn = kAperture + (2 << 20);

static int pinned_times(int fd, const void* at, uint64_t bytes, unsigned times) {
  struct iommu_test_cmd cmd = {
      .check_refs = {.length = bytes, .uptr = (uintptr_t)at, .refs = times}};
  return test_op(fd, IOMMU_TEST_OP_MD_CHECK_REFS, 0, &cmd) == 0;
}

// At the same place in both programs, so that what one takes for its own is there in the other.
static void* memory_of(size_t bytes, int file) {
  const int how = file < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED;
  void* const place = (void*)(file < 0 ? 0x100000000000 : 0x100010000000);
  void* const at = mmap(place, bytes, PROT_READ | PROT_WRITE, how | MAP_FIXED_NOREPLACE, file, 0);
  REQUIRE(at == place);
  return at;
}

static void map_singly(int fd, uint32_t ioas, char* at, uint64_t iova) {
  for (uint64_t done = 0; done < kBytes; done += kPage) {
    REQUIRE(map_at(fd, ioas, at + done, kPage, iova + done) == 0);
  }
}

static void next_program(const char* how, int fd, uint32_t ioas, uint32_t other, int file) {
  char numbers[4][12];
  const int all[] = {fd, (int)ioas, (int)other, file};
  for (int i = 0; i < 4; ++i) snprintf(numbers[i], sizeof numbers[i], "%d", all[i]);
  REQUIRE(fcntl(fd, F_SETFD, 0) == 0);
  execl("/proc/self/exe", "client", how, numbers[0], numbers[1], numbers[2], numbers[3], NULL);
  _exit(127);
}

static void leave_pins(int fd) {
  const uint32_t ioas = ioas_of(fd);
  device_on(fd, ioas);
  char* const at = memory_of(2 * kBytes, -1);
  memset(at, 1, 2 * kBytes);
  map_singly(fd, ioas, at, kAperture);
  REQUIRE(map_at(fd, ioas, at + kBytes, kBytes, kInOnePiece) == 0);
  next_program("pins", fd, ioas, 0, -1);
}

static void find_pins(int fd, uint32_t ioas) {
  char* const own = memory_of(2 * kBytes, -1);
  memset(own, 2, 2 * kBytes);
  map_singly(fd, ioas, own, kOwn);
  REQUIRE(map_at(fd, ioas, own + kBytes, kBytes, kOwn + kBytes) == 0);
  REQUIRE(pinned_times(fd, own, 2 * kBytes, 1));
  const int access = access_of(fd, ioas);
  char byte = 0;
  REFUSES(access_rw(fd, access, kAperture, &byte, 1, 0), EFAULT);
  REFUSES(access_rw(fd, access, kInOnePiece, &byte, 1, 0), EFAULT);
  REQUIRE(access_rw(fd, access, kOwn, &byte, 1, 0) == 0 && byte == 2);
  close(access);
  for (uint64_t done = 0; done < kBytes; done += kPage) {
    REQUIRE(unmap_at(fd, ioas, kAperture + done, kPage) == 0);
  }
  REQUIRE(pinned_times(fd, own, 2 * kBytes, 1));
  REQUIRE(unmap_at(fd, ioas, kInOnePiece, kBytes) == 0);
  REQUIRE(pinned_times(fd, own, 2 * kBytes, 1));
  REQUIRE(unmap_at(fd, ioas, 0, ~0ull) == 0);
  REQUIRE(pinned_times(fd, own, 2 * kBytes, 0));
}

static void leave_files(int fd) {
  const uint32_t ioas = ioas_of(fd), plain = ioas_of(fd);
  device_on(fd, ioas);
  const int file = memfd_create("memory", 0);
  REQUIRE(file >= 0 && ftruncate(file, kBytes) == 0);
  char* const at = memory_of(kBytes, file);
  memset(at, 3, kBytes);
  for (int i = 0; i < 2; ++i) {
    struct iommu_ioas_map_file cmd = {.size = sizeof cmd,
                                      .flags = kBoth | IOMMU_IOAS_MAP_FIXED_IOVA,
                                      .ioas_id = i == 0 ? ioas : plain,
                                      .fd = file,
                                      .length = kBytes,
                                      .iova = kAperture};
    REQUIRE(ioctl(fd, IOMMU_IOAS_MAP_FILE, &cmd) == 0);
  }
  next_program("files", fd, ioas, plain, file);
}

static void read_both(int fd, const int* accesses, char expected) {
  for (int i = 0; i < 2; ++i) {
    char byte = 0;
    REQUIRE(access_rw(fd, accesses[i], kAperture + 7, &byte, 1, 0) == 0 && byte == expected);
  }
}

static void find_files(int fd, uint32_t ioas, uint32_t plain, int file) {
  char *const own = memory_of(kBytes, -1), *const at = memory_of(kBytes, file);
  memset(own, 5, kBytes);
  const int accesses[] = {access_of(fd, ioas), access_of(fd, plain)};
  REQUIRE(map_at(fd, ioas, own, kBytes, kOwn) == 0);
  at[7] = 4;
  read_both(fd, accesses, 4);
  REQUIRE(unmap_at(fd, ioas, kOwn, kBytes) == 0);
  struct iommu_ioas_change_process change = {.size = sizeof change};
  REQUIRE(ioctl(fd, IOMMU_IOAS_CHANGE_PROCESS, &change) == 0);
  REQUIRE(pinned_times(fd, at, kBytes, 1));
  REQUIRE(map_at(fd, ioas, own, kBytes, kOwn) == 0);
  at[7] = 6;
  read_both(fd, accesses, 6);
  for (int i = 0; i < 2; ++i) close(accesses[i]);
  REQUIRE(unmap_at(fd, ioas, kAperture, kBytes) == 0);
  REQUIRE(pinned_times(fd, at, kBytes, 0) && pinned_times(fd, own, kBytes, 1));
  REQUIRE(unmap_at(fd, plain, 0, ~0ull) == 0 && unmap_at(fd, ioas, 0, ~0ull) == 0);
}

int main(int argc, char** argv) {
  const int files = argc > 1 && strcmp(argv[1], "files") == 0;
  if (argc < 6) {
    const int fd = open("/dev/iommu", O_RDWR);
    REQUIRE(fd >= 0);
    files ? leave_files(fd) : leave_pins(fd);
  }
  const int fd = atoi(argv[2]), file = atoi(argv[5]);
  const uint32_t ioas = (uint32_t)atoi(argv[3]), other = (uint32_t)atoi(argv[4]);
  files ? find_files(fd, ioas, other, file) : find_pins(fd, ioas);
  printf("done\n");
  return 0;
}

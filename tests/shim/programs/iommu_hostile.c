// SPDX-License-Identifier: Apache-2.0
// What a careless or hostile client does to an iommufd: descriptors closed and processes forked
// under a request, counts that cannot be, pointers that end half-way, memory that goes while it is
// mapped. Every answer is the kernel's, nothing is left pinned, nothing falls over.
//
//   iommu_hostile                   under stagetwo run --iommufd-test --abi=6.18
#define _GNU_SOURCE
#include "iommufd_client.h"
//
#include <grp.h>
#include <pthread.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>

static int open_iommu(void) {
  const int fd = open("/dev/iommu", O_RDWR | O_CLOEXEC);
  REQUIRE(fd >= 0);
  return fd;
}
static uint8_t* pages_of(size_t count, int flags) {
  uint8_t* const at =
      mmap(NULL, count * kPage, PROT_READ | PROT_WRITE, flags | MAP_ANONYMOUS, -1, 0);
  REQUIRE(at != MAP_FAILED);
  return at;
}
static int refs_of(int iommu, const void* at, uint64_t bytes, unsigned refs) {
  struct iommu_test_cmd cmd = {
      .check_refs = {.length = bytes, .uptr = (uintptr_t)at, .refs = refs}};
  return test_op(iommu, IOMMU_TEST_OP_MD_CHECK_REFS, 0, &cmd);
}

// ---- requests under way

struct storm {
  int iommu;
  uint32_t ioas;
  uint8_t* memory;
  volatile int stop;
  unsigned long done, bad;
};
static void* map_and_unmap(void* argument) {
  struct storm* const s = argument;
  while (!s->stop) {
    if (map_at(s->iommu, s->ioas, s->memory, 4 * kPage, kAperture) != 0) {
      REQUIRE(errno == EBADF || errno == ENOTTY);
      ++s->bad;
      continue;
    }
    REQUIRE(unmap_at(s->iommu, s->ioas, kAperture, 4 * kPage) == 0 || errno == EBADF);
    ++s->done;
  }
  return NULL;
}

static void forks_while_mapping(void) {
  struct storm s = {.iommu = open_iommu(), .memory = pages_of(8, MAP_PRIVATE)};
  s.ioas = ioas_of(s.iommu);
  device_on(s.iommu, s.ioas);
  memset(s.memory, 1, 8 * kPage);
  pthread_t thread;
  REQUIRE(pthread_create(&thread, NULL, map_and_unmap, &s) == 0);
  for (int i = 0; i < 20; ++i) {
    const pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0) {
      // Its own memory in the same IOAS; the copy of the thread is not here, its requests neither.
      const uint64_t iova = kAperture + (uint64_t)(i + 1) * (64 * kPage);
      REQUIRE(map_at(s.iommu, s.ioas, s.memory + 4 * kPage, kPage, iova) == 0);
      if (i % 2 == 0) REQUIRE(unmap_at(s.iommu, s.ioas, iova, kPage) == 0);
      if (i % 4 == 1) kill(getpid(), SIGKILL);
      _exit(0);
    }
    int status = -1;
    REQUIRE(waitpid(child, &status, 0) == child);
    REQUIRE(i % 4 == 1 ? WIFSIGNALED(status) : status == 0);
  }
  s.stop = 1;
  pthread_join(thread, NULL);
  REQUIRE(s.bad == 0);
  REQUIRE(unmap_at(s.iommu, s.ioas, 0, UINT64_MAX) == 0);
  REQUIRE(refs_of(s.iommu, s.memory, 8 * kPage, 0) == 0);
  close(s.iommu);
  munmap(s.memory, 8 * kPage);
}

static void closes_under_a_request(void) {
  for (int i = 0; i < 8; ++i) {
    struct storm s = {.iommu = open_iommu(), .memory = pages_of(4, MAP_PRIVATE)};
    s.ioas = ioas_of(s.iommu);
    device_on(s.iommu, s.ioas);
    pthread_t threads[2];
    struct storm other = s;
    other.memory = pages_of(4, MAP_PRIVATE);
    other.ioas = ioas_of(s.iommu);
    REQUIRE(pthread_create(&threads[0], NULL, map_and_unmap, &s) == 0);
    REQUIRE(pthread_create(&threads[1], NULL, map_and_unmap, &other) == 0);
    usleep(500);
    close(s.iommu);
    usleep(200);
    s.stop = other.stop = 1;
    pthread_join(threads[0], NULL);
    pthread_join(threads[1], NULL);
    const int fresh = open_iommu();
    REQUIRE(refs_of(fresh, s.memory, 4 * kPage, 0) == 0);
    REQUIRE(refs_of(fresh, other.memory, 4 * kPage, 0) == 0);
    close(fresh);
    munmap(s.memory, 4 * kPage);
    munmap(other.memory, 4 * kPage);
  }
}

// ---- objects that are used

static void destroys_what_is_used(void) {
  const int iommu = open_iommu();
  const uint32_t ioas = ioas_of(iommu);
  const struct mock_device mock = device_on(iommu, ioas);
  REFUSES(destroy(iommu, ioas), EBUSY);
  REFUSES(destroy(iommu, mock.device), EBUSY);
  REFUSES(destroy(iommu, mock.hwpt), EBUSY);
  REFUSES(destroy(iommu, 0), ENOENT);
  REFUSES(destroy(iommu, UINT32_MAX), ENOENT);
  REFUSES(destroy(iommu, INT32_MAX), ENOENT);
  const uint32_t parent = hwpt_of(iommu, mock.device, ioas, IOMMU_HWPT_ALLOC_NEST_PARENT, 0, NULL);
  struct iommu_hwpt_selftest data = {0};
  const uint32_t nested = hwpt_of(iommu, mock.device, parent, 0, 0, &data);
  REFUSES(destroy(iommu, parent), EBUSY);
  REQUIRE(replace(iommu, mock.test_device, nested) == 0);
  REFUSES(destroy(iommu, mock.hwpt), ENOENT);  // it went with its last device
  REFUSES(destroy(iommu, nested), EBUSY);
  REQUIRE(destroy(iommu, mock.test_device) == 0);
  REFUSES(destroy(iommu, mock.device), ENOENT);
  REFUSES(destroy(iommu, ioas), EBUSY);
  REQUIRE(destroy(iommu, nested) == 0 && destroy(iommu, parent) == 0 && destroy(iommu, ioas) == 0);
  close(iommu);
}

// ---- counts and pointers

static void counts_that_cannot_be(void) {
  const int iommu = open_iommu();
  const uint32_t ioas = ioas_of(iommu);
  uint8_t* const memory = pages_of(2, MAP_PRIVATE);
  REQUIRE(mprotect(memory + kPage, kPage, PROT_NONE) == 0);
  // Longer than a page of zeros: the size is read, the rest must be there.
  struct iommu_ioas_alloc* const alloc = (void*)(memory + kPage - sizeof *alloc);
  *alloc = (struct iommu_ioas_alloc){.size = kPage};
  REFUSES(ioctl(iommu, IOMMU_IOAS_ALLOC, alloc), EFAULT);
  alloc->size = UINT32_MAX;
  REFUSES(ioctl(iommu, IOMMU_IOAS_ALLOC, alloc), EFAULT);
  alloc->size = 0;
  REFUSES(ioctl(iommu, IOMMU_IOAS_ALLOC, alloc), EINVAL);
  // The size alone is there.
  uint32_t* const end = (void*)(memory + kPage - 4);
  *end = sizeof *alloc;
  REFUSES(ioctl(iommu, IOMMU_IOAS_ALLOC, end), EFAULT);
  REFUSES(ioctl(iommu, IOMMU_IOAS_ALLOC, memory + kPage), EFAULT);
  REFUSES(ioctl(iommu, IOMMU_IOAS_ALLOC, (void*)-8), EFAULT);
  // Ranges up to the end of what can be read; the first that is none is said at once, however many
  // there are said to be.
  struct iommu_iova_range* const ranges = (void*)(memory + kPage - 2 * sizeof *ranges);
  ranges[0] = (struct iommu_iova_range){kAperture, kAperture + kPage - 1};
  ranges[1] = (struct iommu_iova_range){2 * kAperture, 2 * kAperture + kPage - 1};
  struct iommu_ioas_allow_iovas allow = {
      .size = sizeof allow, .ioas_id = ioas, .num_iovas = 3, .allowed_iovas = (uintptr_t)ranges};
  REFUSES(ioctl(iommu, IOMMU_IOAS_ALLOW_IOVAS, &allow), EFAULT);
  ranges[1] = ranges[0];
  REFUSES(ioctl(iommu, IOMMU_IOAS_ALLOW_IOVAS, &allow), EINVAL);
  const size_t much = (size_t)UINT32_MAX * sizeof *ranges;
  void* const zeros =
      mmap(NULL, much, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  REQUIRE(zeros != MAP_FAILED);
  allow.num_iovas = UINT32_MAX;
  allow.allowed_iovas = (uintptr_t)zeros;
  REFUSES(ioctl(iommu, IOMMU_IOAS_ALLOW_IOVAS, &allow), EINVAL);
  munmap(zeros, much);
  // How many there are is told although they have no place.
  struct iommu_ioas_iova_ranges told = {.size = sizeof told, .ioas_id = ioas, .num_iovas = 0};
  REFUSES(ioctl(iommu, IOMMU_IOAS_IOVA_RANGES, &told), EMSGSIZE);
  REQUIRE(told.num_iovas == 1);
  told.num_iovas = UINT32_MAX;
  told.allowed_iovas = (uintptr_t)(memory + kPage);
  REFUSES(ioctl(iommu, IOMMU_IOAS_IOVA_RANGES, &told), EFAULT);
  // Lengths and places beyond all memory.
  REFUSES(map_at(iommu, ioas, memory, 0, kAperture), EINVAL);
  REFUSES(map_at(iommu, ioas, memory, UINT64_MAX, kAperture), EOVERFLOW);
  REFUSES(map_at(iommu, ioas, memory, UINT64_MAX - 1, kAperture), EINVAL);
  REFUSES(map_at(iommu, ioas, memory, kPage, UINT64_MAX), EOVERFLOW);
  REFUSES(map_at(iommu, ioas, memory, kPage, UINT64_MAX - 2), EOVERFLOW);
  REFUSES(map_at(iommu, ioas, (void*)-kPage, 2 * kPage, kAperture), EOVERFLOW);
  REFUSES(unmap_at(iommu, ioas, kAperture, 0), EINVAL);
  REFUSES(unmap_at(iommu, ioas, UINT64_MAX, 1), EOVERFLOW);
  REFUSES(unmap_at(iommu, ioas, UINT64_MAX - 1, 3), EOVERFLOW);
  close(iommu);
  munmap(memory, 2 * kPage);
}

// Half of it is there: nothing of it is mapped, nothing pinned.
static void memory_that_ends_half_way(void) {
  const int iommu = open_iommu();
  const uint32_t ioas = ioas_of(iommu);
  device_on(iommu, ioas);
  uint8_t* const memory = pages_of(64, MAP_PRIVATE);
  REQUIRE(munmap(memory + 40 * kPage, 24 * kPage) == 0);
  REFUSES(map_at(iommu, ioas, memory, 64 * kPage, kAperture), EFAULT);
  REQUIRE(refs_of(iommu, memory, 40 * kPage, 0) == 0);
  REFUSES(unmap_at(iommu, ioas, kAperture, 64 * kPage), ENOENT);
  REQUIRE(map_at(iommu, ioas, memory, 40 * kPage, kAperture) == 0);
  REQUIRE(refs_of(iommu, memory, 40 * kPage, 1) == 0);
  // What may only be read cannot be lent for writing.
  uint8_t* const still = pages_of(2, MAP_PRIVATE);
  REQUIRE(mprotect(still, 2 * kPage, PROT_READ) == 0);
  REFUSES(map_at(iommu, ioas, still, 2 * kPage, 2 * kAperture), EFAULT);
  close(iommu);
  const int fresh = open_iommu();
  REQUIRE(refs_of(fresh, memory, 40 * kPage, 0) == 0);
  close(fresh);
  munmap(memory, 40 * kPage);
  munmap(still, 2 * kPage);
}

// ---- memory that goes

static void unmaps_what_is_mapped(void) {
  const int iommu = open_iommu();
  const uint32_t loose = ioas_of(iommu), pinned = ioas_of(iommu);
  device_on(iommu, pinned);
  uint8_t* const memory = pages_of(4, MAP_PRIVATE);
  memset(memory, 0x5a, 4 * kPage);
  REQUIRE(map_at(iommu, loose, memory, 4 * kPage, kAperture) == 0);
  REQUIRE(map_at(iommu, pinned, memory, 4 * kPage, kAperture) == 0);
  const int by_loose = access_of(iommu, loose), by_pinned = access_of(iommu, pinned);
  uint8_t bytes[kPage];
  REQUIRE(access_rw(iommu, by_loose, kAperture + 100, bytes, 200, 0) == 0 && bytes[0] == 0x5a);
  REQUIRE(munmap(memory + kPage, kPage) == 0);
  // Nobody holds the page of the one; the other's is what it was, and can be written.
  REFUSES(access_rw(iommu, by_loose, kAperture + kPage, bytes, 200, 0), EFAULT);
  memset(bytes, 0, sizeof bytes);
  REQUIRE(access_rw(iommu, by_pinned, kAperture + kPage, bytes, 200, 0) == 0 && bytes[199] == 0x5a);
  bytes[0] = 0x77;
  REQUIRE(access_rw(iommu, by_pinned, kAperture + kPage, bytes, 1, MOCK_ACCESS_RW_WRITE) == 0);
  bytes[0] = 0;
  REQUIRE(access_rw(iommu, by_pinned, kAperture + kPage, bytes, 1, 0) == 0 && bytes[0] == 0x77);
  // What comes there later is none of the pinned one's.
  uint8_t* const fresh = mmap(memory + kPage, kPage, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
  REQUIRE(fresh == memory + kPage && fresh[0] == 0);
  REQUIRE(access_rw(iommu, by_pinned, kAperture + kPage, bytes, 1, 0) == 0 && bytes[0] == 0x77);
  REQUIRE(access_rw(iommu, by_loose, kAperture + kPage, bytes, 1, 0) == 0 && bytes[0] == 0);
  REFUSES(access_rw(iommu, by_pinned, kAperture + 4 * kPage - 1, bytes, 2, 0), ENOENT);
  REQUIRE(unmap_at(iommu, pinned, kAperture, 4 * kPage) == 0);
  REFUSES(access_rw(iommu, by_pinned, kAperture, bytes, 1, 0), ENOENT);
  close(by_loose);
  close(by_pinned);
  close(iommu);
  munmap(memory, 4 * kPage);
}

// ---- a process that was sent it

static void shares_with_another_process(void) {
  int pair[2];
  REQUIRE(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
  const pid_t child = start_again("sharer", pair[1]);
  close(pair[1]);
  const int iommu = open_iommu();
  uint32_t ids[2] = {ioas_of(iommu), 0};
  uint8_t* const memory = pages_of(2, MAP_SHARED);
  memset(memory, 0x11, 2 * kPage);
  REQUIRE(map_at(iommu, ids[0], memory, 2 * kPage, kAperture) == 0);
  send_descriptors(pair[0], &iommu, 1);
  REQUIRE(send(pair[0], ids, sizeof ids, 0) == sizeof ids);
  char byte;
  REQUIRE(recv(pair[0], &byte, 1, 0) == 1);  // it has mapped its own beside ours
  const int access = access_of(iommu, ids[0]);
  uint8_t bytes[16];
  REQUIRE(access_rw(iommu, access, kAperture, bytes, 16, 0) == 0 && bytes[15] == 0x11);
  REQUIRE(access_rw(iommu, access, 2 * kAperture, bytes, 16, 0) == 0 && bytes[15] == 0x22);
  bytes[0] = 0x33;
  REQUIRE(access_rw(iommu, access, 2 * kAperture, bytes, 1, MOCK_ACCESS_RW_WRITE) == 0);
  REFUSES(map_at(iommu, ids[0], memory, kPage, 2 * kAperture), EEXIST);
  REQUIRE(send(pair[0], "", 1, 0) == 1);
  ends_well(child);
  // Its memory went with it.
  REFUSES(access_rw(iommu, access, 2 * kAperture + kPage, bytes, 16, 0), EFAULT);
  REQUIRE(unmap_at(iommu, ids[0], 2 * kAperture, 2 * kPage) == 0);
  close(access);
  close(iommu);
  close(pair[0]);
  munmap(memory, 2 * kPage);
}
static int sharer(int socket) {
  int iommu;
  uint32_t ids[2];
  receive_descriptors(socket, &iommu, 1);
  REQUIRE(recv(socket, ids, sizeof ids, 0) == sizeof ids);
  uint8_t* const memory = pages_of(2, MAP_PRIVATE);
  memset(memory, 0x22, 2 * kPage);
  REFUSES(map_at(iommu, ids[0], memory, kPage, kAperture), EEXIST);
  REQUIRE(map_at(iommu, ids[0], memory, 2 * kPage, 2 * kAperture) == 0);
  REQUIRE(send(socket, "", 1, 0) == 1);
  char byte;
  REQUIRE(recv(socket, &byte, 1, 0) == 1);
  REQUIRE(memory[0] == 0x33 && memory[1] == 0x22);
  return 0;
}

// An iommufd and its file go to a process that is no child's; the one before ends.
static void goes_to_an_heir(void) {
  int pair[2];
  REQUIRE(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
  const pid_t heir = start_again("heir", pair[1]);
  const pid_t before = fork();
  if (before == 0) {
    const int file = memfd_create("memory", MFD_CLOEXEC);
    REQUIRE(ftruncate(file, 4 * kPage) == 0 && pwrite(file, "heirloom", 9, 2 * kPage) == 9);
    int fds[3] = {open_iommu(), file, -1};
    const uint32_t ioas = ioas_of(fds[0]);
    device_on(fds[0], ioas);
    struct iommu_ioas_map_file map = {.size = sizeof map,
                                      .flags = kBoth | IOMMU_IOAS_MAP_FIXED_IOVA,
                                      .ioas_id = ioas,
                                      .fd = file,
                                      .length = 4 * kPage,
                                      .iova = kAperture};
    REQUIRE(ioctl(fds[0], IOMMU_IOAS_MAP_FILE, &map) == 0);
    send_descriptors(pair[0], fds, 2);
    REQUIRE(send(pair[0], &ioas, sizeof ioas, 0) == sizeof ioas);
    char byte;
    REQUIRE(recv(pair[0], &byte, 1, 0) == 1);
    _exit(0);
  }
  ends_well(before);
  REQUIRE(send(pair[0], "", 1, 0) == 1);
  ends_well(heir);
  close(pair[0]);
  close(pair[1]);
}
static int heir(int socket) {
  int fds[2];
  uint32_t ioas;
  receive_descriptors(socket, fds, 2);
  REQUIRE(recv(socket, &ioas, sizeof ioas, 0) == sizeof ioas);
  struct iommu_ioas_change_process change = {.size = sizeof change, .__reserved = 1};
  REFUSES(ioctl(fds[0], IOMMU_IOAS_CHANGE_PROCESS, &change), EOPNOTSUPP);
  change.__reserved = 0;
  REQUIRE(ioctl(fds[0], IOMMU_IOAS_CHANGE_PROCESS, &change) == 0);
  REQUIRE(send(socket, "", 1, 0) == 1);
  char byte, text[9];
  REQUIRE(recv(socket, &byte, 1, 0) == 1);  // the one before is gone
  const int access = access_of(fds[0], ioas);
  REQUIRE(access_rw(fds[0], access, kAperture + 2 * kPage, text, sizeof text, 0) == 0);
  REQUIRE(strcmp(text, "heirloom") == 0);
  REQUIRE(access_rw(fds[0], access, kAperture, text, sizeof text, MOCK_ACCESS_RW_WRITE) == 0);
  REQUIRE(pread(fds[1], text, sizeof text, 0) == sizeof text && strcmp(text, "heirloom") == 0);
  // What is no file's stays whose it is.
  uint8_t* const memory = pages_of(1, MAP_PRIVATE);
  REQUIRE(map_at(fds[0], ioas, memory, kPage, 2 * kAperture) == 0);
  REFUSES(ioctl(fds[0], IOMMU_IOAS_CHANGE_PROCESS, &change), EINVAL);
  REQUIRE(unmap_at(fds[0], ioas, 0, UINT64_MAX) == 0);
  close(access);
  close(fds[0]);
  return 0;
}

// ---- the limit of locked memory

static void limit_to(size_t pages) {
  const struct rlimit limit = {pages * kPage, pages * kPage};
  REQUIRE(setrlimit(RLIMIT_MEMLOCK, &limit) == 0);
}
static void no_rights(void) {
  if (geteuid() != 0) return;
  REQUIRE(syscall(SYS_setgroups, 0, NULL) == 0);
  REQUIRE(syscall(SYS_setresgid, 65534, 65534, 65534) == 0);
  REQUIRE(syscall(SYS_setresuid, 65534, 65534, 65534) == 0);
}
static void pins_up_to_the_limit(int by_process) {
  const pid_t child = fork();
  if (child != 0) return ends_well(child);
  const int iommu = open_iommu();
  if (by_process) {
    struct iommu_option mode = {.size = sizeof mode,
                                .option_id = IOMMU_OPTION_RLIMIT_MODE,
                                .op = IOMMU_OPTION_OP_SET,
                                .val64 = 1};
    const int set = ioctl(iommu, IOMMU_OPTION, &mode);
    if (set != 0 && errno == EPERM) _exit(0);  // not for everybody
    REQUIRE(set == 0);
  }
  const uint32_t ioas = ioas_of(iommu);
  device_on(iommu, ioas);
  uint8_t* const memory = pages_of(16, MAP_PRIVATE);
  memset(memory, 1, 16 * kPage);
  limit_to(8);
  no_rights();
  REFUSES(map_at(iommu, ioas, memory, 9 * kPage, kAperture), ENOMEM);
  REQUIRE(refs_of(iommu, memory, 16 * kPage, 0) == 0);
  REQUIRE(map_at(iommu, ioas, memory, 8 * kPage, kAperture) == 0);
  REFUSES(map_at(iommu, ioas, memory + 8 * kPage, 1, kAperture + 64 * kPage), EINVAL);
  REFUSES(map_at(iommu, ioas, memory + 8 * kPage, kPage, kAperture + 64 * kPage), ENOMEM);
  REQUIRE(unmap_at(iommu, ioas, kAperture, 8 * kPage) == 0);
  REQUIRE(map_at(iommu, ioas, memory + 8 * kPage, 8 * kPage, kAperture) == 0);
  // A second process of the same user has its own room in the one mode alone.
  const pid_t other = fork();
  if (other == 0) {
    const int set = map_at(iommu, ioas, memory, 8 * kPage, 2 * kAperture);
    if (by_process) REQUIRE(set == 0);
    if (!by_process) REQUIRE(set == -1 && errno == ENOMEM);
    _exit(0);
  }
  ends_well(other);
  _exit(0);
}

int main(int argc, char** argv) {
  if (argc == 3 && strcmp(argv[1], "heir") == 0) return heir(atoi(argv[2]));
  if (argc == 3) return sharer(atoi(argv[2]));
  forks_while_mapping();
  closes_under_a_request();
  destroys_what_is_used();
  counts_that_cannot_be();
  memory_that_ends_half_way();
  unmaps_what_is_mapped();
  shares_with_another_process();
  goes_to_an_heir();
  pins_up_to_the_limit(0);
  pins_up_to_the_limit(1);
  puts("done");
  return 0;
}

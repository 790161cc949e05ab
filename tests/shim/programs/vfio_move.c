// SPDX-License-Identifier: Apache-2.0
// A client that has a copy accelerator move memory, with nothing but the kernel's headers.
//
//   vfio_move          S4-17: open, version, group, container, device, map, move 1 MiB, verify,
//                      unmap, close
//   vfio_move sva      S4-20: two processes, each with a queue that shares its addresses, and no
//                      map call; each reaches its own memory only; a page that is freed under a
//                      move ends it there; the end of one leaves the other running
//   vfio_move hostile  what a client may try: fork with everything open, a container sent to
//                      another process, kill -9 in the middle of a move, half a map taken away, all
//                      of them under a move, a group opened twice
#define _GNU_SOURCE
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "vfio_client.h"

static const uint64_t kIova = 0x10000000;

struct client {
  int container, group, device;
  char uuid[40], group_path[64];
  struct ring* ring;
  struct dsa_completion_record* record;
  int shares;  // the process's addresses
};

static int map(struct client* c, void* at, uint64_t iova, size_t size) {
  return map_dma(c->container, at, iova, size);
}
static int unmap(struct client* c, uint64_t iova, uint64_t size, uint32_t flags, uint64_t* bytes) {
  return unmap_dma(c->container, iova, size, flags, bytes);
}

static void make(struct client* c, const char* type, unsigned number) {
  char path[256];
  snprintf(c->uuid, sizeof c->uuid, "17171717-0000-4000-8000-%012x", number);
  snprintf(path, sizeof path, "/sys/class/mdev_bus/dma-engine/mdev_supported_types/%s/create",
           type);
  REQUIRE(put(path, c->uuid) == 36);
  snprintf(path, sizeof path, "/sys/bus/mdev/devices/%s", c->uuid);
  snprintf(c->group_path, sizeof c->group_path, "%.63s", group_of(path));
}

static void begin(struct client* c) {
  c->container = open("/dev/vfio/vfio", O_RDWR);
  c->group = open(c->group_path, O_RDWR);
  REQUIRE(ioctl(c->container, VFIO_GET_API_VERSION) == VFIO_API_VERSION);
  REQUIRE(ioctl(c->container, VFIO_CHECK_EXTENSION, VFIO_TYPE1v2_IOMMU) == 1);
  struct vfio_group_status status = {.argsz = sizeof status};
  REQUIRE(ioctl(c->group, VFIO_GROUP_GET_STATUS, &status) == 0);
  REQUIRE((status.flags & VFIO_GROUP_FLAGS_VIABLE) != 0);
  c->device = open_in_container(c->container, c->group, c->uuid);
  c->ring = ring_of(c->device);
  c->record = memory_of(kPage);
  if (!c->shares) REQUIRE(map(c, c->record, kIova - kPage, kPage) == 0);
}

static void submit(struct client* c, uint64_t from, uint64_t to, size_t size) {
  struct dsa_hw_desc d = descriptor_of(
      DSA_OPCODE_MEMMOVE, c->shares ? (uintptr_t)c->record : kIova - kPage, from, to, size);
  if (c->shares) d.flags |= IDXD_OP_FLAG_BOF;
  memset(c->record, 0, sizeof *c->record);
  submit_to(c->device, c->ring, &d);
}
static int move(struct client* c, uint64_t from, uint64_t to, size_t size) {
  submit(c, from, to, size);
  return status_of(c->record);
}

static void end(struct client* c) {
  munmap(c->ring, kRingBytes);
  close(c->device);
  REQUIRE(ioctl(c->group, VFIO_GROUP_UNSET_CONTAINER) == 0);
  close(c->group);
  close(c->container);
}
static void remove_device(struct client* c) {
  char path[128];
  snprintf(path, sizeof path, "/sys/bus/mdev/devices/%s/remove", c->uuid);
  REQUIRE(put(path, "1") == 1);
  REFUSED(open(c->group_path, O_RDWR), ENOENT);
}

static void fill(uint8_t* at, size_t size, unsigned seed) {
  for (size_t i = 0; i < size; ++i) at[i] = (uint8_t)(i * 167 + i / 253 + seed);
}

// ---- S4-17

// By its name in /proc: the device is opened anew, as by its own.
static int open_again(int fd) {
  char name[64];
  snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
  return open(name, O_RDWR);
}
static void opened_again_are_fresh(const struct client* c) {
  struct vfio_iommu_type1_info info = {.argsz = sizeof info};
  REQUIRE(ioctl(c->container, VFIO_IOMMU_GET_INFO, &info) == 0);
  const int container = open_again(c->container);
  REQUIRE(container >= 0 && ioctl(container, VFIO_GET_API_VERSION) == VFIO_API_VERSION);
  REFUSED(ioctl(container, VFIO_IOMMU_GET_INFO, &info), EINVAL);
  REQUIRE(close(container) == 0);
  REFUSED(open_again(c->group), EBUSY);
  REFUSED(open_again(c->device), ENXIO);
}

static void move_a_mebibyte(void) {
  enum { kBytes = 1 << 20 };
  struct client c = {0};
  make(&c, "dma-engine-1", 1);
  begin(&c);
  uint8_t* const from = memory_of(2 * kBytes);
  fill(from, kBytes, 1);
  REQUIRE(map(&c, from, kIova, 2 * kBytes) == 0);
  REFUSED(map(&c, from, kIova + kBytes, kPage), EEXIST);
  REQUIRE(move(&c, kIova, kIova + kBytes, kBytes) == DSA_COMP_SUCCESS);
  REQUIRE(memcmp(from, from + kBytes, kBytes) == 0);
  opened_again_are_fresh(&c);
  // I23: a page is pinned, and stays the device's whatever its client may do with it.
  fill(from, kPage, 2);
  REQUIRE(mprotect(from + kBytes, kPage, PROT_NONE) == 0);
  REQUIRE(move(&c, kIova, kIova + kBytes, kPage) == DSA_COMP_SUCCESS);
  REQUIRE(mprotect(from + kBytes, kPage, PROT_READ | PROT_WRITE) == 0);
  REQUIRE(memcmp(from, from + kBytes, kPage) == 0);
  uint64_t bytes = 0;
  // A device's own memory is memory to another: what a container maps of a region is reached.
  enum { kPlace = 100 * 1024 };
  const uint64_t peer = kIova + 0x1000000;
  REQUIRE(map(&c, c.ring, peer, kRingBytes) == 0);
  REQUIRE(move(&c, kIova, peer + kPlace, kPage) == DSA_COMP_SUCCESS);
  REQUIRE(memcmp(from, (uint8_t*)c.ring + kPlace, kPage) == 0);
  REQUIRE(unmap(&c, peer, kRingBytes, 0, &bytes) == 0);
  REFUSED(unmap(&c, kIova, kBytes, 0, &bytes), EINVAL);
  REQUIRE(unmap(&c, kIova, 2 * kBytes, 0, &bytes) == 0 && bytes == 2 * kBytes);
  // A read that is refused: no bytes, the address.
  REQUIRE(move(&c, kIova, kIova - kPage + 64, 8) == DSA_COMP_PAGE_FAULT_NOBOF);
  REQUIRE(c.record->bytes_completed == 0 && c.record->fault_addr == kIova);
  end(&c);
  remove_device(&c);
}

// ---- S4-20

// The same address in each process, with other memory behind it: far from where the kernel puts
// mappings by itself, which begins at 0x7f... and goes down by what the engine reserves.
static uint8_t* const kSame = (uint8_t*)0x300000000000;
enum { kShared = 4 << 20 };

static void work_alone(unsigned number, int told, int asked) {
  struct client c = {.shares = 1};
  make(&c, "dma-engine-sva", number);
  begin(&c);
  REQUIRE(mmap(kSame, kShared, PROT_READ | PROT_WRITE,
               MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) == kSame);
  fill(kSame, kShared / 2, number);
  char byte = 0;
  REQUIRE(write(told, &byte, 1) == 1 && read(asked, &byte, 1) == 1);
  for (unsigned i = 0; i < 8; ++i) {
    memset(kSame + kShared / 2, 0, kShared / 2);
    REQUIRE(move(&c, (uintptr_t)kSame, (uintptr_t)kSame + kShared / 2, kShared / 2) ==
            DSA_COMP_SUCCESS);
    REQUIRE(memcmp(kSame, kSame + kShared / 2, kShared / 2) == 0);
    fill(kSame, kShared / 2, number + i);
  }
  if (number == 21) _exit(0);  // in the middle of it: nothing closed, nothing removed
  REQUIRE(write(told, &byte, 1) == 1 && read(asked, &byte, 1) == 1);  // the other has ended
  REQUIRE(move(&c, (uintptr_t)kSame, (uintptr_t)kSame + kShared / 2, kPage) == DSA_COMP_SUCCESS);
  // A page is freed under the move: it ends there, and what was counted is what arrived.
  unsigned cut = 0;
  for (unsigned i = 0; i < 100 && cut < 8; ++i) {
    uint8_t* const from = memory_of(kShared);
    fill(from, kShared, i);
    memset(kSame, 0, kShared);
    const size_t hole = (kShared / kPage - 1 - i) * (size_t)kPage;
    submit(&c, (uintptr_t)from, (uintptr_t)kSame, kShared);
    munmap(from + hole, kPage);
    const int status = status_of(c.record);
    if (status == DSA_COMP_SUCCESS) {  // it was faster
      munmap(from, kShared);
      continue;
    }
    REQUIRE((status & 0x7f) == DSA_COMP_PAGE_FAULT_IR && (status & 0x80) == 0);
    REQUIRE(c.record->fault_addr == (uintptr_t)from + hole);
    REQUIRE(c.record->bytes_completed == hole);
    REQUIRE(memcmp(from, kSame, hole) == 0 && kSame[hole] == 0 && kSame[kShared - 1] == 0);
    munmap(from, kShared);
    ++cut;
  }
  REQUIRE(cut != 0);
  end(&c);
  remove_device(&c);
  _exit(0);
}

static void two_processes(const char* self) {
  int told[2][2], asked[2][2];
  pid_t children[2];
  char byte = 0;
  for (unsigned i = 0; i < 2; ++i) {
    REQUIRE(pipe(told[i]) == 0 && pipe(asked[i]) == 0);
    children[i] = fork();
    if (children[i] == 0) {
      char number[8], in[8], out[8];
      snprintf(number, sizeof number, "%u", 20 + i);
      snprintf(out, sizeof out, "%d", told[i][1]);
      snprintf(in, sizeof in, "%d", asked[i][0]);
      execl(self, self, "alone", number, out, in, (char*)NULL);
      _exit(1);
    }
    // One that fails must be read as an end, not waited for.
    close(told[i][1]);
    close(asked[i][0]);
  }
  int status = -1;
  for (unsigned i = 0; i < 2; ++i) REQUIRE(read(told[i][0], &byte, 1) == 1);
  for (unsigned i = 0; i < 2; ++i) REQUIRE(write(asked[i][1], &byte, 1) == 1);
  REQUIRE(waitpid(children[1], &status, 0) == children[1] && status == 0);
  REQUIRE(read(told[0][0], &byte, 1) == 1 && write(asked[0][1], &byte, 1) == 1);
  REQUIRE(waitpid(children[0], &status, 0) == children[0] && status == 0);
  // What the other left goes when it is asked to: nobody has it open.
  struct client left = {0};
  snprintf(left.uuid, sizeof left.uuid, "17171717-0000-4000-8000-%012x", 21);
  strcpy(left.group_path, "/dev/vfio/63");
  remove_device(&left);
}

// ---- hostile

static int send_fd(int socket, int fd) {
  char byte = 0, control[CMSG_SPACE(sizeof(int))] = "";
  struct iovec part = {&byte, 1};
  struct msghdr message = {
      .msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
  struct cmsghdr* const head = CMSG_FIRSTHDR(&message);
  head->cmsg_level = SOL_SOCKET;
  head->cmsg_type = SCM_RIGHTS;
  head->cmsg_len = CMSG_LEN(sizeof(int));
  memcpy(CMSG_DATA(head), &fd, sizeof fd);
  return (int)sendmsg(socket, &message, 0);
}
static int receive_fd(int socket) {
  char byte = 0, control[CMSG_SPACE(sizeof(int))] = "";
  struct iovec part = {&byte, 1};
  struct msghdr message = {
      .msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
  int fd = -1;
  if (recvmsg(socket, &message, 0) == 1) memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof fd);
  return fd;
}
static int exit_of(pid_t child) {
  int status = -1;
  REQUIRE(waitpid(child, &status, 0) == child);
  return status;
}

// The memory is of both, so that the child sees what a device of the parent's does.
static void fork_with_everything_open(struct client* c) {
  const pid_t child = fork();
  if (child == 0) {
    struct vfio_group_status status = {.argsz = sizeof status};
    if (ioctl(c->group, VFIO_GROUP_GET_STATUS, &status) != 0) _exit(1);
    if (ioctl(c->group, VFIO_GROUP_UNSET_CONTAINER) != -1 || errno != EBUSY) _exit(2);
    if (open(c->group_path, O_RDWR) != -1 || errno != EBUSY) _exit(3);
    uint64_t bytes = 0;
    if (unmap(c, kIova, kPage, 0, &bytes) != -1 || errno != EINVAL) _exit(4);
    _exit(0);
  }
  REQUIRE(exit_of(child) == 0);
  REQUIRE(move(c, kIova, kIova + kPage, kPage) == DSA_COMP_SUCCESS);
}

// To a process that is no child of the client's, and knows nothing but the descriptor.
static void send_the_container(struct client* c, const char* self) {
  int ends[2];
  REQUIRE(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, ends) == 0);
  const pid_t child = fork();
  if (child == 0) {
    char number[8];
    snprintf(number, sizeof number, "%d", dup(ends[1]));
    for (int fd = 3; fd < 1024; ++fd) {
      if (fd != atoi(number)) close(fd);
    }
    execl(self, self, "receive", number, (char*)NULL);
    _exit(9);
  }
  REQUIRE(send_fd(ends[0], c->container) == 1);
  REQUIRE(exit_of(child) == 0);
  close(ends[0]);
  close(ends[1]);
  // What it mapped went with its own memory: nobody else's is there, and the client's own still is.
  REQUIRE(move(c, kIova, kIova + kPage, kPage) == DSA_COMP_SUCCESS);
}
static int receive(int socket) {
  struct client other = {.container = receive_fd(socket)};
  if (ioctl(other.container, VFIO_GET_API_VERSION) != VFIO_API_VERSION) return 1;
  if (ioctl(other.container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU) != -1 || errno != EINVAL) return 2;
  uint64_t bytes = 0;
  if (unmap(&other, kIova, kPage, 0, &bytes) != -1 || errno != EINVAL) return 3;  // half a map
  uint8_t* const own = memory_of(kPage);
  if (map(&other, own, kIova, kPage) != -1 || errno != EEXIST) return 4;
  return 0;
}

static void take_all_away_under_a_move(struct client* c, uint8_t* at, size_t size) {
  for (unsigned i = 0; i < 20; ++i) {
    fill(at, size / 2, i);
    memset(at + size / 2, 0, size / 2);
    submit(c, kIova, kIova + size / 2, size / 2);
    usleep(i * 20);
    uint64_t bytes = 0;
    REQUIRE(unmap(c, 0, 0, VFIO_DMA_UNMAP_FLAG_ALL, &bytes) == 0 && bytes == size + kPage);
    // Nothing lands from here on, nor is a record written: there is no place for it.
    memset(at + size / 2, 0x5a, size / 2);
    c->record->status = 0;
    usleep(500);
    for (size_t b = size / 2; b < size; ++b) REQUIRE(at[b] == 0x5a);
    REQUIRE(c->record->status == 0);
    REQUIRE(map(c, c->record, kIova - kPage, kPage) == 0 && map(c, at, kIova, size) == 0);
    const uint32_t reset = 5u << 20;
    REQUIRE(pwrite(c->device, &reset, 4, 0xa0) == 4);
    memset(c->ring, 0, 64);
  }
}

// A reset is the device's, whichever process asks: of what was under way nothing lands any more.
static void reset_by_a_child(struct client* c, uint8_t* at, size_t size) {
  for (unsigned i = 0; i < 10; ++i) {
    const uint64_t record = kIova - kPage, pattern = 0x1111111111111111;
    const struct dsa_hw_desc d =
        descriptor_of(DSA_OPCODE_MEMFILL, record, pattern, kIova + size / 2, size / 2);
    memset(c->record, 0, sizeof *c->record);
    for (unsigned n = 0; n < 1000; ++n) submit_to(c->device, c->ring, &d);
    while (((volatile uint8_t*)at)[size / 2] != 0x11) usleep(10);
    const pid_t child = fork();
    if (child == 0) {
      const uint32_t abort_all = 4u << 20;
      if (i % 2 == 0 && ioctl(c->device, VFIO_DEVICE_RESET) != 0) _exit(1);
      if (i % 2 != 0 && pwrite(c->device, &abort_all, 4, 0xa0) != 4) _exit(2);
      memset(at + size / 2, 0x5a, size / 2);  // of both; a canary from here on
      for (unsigned n = 0; n < 20; ++n) {
        usleep(100);
        for (size_t b = size / 2; b < size; ++b) {
          if (at[b] != 0x5a) _exit(3);
        }
      }
      _exit(0);
    }
    const int status = exit_of(child);
    if (status != 0) printf("%u: the child ended with 0x%x\n", i, status);
    REQUIRE(status == 0);
    REQUIRE(ioctl(c->device, VFIO_DEVICE_RESET) == 0);
    REQUIRE(move(c, kIova, kIova + size / 2, kPage) == DSA_COMP_SUCCESS);
  }
}

static void kill_in_the_middle(struct client* c, uint8_t* both, size_t size) {
  for (unsigned i = 0; i < 5; ++i) {
    const pid_t child = fork();
    if (child == 0) {
      begin(c);
      REQUIRE(map(c, both, kIova, size) == 0);
      for (;;) move(c, kIova, kIova + size / 2, size / 2);
    }
    both[size - 1] = 0;
    both[size / 2 - 1] = 0x77;
    while (((volatile uint8_t*)both)[size - 1] != 0x77) usleep(100);
    kill(child, SIGKILL);
    REQUIRE(WIFSIGNALED(exit_of(child)));
    memset(both + size / 2, 0x5a, size / 2);
    usleep(2000);
    for (size_t b = size / 2; b < size; ++b) REQUIRE(both[b] == 0x5a);
  }
}

static void hostile(const char* self) {
  enum { kBytes = 1 << 20 };
  struct client c = {0};
  make(&c, "dma-engine-1", 31);
  uint8_t* const both =
      mmap(NULL, kBytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  REQUIRE(both != MAP_FAILED);
  kill_in_the_middle(&c, both, kBytes);
  begin(&c);
  REFUSED(open(c.group_path, O_RDWR), EBUSY);
  REQUIRE(map(&c, both, kIova, kBytes) == 0);
  fork_with_everything_open(&c);
  reset_by_a_child(&c, both, kBytes);
  send_the_container(&c, self);
  uint64_t bytes = 0;
  REFUSED(unmap(&c, kIova, kBytes / 2, 0, &bytes), EINVAL);
  REFUSED(unmap(&c, kIova + kBytes / 2, kBytes / 2, 0, &bytes), EINVAL);
  take_all_away_under_a_move(&c, both, kBytes);
  // Its descriptors closed in the wrong order: the device still has its memory.
  const int container = c.container, group = c.group;
  REFUSED(ioctl(c.group, VFIO_GROUP_UNSET_CONTAINER), EBUSY);
  close(group);
  REFUSED(open(c.group_path, O_RDWR), EBUSY);
  close(container);
  REQUIRE(move(&c, kIova, kIova + kPage, kPage) == DSA_COMP_SUCCESS);
  munmap(c.ring, kRingBytes);
  close(c.device);
  remove_device(&c);
}

int main(int argc, char** argv) {
  setvbuf(stdout, NULL, _IOLBF, 0);
  if (argc == 1) {
    move_a_mebibyte();
  } else if (strcmp(argv[1], "sva") == 0) {
    two_processes(argv[0]);
  } else if (strcmp(argv[1], "alone") == 0) {
    work_alone((unsigned)atoi(argv[2]), atoi(argv[3]), atoi(argv[4]));
  } else if (strcmp(argv[1], "receive") == 0) {
    return receive(atoi(argv[2]));
  } else {
    hostile(argv[0]);
  }
  puts("done");
  return 0;
}

// SPDX-License-Identifier: Apache-2.0
// An ordinary process, no VM, that works directly on a device: a copy accelerator of which it has
// work queues of its own.
//
//   user_dma           two queues, each with a container: what is mapped there is what it reaches.
//                      Same IOVA, other memory; what the other has mapped is a fault. Bandwidth.
//   user_dma sva       one queue that shares the process's addresses: pointers as they are, nothing
//                      mapped, absent pages by page requests; a page that is freed under a move
//   user_dma both      one after the other: what each way costs (README.md)
//
// With a second argument nothing is measured. What is mapped for a device is pinned, here 6.1 MiB,
// and that counts against RLIMIT_MEMLOCK of who may not lock what he likes; `sva` pins nothing.
//
// Plain VFIO: devices made through sysfs, groups, containers, type 1. Run it under `stagetwo run`.
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/idxd.h>
#include <linux/vfio.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#define REQUIRE(condition)                                                 \
  do {                                                                     \
    if (!(condition)) {                                                    \
      printf("line %d: %s (%s)\n", __LINE__, #condition, strerror(errno)); \
      exit(1);                                                             \
    }                                                                      \
  } while (0)

// What docs/howto-dma-engine.md says of the device.
enum { kRegisters = 0, kRing = 4, kDoorbell = 0x800, kPasid = 0x808, kSlots = 1024, kFirst = 4096 };
enum { kSpace = 2 << 20 };  // what is moved about
struct ring_head {
  uint32_t tail, head, asleep;
};

struct queue {
  int container, group, device;
  char uuid[40];
  struct ring_head* ring;  // the device's memory
  struct dsa_hw_desc* slots;
  uint32_t pasid, tail;
};

static const uint64_t kIova = 0x10000000;
static const size_t kBytes = 6 << 20, kLittle = 64 << 10;  // what either queue has mapped

static double now(void) {
  struct timespec at;
  clock_gettime(CLOCK_MONOTONIC, &at);
  return (double)at.tv_sec + (double)at.tv_nsec * 1e-9;
}

// ---- the way to a queue

static void put(const char* name, const char* text) {
  const int fd = open(name, O_WRONLY);
  REQUIRE(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text));
  close(fd);
}

static void open_queue(struct queue* q, const char* type, unsigned number) {
  char path[256], link[256];
  snprintf(q->uuid, sizeof q->uuid, "5a5b6525-825f-3413-%04x-%012x", (unsigned)getpid() & 0xffff,
           number);
  snprintf(path, sizeof path, "/sys/class/mdev_bus/dma-engine/mdev_supported_types/%s/create",
           type);
  put(path, q->uuid);
  snprintf(path, sizeof path, "/sys/bus/mdev/devices/%s/iommu_group", q->uuid);
  const ssize_t size = readlink(path, link, sizeof link - 1);
  REQUIRE(size > 0);
  link[size] = '\0';
  snprintf(path, sizeof path, "/dev/vfio/%s", strrchr(link, '/') + 1);
  q->group = open(path, O_RDWR);
  q->container = open("/dev/vfio/vfio", O_RDWR);
  REQUIRE(q->group >= 0 && q->container >= 0);
  REQUIRE(ioctl(q->group, VFIO_GROUP_SET_CONTAINER, &q->container) == 0);
  REQUIRE(ioctl(q->container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU) == 0);
  q->device = ioctl(q->group, VFIO_GROUP_GET_DEVICE_FD, q->uuid);
  REQUIRE(q->device >= 0);
  struct vfio_region_info region = {.argsz = sizeof region, .index = kRing};
  REQUIRE(ioctl(q->device, VFIO_DEVICE_GET_REGION_INFO, &region) == 0);
  REQUIRE((region.flags & VFIO_REGION_INFO_FLAG_MMAP) != 0);
  q->ring =
      mmap(NULL, region.size, PROT_READ | PROT_WRITE, MAP_SHARED, q->device, (off_t)region.offset);
  REQUIRE(q->ring != MAP_FAILED);
  q->slots = (struct dsa_hw_desc*)((char*)q->ring + kFirst);
  q->tail = 0;
}

static void close_queue(struct queue* q) {
  char path[128];
  munmap(q->ring, 128 << 10);
  close(q->device);
  close(q->group);
  close(q->container);
  snprintf(path, sizeof path, "/sys/bus/mdev/devices/%s/remove", q->uuid);
  put(path, "1");
}

static void map(struct queue* q, void* at, uint64_t iova, size_t size) {
  struct vfio_iommu_type1_dma_map map = {.argsz = sizeof map,
                                         .flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
                                         .vaddr = (uintptr_t)at,
                                         .iova = iova,
                                         .size = size};
  if (ioctl(q->container, VFIO_IOMMU_MAP_DMA, &map) == 0) return;
  const int error = errno;
  struct rlimit limit = {0};
  if (error == ENOMEM && getrlimit(RLIMIT_MEMLOCK, &limit) == 0 &&
      limit.rlim_cur != RLIM_INFINITY) {
    printf(
        "mapping %zu KiB for the device: %s. What is mapped is pinned, and RLIMIT_MEMLOCK allows"
        " %llu KiB; this needs %zu KiB in all: raise it (ulimit -l, LimitMEMLOCK= of a service,"
        " /etc/security/limits.conf), or run it as `user_dma sva`, which pins nothing\n",
        size >> 10, strerror(error), (unsigned long long)limit.rlim_cur >> 10,
        (kBytes + kLittle + 4096) >> 10);
    exit(1);
  }
  errno = error;
  REQUIRE(!"VFIO_IOMMU_MAP_DMA");
}

static void* memory(size_t size) {
  void* const at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  REQUIRE(at != MAP_FAILED);
  return at;
}

// ---- descriptors

// Pre: fewer than kSlots are outstanding.
static void submit(struct queue* q, const struct dsa_hw_desc* descriptors, unsigned count) {
  for (unsigned i = 0; i < count; ++i) q->slots[q->tail++ % kSlots] = descriptors[i];
  __atomic_store_n(&q->ring->tail, q->tail, __ATOMIC_SEQ_CST);
  const uint32_t one = 1;
  if (__atomic_load_n(&q->ring->asleep, __ATOMIC_SEQ_CST) != 0) {
    REQUIRE(pwrite(q->device, &one, 4, kDoorbell) == 4);
  }
}

static struct dsa_hw_desc moving(uint64_t record, uint64_t from, uint64_t to, size_t size) {
  struct dsa_hw_desc d = {.opcode = DSA_OPCODE_MEMMOVE,
                          .flags = IDXD_OP_FLAG_CRAV | IDXD_OP_FLAG_RCR,
                          .completion_addr = record,
                          .xfer_size = (uint32_t)size};
  d.src_addr = from;
  d.dst_addr = to;
  return d;
}

static void await(const struct dsa_completion_record* record) {
  for (unsigned i = 1; __atomic_load_n(&record->status, __ATOMIC_ACQUIRE) == 0; ++i) {
    if (i % 128 == 0) sched_yield();  // the device may want this processor
  }
}

// Answers the status.
static int ask(struct queue* q, struct dsa_hw_desc d, struct dsa_completion_record* record) {
  memset(record, 0, sizeof *record);
  submit(q, &d, 1);
  await(record);
  return record->status;
}

static void wake_up(struct queue* q, struct dsa_completion_record* record, uint64_t record_at) {
  const struct dsa_hw_desc d = {.opcode = DSA_OPCODE_NOOP,
                                .flags = IDXD_OP_FLAG_CRAV | IDXD_OP_FLAG_RCR,
                                .completion_addr = record_at};
  REQUIRE(ask(q, d, record) == DSA_COMP_SUCCESS);
  REQUIRE(pread(q->device, &q->pasid, 4, kPasid) == 4);
}

// ---- how fast: `from` and `to` as the device names them

struct space {
  struct dsa_completion_record* records;
  char *from, *to;
  uint64_t record_at, from_at, to_at;  // the same for the device
};

// Seconds of a move by the clock while at least `deep` of them are outstanding: two halves of which
// one is submitted again when all of it is done, waited for from its end, where nobody writes now.
static double device_seconds(struct queue* q, const struct space* s, size_t size, unsigned deep,
                             unsigned turns, int blocks) {
  static struct dsa_hw_desc descriptors[kSlots];
  for (unsigned i = 0; i < 2 * deep; ++i) {
    const uint64_t offset = i * size % kSpace;
    descriptors[i] =
        moving(s->record_at + i * sizeof *s->records, s->from_at + offset, s->to_at + offset, size);
    if (blocks) descriptors[i].flags |= IDXD_OP_FLAG_BOF;
  }
  const double start = now();
  for (unsigned turn = 0; turn < turns + 2; ++turn) {
    const unsigned half = turn % 2 * deep;
    for (unsigned i = turn < 2 ? 0 : deep; i-- > 0;) {
      await(&s->records[half + i]);
      REQUIRE(s->records[half + i].status == DSA_COMP_SUCCESS);
    }
    if (turn >= turns) continue;
    memset(s->records + half, 0, deep * sizeof *s->records);
    submit(q, descriptors + half, deep);
  }
  return (now() - start) / deep / turns;
}

// The same moves, made by this thread.
static double memcpy_seconds(const struct space* s, size_t size, unsigned deep, unsigned turns) {
  const double start = now();
  for (unsigned turn = 0; turn < turns; ++turn) {
    for (unsigned i = 0; i < deep; ++i) {
      const uint64_t offset = (turn % 2 * deep + i) * size % kSpace;
      memcpy(s->to + offset, s->from + offset, size);
      __asm__ volatile("" ::: "memory");
    }
  }
  return (now() - start) / deep / turns;
}

static int quick;

static void measure(struct queue* q, const struct space* s, int blocks) {
  if (quick) return;
  printf("  %8s %12s %12s %12s %12s %7s\n", "bytes", "outstanding", "moves/s", "GB/s",
         "memcpy GB/s", "ratio");
  for (size_t size = 64; size <= kSpace; size *= size == 4096 ? 16 : size < 4096 ? 8 : 2) {
    const unsigned deep = size <= 4096 ? 256 : 32;
    const unsigned turns = size <= 4096 ? 64 : 8 + kSpace / (unsigned)size;
    double device = 1, plain = 1;
    const double until = now() + 1;
    while (now() < until) {  // one beside the other
      const double one = device_seconds(q, s, size, deep, turns, blocks);
      const double other = memcpy_seconds(s, size, deep, turns);
      device = one < device ? one : device;
      plain = other < plain ? other : plain;
    }
    const double bytes = (double)size * 1e-9;
    printf("  %8zu %12u %12.0f %12.2f %12.2f %7.2f\n", size, deep, 1 / device, bytes / device,
           bytes / plain, plain / device);
  }
}

// ---- a domain of one's own

static void by_containers(void) {
  struct queue a, b;
  open_queue(&a, "dma-engine-1", 1);
  open_queue(&b, "dma-engine-1", 2);
  char* const mine = memory(kBytes);
  char* const other = memory(kLittle);
  map(&a, mine, kIova, kBytes);
  map(&b, other, kIova, kLittle);
  struct dsa_completion_record* const of_a = (void*)mine;
  struct dsa_completion_record* const of_b = (void*)other;
  wake_up(&a, of_a, kIova);
  wake_up(&b, of_b, kIova);
  printf("two queues of one device, PASIDs %u and %u\n", a.pasid, b.pasid);

  struct dsa_hw_desc d = moving(kIova, 0xaaaaaaaaaaaaaaaa, kIova + 4096, 4096);
  d.opcode = DSA_OPCODE_MEMFILL;
  REQUIRE(ask(&a, d, of_a) == DSA_COMP_SUCCESS);
  REQUIRE(mine[4096] == (char)0xaa && mine[8191] == (char)0xaa && other[4096] == 0);
  printf("  a fills IOVA 0x%llx: its own page is aa, the other's at that IOVA is untouched\n",
         (unsigned long long)kIova + 4096);

  char* const secret = memory(4096);
  strcpy(secret, "only b has this");
  map(&b, secret, 2 * kIova, 4096);
  REQUIRE(ask(&a, moving(kIova, 2 * kIova, kIova + 8192, 64), of_a) == DSA_COMP_PAGE_FAULT_NOBOF);
  REQUIRE(of_a->bytes_completed == 0 && of_a->fault_addr == 2 * kIova && mine[8192] == 0);
  d = moving(kIova, 2 * kIova, kIova + 8192, 64);
  d.pasid = b.pasid & 0xfffff;  // a lie
  REQUIRE(ask(&a, d, of_a) == DSA_COMP_PAGE_FAULT_NOBOF && mine[8192] == 0);
  REQUIRE(ask(&b, moving(kIova, 2 * kIova, kIova + 8192, 64), of_b) == DSA_COMP_SUCCESS);
  REQUIRE(strcmp(other + 8192, secret) == 0);
  printf(
      "  a moves from 0x%llx, which only b has mapped: fault there, 0 bytes, also under b's"
      " PASID; b reads \"%s\"\n",
      2 * (unsigned long long)kIova, other + 8192);

  const struct space s = {of_a,  mine + (2 << 20),  mine + (4 << 20),
                          kIova, kIova + (2 << 20), kIova + (4 << 20)};
  memset(s.from, 7, 2 << 20);
  measure(&a, &s, 0);
  close_queue(&a);
  close_queue(&b);
}

// ---- the process's own addresses

static void by_addresses(void) {
  struct queue q;
  open_queue(&q, "dma-engine-sva", 3);
  struct dsa_completion_record* const records = aligned_alloc(4096, 1 << 20);
  REQUIRE(records != NULL);
  wake_up(&q, records, (uintptr_t)records);
  printf("one queue that shares the process's addresses, PASID %u\n", q.pasid);

  char* const from = malloc(4 << 20);
  char* const to = malloc(4 << 20);
  REQUIRE(from != NULL && to != NULL);
  for (size_t i = 0; i < 4 << 20; ++i) from[i] = (char)(i * 31);
  struct dsa_hw_desc d = moving((uintptr_t)records, (uintptr_t)from, (uintptr_t)to, 3 << 20);
  const int without = ask(&q, d, records);
  printf("  malloc'ed memory nobody has touched: without blocking status 0x%x after %u bytes\n",
         without, records->bytes_completed);
  d.flags |= IDXD_OP_FLAG_BOF;
  REQUIRE(ask(&q, d, records) == DSA_COMP_SUCCESS && memcmp(from, to, 3 << 20) == 0);
  printf("  with it, 3 MiB arrive by page requests, nothing was mapped or pinned\n");

  char* const pages = memory(1 << 20);
  d = moving((uintptr_t)records, (uintptr_t)from, (uintptr_t)pages, 1 << 20);
  d.flags |= IDXD_OP_FLAG_BOF;
  REQUIRE(munmap(pages + (512 << 10), 4096) == 0);
  REQUIRE(ask(&q, d, records) == (DSA_COMP_PAGE_FAULT_IR | DSA_COMP_STATUS_WRITE));
  REQUIRE(records->bytes_completed == 512 << 10);
  REQUIRE(records->fault_addr == (uintptr_t)pages + (512 << 10));
  printf("  a page that was freed: status 0x%x, %u bytes, at exactly that page\n", records->status,
         records->bytes_completed);

  const struct space s = {records, from, to, (uintptr_t)records, (uintptr_t)from, (uintptr_t)to};
  measure(&q, &s, 1);
  close_queue(&q);
}

int main(int argc, char** argv) {
  const char* const how = argc > 1 ? argv[1] : "containers";
  quick = argc > 2;
  setvbuf(stdout, NULL, _IOLBF, 0);
  if (strcmp(how, "sva") != 0) by_containers();
  if (strcmp(how, "sva") == 0 || strcmp(how, "both") == 0) by_addresses();
  return 0;
}

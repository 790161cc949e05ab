// SPDX-License-Identifier: Apache-2.0
// 16 devices of one parent, four processes and two machines that use them for SECONDS: random DMA
// at the same IOVAs, resets, unmaps under work, devices taken away and made again, and every now
// and then one of them is killed. Each worker checks that it sees its own bytes and nothing else;
// at the end every device is whoever's wants it.
//
//   dma_storm SECONDS SEED VMM      (VMM: examples/vfio_vmm)
#define _GNU_SOURCE
#include <signal.h>
#include <sys/wait.h>
#include <time.h>

#include "vfio_client.h"

enum { kDevices = 16, kProcesses = 4, kMachines = 2, kWorkers = kProcesses + kMachines };
enum { kPages = 16, kBytes = kPages * kPage };
static const char kType[] = "/sys/class/mdev_bus/dma-engine/mdev_supported_types/dma-engine-1";
static uint64_t state;
static unsigned own;  // which worker

static uint64_t draw(uint64_t below) {
  state = state * 6364136223846793005u + 1442695040888963407u;
  return (state >> 33) % below;
}
static double now(void) {
  struct timespec at;
  clock_gettime(CLOCK_MONOTONIC, &at);
  return (double)at.tv_sec + (double)at.tv_nsec * 1e-9;
}
static const char* uuid(unsigned device) {
  static char text[40];
  snprintf(text, sizeof text, "d0a5b652-825f-3413-9000-0000000000%02x", device);
  return text;
}
static char* folder(unsigned device) {
  static char path[128];
  snprintf(path, sizeof path, "/sys/bus/mdev/devices/%s", uuid(device));
  return path;
}

static int put_into(const char* folder, const char* name, const char* text) {
  char path[256];
  snprintf(path, sizeof path, "%s/%s", folder, name);
  return put(path, text) < 0 ? -1 : 0;
}

// ---- a worker

struct client {
  int container, group, device;
  struct ring* ring;
  uint8_t* memory;  // kBytes mapped, and a page behind that is not
  uint64_t iova;
};

static int open_group(unsigned device) {
  const char* path = group_of(folder(device));
  if (path == NULL) {  // its last user was killed between taking it away and making it
    REQUIRE(put_into(kType, "create", uuid(device)) == 0 || errno == EEXIST);
    path = group_of(folder(device));
  }
  REQUIRE(path != NULL);
  // Whoever had it was killed: it is free at once, give or take the kernel's own time.
  const double until = now() + 20;
  int fd;
  while ((fd = open(path, O_RDWR)) < 0 && errno == EBUSY && now() < until) usleep(1000);
  REQUIRE(fd >= 0);
  return fd;
}

static void map(struct client* c) {
  REQUIRE(map_dma(c->container, c->memory, c->iova, kBytes) == 0);
}

static void unmap(struct client* c) {
  uint64_t bytes = 0;
  REQUIRE(unmap_dma(c->container, c->iova, kBytes, 0, &bytes) == 0 && bytes == kBytes);
}

static void open_client(struct client* c, unsigned device) {
  c->group = open_group(device);
  c->container = open("/dev/vfio/vfio", O_RDWR);
  c->device = open_in_container(c->container, c->group, uuid(device));
  c->ring = ring_of(c->device);
  REQUIRE(c->ring->tail == 0 && c->ring->head == 0);  // nothing of whoever was here before
  c->memory = memory_of(kBytes + kPage);
  memset(c->memory, (int)own, kBytes + kPage);
  c->iova = (1 + draw(2)) << 28;  // two places for all workers
  map(c);
}

static void submit(struct client* c, const struct dsa_hw_desc* d) {
  submit_to(c->device, c->ring, d);
}

static struct dsa_hw_desc make(struct client* c, int opcode, uint64_t from, uint64_t to,
                               size_t size) {
  struct dsa_hw_desc d = descriptor_of(opcode, c->iova, from, to, size);
  d.pasid = (uint32_t)draw(1 << 20);  // whosever it is
  return d;
}

static int ask(struct client* c, struct dsa_hw_desc d) {
  struct dsa_completion_record* const record = (void*)c->memory;
  memset(record, 0, 32);
  submit(c, &d);
  for (unsigned i = 1; __atomic_load_n(&record->status, __ATOMIC_ACQUIRE) == 0; ++i) {
    if (i % 64 == 0) usleep(50);
    REQUIRE(i < 10000000);
  }
  return record->status;
}

// Everything but the record is the worker's own byte, unless it was just written.
static void check(const struct client* c, size_t from, size_t to) {
  for (size_t i = from; i < to; ++i) REQUIRE(c->memory[i] == own);
}

static void random_work(struct client* c) {
  for (unsigned i = 0; i < 30; ++i) {
    const size_t size = 1 + draw(3 * kPage), from = kPage + draw(4 * kPage);
    const size_t to = 9 * kPage + draw(4 * kPage - 1);
    uint64_t fill;
    memset(&fill, (int)own | 0x80, sizeof fill);
    memset(c->memory + from, (int)own | 0x40, 8);
    REQUIRE(ask(c, make(c, DSA_OPCODE_MEMMOVE, c->iova + from, c->iova + to, size)) == 1);
    REQUIRE(memcmp(c->memory + from, c->memory + to, size) == 0);
    REQUIRE(ask(c, make(c, DSA_OPCODE_MEMFILL, fill, c->iova + to, size)) == 1);
    for (size_t at = 0; at < size; ++at) REQUIRE(c->memory[to + at] == (own | 0x80));
    memset(c->memory + from, (int)own, 8);
    memset(c->memory + to, (int)own, size);
    // Where only others have something, at most.
    const uint64_t others = 3 * ((uint64_t)1 << 28) - c->iova;
    REQUIRE(ask(c, make(c, DSA_OPCODE_MEMMOVE, others, c->iova + to, size)) == 3);
    REQUIRE(ask(c, make(c, DSA_OPCODE_MEMMOVE, c->iova + from, others, size)) == 0x83);
    REQUIRE(ask(c, make(c, DSA_OPCODE_MEMMOVE, c->iova + kBytes - 8, c->iova + to, 9)) == 3);
  }
  check(c, kPage, kBytes + kPage);
}

// The device is at work when its memory, or what it was asked, goes.
static void take_away(struct client* c) {
  uint64_t fill;
  memset(&fill, (int)own | 0x80, sizeof fill);
  struct dsa_hw_desc d = make(c, DSA_OPCODE_MEMFILL, fill, c->iova + kPage, kBytes - kPage);
  for (unsigned i = 0; i < 64; ++i) submit(c, &d);
  const int resets = draw(2) == 0;
  if (resets) {
    REQUIRE(ioctl(c->device, VFIO_DEVICE_RESET) == 0);
    REQUIRE(c->ring->tail == 0);
  } else {
    unmap(c);
  }
  memset(c->memory, (int)own, kBytes);  // from here on a canary
  usleep(300);
  check(c, 0, kBytes + kPage);
  if (resets) return;
  REQUIRE(ioctl(c->device, VFIO_DEVICE_RESET) == 0);
  map(c);
}

static void close_client(struct client* c, unsigned device) {
  if (draw(2) == 0) unmap(c);
  munmap(c->ring, kRingBytes);
  close(c->device);
  if (draw(2) == 0) REQUIRE(ioctl(c->group, VFIO_GROUP_UNSET_CONTAINER) == 0);
  close(draw(2) == 0 ? c->group : c->container);  // the other goes with the next
  close(c->group);
  close(c->container);
  munmap(c->memory, kBytes + kPage);
  if (draw(3) == 0) {
    REQUIRE(put_into(folder(device), "remove", "1") == 0);
    REQUIRE(put_into(kType, "create", uuid(device)) == 0);
  }
}

static int work(double until) {
  while (now() < until) {
    const unsigned device = own - 1 + kWorkers * (unsigned)draw((kDevices - own) / kWorkers + 1);
    struct client c;
    open_client(&c, device);
    for (unsigned i = 0; i < 3; ++i) {
      random_work(&c);
      take_away(&c);
    }
    close_client(&c, device);
  }
  return 0;
}

// ---- who starts and kills them

struct worker {
  pid_t pid;
  unsigned rounds, device;
  double kill_at;
};

static void start(struct worker* w, unsigned index, double until, const char* self,
                  const char* vmm) {
  char number[16], seed[32], end[32];
  w->device = index + kWorkers * (w->rounds++ % ((kDevices - index - 1) / kWorkers + 1));
  snprintf(number, sizeof number, "%u", index + 1);
  snprintf(seed, sizeof seed, "%llu", (unsigned long long)draw(1u << 30));
  snprintf(end, sizeof end, "%f", until);
  w->kill_at = now() + 0.2 + (double)draw(3000) / 1000;
  w->pid = fork();
  if (w->pid != 0) return;
  if (index < kProcesses) {
    execl(self, self, end, seed, number, "work", (char*)NULL);
  } else {
    close(STDOUT_FILENO);
    open("/dev/null", O_WRONLY);
    close(open_group(w->device));  // it is there, and nobody's
    execl(vmm, vmm, "3", uuid(w->device), (char*)NULL);
  }
  _exit(127);
}

static void run(double seconds, const char* self, const char* vmm) {
  static struct worker workers[kWorkers];
  unsigned killed = 0, ended = 0;
  for (unsigned i = 0; i < kDevices; ++i) REQUIRE(put_into(kType, "create", uuid(i)) == 0);
  const double until = now() + seconds;
  for (unsigned i = 0; i < kWorkers; ++i) start(&workers[i], i, until, self, vmm);
  for (unsigned running = kWorkers; running != 0;) {
    for (unsigned i = 0; i < kWorkers; ++i) {
      int status = 0;
      struct worker* const w = &workers[i];
      if (w->pid == 0) continue;
      if (waitpid(w->pid, &status, WNOHANG) == w->pid) {
        const int by_us = WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL && w->kill_at < 0;
        if (status != 0 && !by_us) printf("worker %u: status 0x%x\n", i, status);
        REQUIRE(status == 0 || by_us);
        ended += status == 0;
        w->pid = 0;
        if (now() < until) {
          start(w, i, until, self, vmm);
        } else {
          --running;
        }
      } else if (w->kill_at > 0 && now() > w->kill_at && now() < until) {
        REQUIRE(kill(w->pid, SIGKILL) == 0);
        w->kill_at = -1;
        ++killed;
      }
    }
    usleep(5000);
  }
  for (unsigned i = 0; i < kDevices; ++i) {
    close(open_group(i));
    REQUIRE(put_into(folder(i), "remove", "1") == 0);
  }
  char left[16] = "";
  const int fd = open(
      "/sys/class/mdev_bus/dma-engine/mdev_supported_types/dma-engine-1/"
      "available_instances",
      O_RDONLY);
  REQUIRE(fd >= 0 && read(fd, left, sizeof left - 1) > 0 && atoi(left) == 32);
  close(fd);
  printf("%u workers ended, %u were killed, all devices are free\n", ended, killed);
}

int main(int argc, char** argv) {
  REQUIRE(argc >= 4);
  setvbuf(stdout, NULL, _IOLBF, 0);
  state = strtoull(argv[2], NULL, 0) * 2 + 1;
  if (argc > 4) {
    own = (unsigned)atoi(argv[3]);
    return work(atof(argv[1]));
  }
  run(atof(argv[1]), "/proc/self/exe", argv[3]);
  return 0;
}

// SPDX-License-Identifier: Apache-2.0
// What a program does with regions of a device that it has mapped.
//
//   region_mappings forks     children have the mappings, and hold the device as long as they have
//                             them: munmap, what is kept from them, exec, kill -9
//   region_mappings changes   munmap, mprotect, mremap and mmap over it, of pages that are trapped
//   region_mappings daemon    who inherits a device maps memory of its own and gives it work, while
//                             its parent is there and when it is not
//   region_mappings numbers   another thread gives the number that is being mapped to another file
#define _GNU_SOURCE
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include "vfio_client.h"

#define NAME "d0a5b652-825f-3413-9000-000000000001"
#define FOLDER "/sys/bus/mdev/devices/" NAME
enum { kPortal = 2, kRing = 4 };

static int container, group, device;
static char group_path[64];

static void begin(void) {
  REQUIRE(put("/sys/class/mdev_bus/dma-engine/mdev_supported_types/dma-engine-1/create", NAME) > 0);
  snprintf(group_path, sizeof group_path, "%.63s", group_of(FOLDER));
}
static void open_all(void) {
  container = open("/dev/vfio/vfio", O_RDWR | O_CLOEXEC);
  group = open(group_path, O_RDWR | O_CLOEXEC);
  device = open_in_container(container, group, NAME);
}
static void close_all(void) {
  close(device);
  close(group);
  close(container);
}
static void* map_region(unsigned region, size_t size, int prot) {
  void* const at = mmap(NULL, size, prot, MAP_SHARED, device, (off_t)region << 40);
  REQUIRE(at != MAP_FAILED);
  return at;
}

// A process that holds nothing any more has told so within some milliseconds.
static int is_free_soon(void) {
  for (int i = 0; i < 1000; ++i) {
    const int fd = open(group_path, O_RDWR);
    if (fd >= 0) return close(fd) == 0;
    REQUIRE(errno == EBUSY);
    usleep(1000);
  }
  return 0;
}
static void is_busy(void) {
  usleep(20000);
  REFUSED(open(group_path, O_RDWR), EBUSY);
}

// ---- forks

static int tell[2];  // by the child: what it does is done

static pid_t child_that(void (*does)(char*), char* at) {
  REQUIRE(pipe2(tell, O_CLOEXEC) == 0);
  const pid_t child = fork();
  if (child == 0) {
    REQUIRE(prctl(PR_SET_PDEATHSIG, SIGKILL) == 0);
    does(at);
    REQUIRE(write(tell[1], "x", 1) == 1);
    for (;;) pause();
  }
  close(tell[1]);
  char done;
  REQUIRE(read(tell[0], &done, 1) >= 0);  // or it executes another program
  close(tell[0]);
  return child;
}
static void end_of(pid_t child) {
  int status;
  kill(child, SIGKILL);
  REQUIRE(waitpid(child, &status, 0) == child);
}

static void closes(char* at) {
  (void)at;
  close_all();
}
static void gives_all_back(char* at) {
  munmap(at, kPage);
  close_all();
}
static void executes(char* at) {
  (void)at;
  execlp("sleep", "sleep", "100", (char*)NULL);
}

static void forks(void) {
  begin();
  // Who has given all back holds nothing, whoever goes on with it.
  open_all();
  char* at = map_region(kPortal, kPage, PROT_READ | PROT_WRITE);
  pid_t child = child_that(gives_all_back, at);
  is_busy();
  munmap(at, kPage);
  close_all();
  REQUIRE(is_free_soon());
  end_of(child);
  // Nor does who never had it, or has become another program.
  for (int i = 0; i < 2; ++i) {
    open_all();
    at = map_region(kPortal, kPage, PROT_READ | PROT_WRITE);
    if (i == 0) REQUIRE(madvise(at, kPage, MADV_DONTFORK) == 0);
    child = child_that(i == 0 ? closes : executes, at);
    munmap(at, kPage);
    close_all();
    REQUIRE(is_free_soon());
    end_of(child);
  }
  // Who still has the mapping has the device, with or without its parent; until it dies.
  open_all();
  at = map_region(kPortal, kPage, PROT_READ | PROT_WRITE);
  child = child_that(closes, at);
  munmap(at, kPage);
  close_all();
  is_busy();
  end_of(child);
  REQUIRE(is_free_soon());
  REQUIRE(put(FOLDER "/remove", "1") == 1);
}

// ---- daemon

enum { kIova = 0x100000 };
static struct ring* ring;
static char* memory;

static void own_memory(void) {
  uint64_t bytes = 0;
  REQUIRE(unmap_dma(container, kIova, 4 * kPage, 0, &bytes) == 0);
  memory = memory_of(4 * kPage);
  REQUIRE(map_dma(container, memory, kIova, 4 * kPage) == 0);
}
static void moves(void) {
  struct dsa_completion_record* const record = (void*)memory;
  const struct dsa_hw_desc d =
      descriptor_of(DSA_OPCODE_MEMMOVE, kIova, kIova + kPage, kIova + 2 * kPage, kPage);
  memset(record, 0, sizeof *record);
  memset(memory + kPage, getpid(), kPage);
  submit_to(device, ring, &d);
  REQUIRE(status_of(record) == DSA_COMP_SUCCESS);
  REQUIRE(memcmp(memory + kPage, memory + 2 * kPage, kPage) == 0);
}
static int end_status(pid_t child) {
  int status = -1;
  REQUIRE(waitpid(child, &status, 0) == child);
  return status;
}

static void daemon_of_its_own(void) {
  int over[2];
  REQUIRE(pipe(over) == 0);
  open_all();
  ring = ring_of(device);
  own_memory();
  moves();
  // One while its parent waits, which goes on afterwards.
  pid_t child = fork();
  if (child == 0) {
    own_memory();
    for (int i = 0; i < 3; ++i) moves();
    exit(0);
  }
  REQUIRE(end_status(child) == 0);
  own_memory();
  moves();
  // And one whose parent has gone, before it did anything.
  child = fork();
  if (child == 0) {
    const pid_t parent = getpid();
    if (fork() != 0) _exit(0);
    while (getppid() == parent) usleep(1000);
    own_memory();
    moves();
    REQUIRE(write(over[1], "x", 1) == 1);
    exit(0);
  }
  REQUIRE(end_status(child) == 0);
  close(over[1]);
  char done = 0;
  REQUIRE(read(over[0], &done, 1) == 1);
  munmap(ring, kRingBytes);
  close_all();
}

// ---- changes

static sigjmp_buf touched;
static void on_fault(int signal) {
  siglongjmp(touched, signal);
}

// What comes of a descriptor stored to a portal: the record's status, or the signal, negative.
static int stored(char* portal) {
  struct dsa_completion_record* const record = (void*)memory;
  const struct dsa_hw_desc d = descriptor_of(DSA_OPCODE_NOOP, kIova, 0, 0, 0);
  uint64_t words[8];
  memcpy(words, &d, sizeof words);
  memset(record, 0, sizeof *record);
  const int signal = sigsetjmp(touched, 1);
  if (signal != 0) return -signal;
  for (int i = 0; i < 8; ++i) ((volatile uint64_t*)portal)[i] = words[i];
  for (int i = 0; i < 20000 && __atomic_load_n(&record->status, __ATOMIC_ACQUIRE) == 0; ++i) {
    usleep(100);
  }
  return record->status;
}

static void rights(void) {
  char* const at = map_region(kPortal, kPage, PROT_READ | PROT_WRITE);
  REQUIRE(stored(at) == 1);
  REQUIRE(mprotect(at, kPage, PROT_READ) == 0 && stored(at) == -SIGSEGV);
  REQUIRE(mprotect(at, kPage, PROT_NONE) == 0 && stored(at) == -SIGSEGV);
  REQUIRE(mprotect(at, kPage, PROT_READ | PROT_WRITE) == 0 && stored(at) == 1);
  REQUIRE(mprotect(at, kPage, PROT_WRITE) == 0 && stored(at) == 1);
  REQUIRE(*(volatile char*)at == 0);
  char* const other = map_region(kPortal, kPage, PROT_READ);
  REQUIRE(stored(other) == -SIGSEGV);
  REQUIRE(mprotect(other, kPage, PROT_READ | PROT_WRITE) == 0 && stored(other) == 1);
  munmap(other, kPage);
  munmap(at, kPage);
}

static void places(void) {
  char* at = map_region(kPortal, kPage, PROT_READ | PROT_WRITE);
  char* const to = mmap(NULL, 2 * kPage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  REFUSED(mremap(at, kPage, 2 * kPage, MREMAP_MAYMOVE), EFAULT);
  REFUSED(mremap(at, kPage, 2 * kPage, 0), EFAULT);
  REFUSED(mremap(at, 0, kPage, MREMAP_MAYMOVE), EFAULT);
  REFUSED(mremap(at, kPage, kPage, MREMAP_MAYMOVE | MREMAP_DONTUNMAP), EINVAL);
  REQUIRE(mremap(at, kPage, kPage, MREMAP_MAYMOVE | MREMAP_FIXED, to) == to);
  REQUIRE(stored(to) == 1 && stored(at) == -SIGSEGV);
  REQUIRE(mprotect(to, kPage, PROT_READ) == 0 && stored(to) == -SIGSEGV);
  at = map_region(kPortal, kPage, PROT_READ | PROT_WRITE);
  // What fails takes nothing; what is mapped over it is no device's.
  REFUSED(mmap(at, kPage, PROT_READ, MAP_SHARED | MAP_FIXED, 999, 0), EBADF);
  REQUIRE(stored(at) == 1);
  REQUIRE(mmap(at, kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) ==
          at);
  at[kPage - 1] = 7;
  close_all();
  is_busy();  // by what has moved
  munmap(to, kPage);
  REQUIRE(is_free_soon() && at[kPage - 1] == 7);
  // Of a hole both sides have the device.
  open_all();
  char* const whole = map_region(kRing, kRingBytes, PROT_READ | PROT_WRITE);
  munmap(whole + kPage, kPage);
  close_all();
  munmap(whole, kPage);
  is_busy();
  whole[2 * kPage] = 1;
  munmap(whole + 2 * kPage, kRingBytes - 2 * kPage);
  REQUIRE(is_free_soon());
}

static void changes(void) {
  const struct sigaction action = {.sa_handler = on_fault, .sa_flags = SA_NODEFER};
  REQUIRE(sigaction(SIGSEGV, &action, NULL) == 0);
  begin();
  open_all();
  own_memory();
  rights();
  places();
}

// ---- numbers

enum { kNumber = 100 };
static int stop;

// By turns a file of its own each time, and a container.
static void* changes_number(void* unused) {
  while (!__atomic_load_n(&stop, __ATOMIC_RELAXED)) {
    const int plain = memfd_create("plain", MFD_CLOEXEC);
    REQUIRE(plain >= 0 && ftruncate(plain, kPage) == 0 && pwrite(plain, "plain", 5, 0) == 5);
    REQUIRE(dup2(plain, kNumber) == kNumber && close(plain) == 0);
    REQUIRE(dup2(container, kNumber) == kNumber);
  }
  return unused;
}

// A container cannot be mapped, whatever its number was when the call began.
static void numbers(void) {
  container = open("/dev/vfio/vfio", O_RDWR | O_CLOEXEC);
  REQUIRE(container >= 0);
  REQUIRE(dup2(container, kNumber) == kNumber);
  pthread_t other;
  REQUIRE(pthread_create(&other, NULL, changes_number, NULL) == 0);
  int mapped = 0;
  int refused = 0;
  while (mapped < 500 || refused < 500) {
    char* const at = mmap(NULL, kPage, PROT_READ, MAP_SHARED, kNumber, 0);
    if (at == MAP_FAILED) {
      REQUIRE(errno == ENODEV);
      ++refused;
      continue;
    }
    REQUIRE(memcmp(at, "plain", 5) == 0);
    munmap(at, kPage);
    ++mapped;
  }
  __atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
  REQUIRE(pthread_join(other, NULL) == 0);
  close(kNumber);
  close(container);
}

int main(int argc, char** argv) {
  setvbuf(stdout, NULL, _IOLBF, 0);
  REQUIRE(argc == 2);
  if (strcmp(argv[1], "forks") == 0) {
    forks();
  } else if (strcmp(argv[1], "changes") == 0) {
    changes();
  } else if (strcmp(argv[1], "daemon") == 0) {
    begin();
    daemon_of_its_own();
    REQUIRE(is_free_soon());
  } else if (strcmp(argv[1], "numbers") == 0) {
    numbers();
  }
  puts("done");
  return 0;
}

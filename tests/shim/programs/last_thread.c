// SPDX-License-Identifier: Apache-2.0
// A process whose first thread leaves by pthread_exit() ends with the last of its threads, by
// exit(0) there, however many the engine has: not later, and not before.
#define _GNU_SOURCE
#include <pthread.h>
#include <stdatomic.h>
#include <sys/wait.h>
#include <threads.h>

#include "vfio_client.h"

static char device_name[40];
static int container, group, device;

static void make_device(void) {
  static unsigned made;
  snprintf(device_name, sizeof device_name, "83b8f4f2-509f-382f-%04x-%012x", made++, getpid());
  REQUIRE(put("/sys/class/mdev_bus/dma-engine/mdev_supported_types/dma-engine-1/create",
              device_name) == 36);
}
static void open_device(void) {
  char folder[128];
  snprintf(folder, sizeof folder, "/sys/bus/mdev/devices/%s", device_name);
  container = open("/dev/vfio/vfio", O_RDWR);
  group = open(group_of(folder), O_RDWR);
  device = open_in_container(container, group, device_name);
}
static void close_device(void) {
  close(device);
  close(group);
  close(container);
}
static void move(void) {
  struct ring* const ring = ring_of(device);
  char* const memory = memory_of(2 * kPage);
  REQUIRE(map_dma(container, memory, 0x10000, 2 * kPage) == 0);
  const struct dsa_hw_desc d =
      descriptor_of(DSA_OPCODE_MEMMOVE, 0x10000 + kPage, 0x10000, 0x10100, 64);
  submit_to(device, ring, &d);
  REQUIRE(status_of((void*)(memory + kPage)) == DSA_COMP_SUCCESS);
  munmap(ring, kRingBytes);
  uint64_t bytes = 0;
  REQUIRE(unmap_dma(container, 0x10000, 2 * kPage, 0, &bytes) == 0);
}

static _Atomic pid_t last;
static void say_end(void) {
  printf("ends in %s\n", gettid() == atomic_load(&last) ? "the last one" : "another one");
}
static void be_last(void) {
  atomic_store(&last, gettid());
  usleep(30000);
  puts("worker ends");
}
static void* work(void* unused) {
  (void)unused;
  be_last();
  return NULL;
}
static int work_of_c11(void* unused) {
  (void)unused;
  be_last();
  return 0;
}
static void* open_and_close(void* unused) {
  (void)unused;
  for (int i = 0; i < 3; i++) {
    open_device();
    move();
    close_device();
  }
  return work(NULL);
}
static void* fork_and_end(void* unused) {
  (void)unused;
  const pid_t child = fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    make_device();
    open_device();
    move();
    pthread_t thread;
    REQUIRE(pthread_create(&thread, NULL, work, NULL) == 0);
    pthread_exit(NULL);
  }
  int status = 0;
  REQUIRE(waitpid(child, &status, 0) == child && status == 0);
  puts("the child has ended");
  return work(NULL);
}

int main(int argc, char** argv) {
  REQUIRE(argc == 2);
  const char which = argv[1][0];
  setvbuf(stdout, NULL, _IOLBF, 0);
  atexit(say_end);
  make_device();
  open_device();
  move();
  pthread_t thread;
  thrd_t other;
  switch (which) {
    case 'w':  // the worker is last
      REQUIRE(pthread_create(&thread, NULL, work, NULL) == 0);
      break;
    case 't':
      REQUIRE(thrd_create(&other, work_of_c11, NULL) == thrd_success);
      break;
    case 'm':  // the first thread is
      REQUIRE(pthread_create(&thread, NULL, work, NULL) == 0);
      REQUIRE(pthread_join(thread, NULL) == 0);
      atomic_store(&last, gettid());
      break;
    case 'c':  // threads of the engine's have come and gone
      close_device();
      REQUIRE(pthread_create(&thread, NULL, open_and_close, NULL) == 0);
      break;
    case 'f':
      REQUIRE(pthread_create(&thread, NULL, fork_and_end, NULL) == 0);
      break;
    default:
      return 1;
  }
  pthread_exit(NULL);
}

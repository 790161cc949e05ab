// SPDX-License-Identifier: Apache-2.0
// Memory of a library that the dynamic loader maps and unmaps by itself.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <linux/types.h>

#include "abi/hmm/uapi.h"
#include "lent.h"

static void* open_library(uint8_t** memory) {
  char path[4096];
  const ssize_t size = readlink("/proc/self/exe", path, sizeof path - 20);
  REQUIRE(size > 0);
  path[size] = '\0';
  strcpy(strrchr(path, '/'), "/library.so");
  void* const library = dlopen(path, RTLD_NOW);
  REQUIRE(library != NULL);
  *memory = page_of(dlsym(library, "memory_of_the_library"));
  return library;
}

static void library_is_closed(void) {
  start();
  for (unsigned round = 0; round < 10; round++) {
    uint8_t* at;
    void* library = open_library(&at);
    REQUIRE(at[3 * kPage] == 0);
    lend(at);
    REQUIRE(dlclose(library) == 0);
    REQUIRE(seen());
    guest_finds_nothing();
    uint8_t* again;
    library = open_library(&again);
    if (again == at) {
      REQUIRE(touch(3) == 0);
      again[3 * kPage] = 0x77;
      REQUIRE(touch(3) == 0x77);
    }
    REQUIRE(dlclose(library) == 0);
  }
}

static void library_on_a_device_is_closed(void) {
  const int device = open("/dev/hmm_dmirror0", O_RDWR);
  REQUIRE(device >= 0);
  static uint8_t bounce[kWindowBytes];
  for (unsigned round = 0; round < 20; round++) {
    uint8_t* at;
    void* const library = open_library(&at);
    struct hmm_dmirror_cmd look = {
        .addr = (uintptr_t)at, .ptr = (uintptr_t)bounce, .npages = kTouched};
    if (round % 2 == 0) {
      REQUIRE(ioctl(device, HMM_DMIRROR_READ, &look) == 0);
      for (unsigned i = 0; i < kWindowBytes; i++) REQUIRE(bounce[i] == 0);
    }
    for (unsigned i = 0; i < kWindowBytes; i++) REQUIRE(at[i] == 0);
    memset(at, 0x5A, kWindowBytes);
    struct hmm_dmirror_cmd move = {
        .addr = (uintptr_t)at, .ptr = (uintptr_t)bounce, .npages = kTouched};
    REQUIRE(ioctl(device, HMM_DMIRROR_MIGRATE_TO_DEV, &move) == 0 && move.cpages == kTouched);
    REQUIRE(dlclose(library) == 0);
    REFUSES(ioctl(device, HMM_DMIRROR_READ, &look), EFAULT);
  }
}

int main(int argc, char** argv) {
  static const struct test_case kCases[] = {
      {"library_is_closed", library_is_closed},
      {"library_on_a_device_is_closed", library_on_a_device_is_closed},
      {NULL, NULL},
  };
  return run_case(argc, argv, kCases);
}

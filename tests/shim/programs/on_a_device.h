// SPDX-License-Identifier: Apache-2.0
// Sixteen pages, all on a device before each call that is given one of them.
#pragma once

#include <linux/types.h>

#include "abi/hmm/uapi.h"
#include "machine.h"

enum { kPages = 16, kBytes = kPages * kPage };

static int device;
static uint8_t* memory;
static uint8_t bounce[kBytes];

static inline long move_pages(unsigned first, unsigned count) {
  struct hmm_dmirror_cmd move = {.addr = (uintptr_t)memory + (uint64_t)first * kPage,
                                 .ptr = (uintptr_t)bounce,
                                 .npages = count};
  return ioctl(device, HMM_DMIRROR_MIGRATE_TO_DEV, &move) == 0 ? (long)move.cpages : -errno;
}
static inline int on_device(unsigned page) {
  uint8_t said[kPages];
  struct hmm_dmirror_cmd look = {
      .addr = (uintptr_t)memory, .ptr = (uintptr_t)said, .npages = kPages};
  REQUIRE(ioctl(device, HMM_DMIRROR_SNAPSHOT, &look) == 0);
  return (said[page] & 0xf0) == HMM_DMIRROR_PROT_DEV_PRIVATE_LOCAL;
}

static inline void start(void) {
  device = open("/dev/hmm_dmirror0", O_RDWR);
  REQUIRE(device >= 0);
  void* const at = mmap(NULL, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  REQUIRE(at != MAP_FAILED);
  memory = at;
  memset(memory, 1, kBytes);
}

// Everything goes to the device, then the call is made.
static inline void away(void) {
  move_pages(0, kPages);
  for (unsigned i = 0; i < kPages; i++) REQUIRE(on_device(i));
}
#define AWAY(call) \
  do {             \
    away();        \
    REQUIRE(call); \
  } while (0)

static inline void* page(unsigned i) {
  return memory + i * kPage;
}
static inline void* put(unsigned i, const void* what, size_t size) {
  return memcpy(page(i), what, size);
}
static inline char* name(unsigned i, const char* text) {
  return strcpy(page(i), text);
}

// SPDX-License-Identifier: Apache-2.0
// A small VMM in plain C that changes its guest's memory while the guest runs, by the calls any VMM
// uses. Knows nothing but the public KVM ABI; prints one line for each thing that held.
//
// The guest adds one to a word in each of eight pages, round and round.
#define _GNU_SOURCE
#include "small_vmm.h"

static atomic_ulong efaults;
static atomic_ulong mmios;
static atomic_ulong others;

static void* guest(void* unused) {
  (void)unused;
  while (!atomic_load(&stop)) {
    if (ioctl(vcpu, KVM_RUN, 0) == 0) {
      if (run->exit_reason == KVM_EXIT_MMIO) {
        atomic_fetch_add(&mmios, 1);
      } else {
        atomic_fetch_add(&others, 1);
      }
    } else if (errno == EFAULT) {
      atomic_fetch_add(&efaults, 1);
    } else if (errno != EINTR && errno != EAGAIN) {
      atomic_fetch_add(&others, 1);
    }
  }
  return NULL;
}

// The guest is at work on every page.
static void wait_for_guest(void) {
  for (int page = 0; page < kPages; ++page) wait_for_store(page);
}

static void wait_for(atomic_ulong* count) {
  const unsigned long before = atomic_load(count);
  const time_t start = time(NULL);
  while (atomic_load(count) == before) {
    check(time(NULL) - start < 20, "the guest is told");
    sched_yield();
  }
}

static const unsigned char code[] = {0xff, 0x05,              // inc word [di]
                                     0x81, 0xc7, 0x00, 0x10,  // add di, 0x1000
                                     0x81, 0xe7, 0xff, 0x7f,  // and di, 0x7fff
                                     0xeb, 0xf4};             // jmp to the start

static void discard(int rounds) {
  for (int i = 0; i < rounds; ++i) {
    check(madvise(window, kBytes, MADV_DONTNEED) == 0, "madvise");
    wait_for_guest();
  }
  printf("MADV_DONTNEED: the guest goes on with fresh pages\n");
}

// The old memory lives on under another name; nothing is written there any more.
static void replace(int rounds) {
  for (int i = 0; i < rounds; ++i) {
    char* aside = map_at(NULL, 0);
    check(mremap(window, kBytes, kBytes, MREMAP_MAYMOVE | MREMAP_FIXED, aside) == aside, "mremap");
    char before[kBytes];
    memcpy(before, aside, kBytes);
    check(map_at(window, MAP_FIXED) == window, "mmap");
    wait_for_guest();
    check(memcmp(before, aside, kBytes) == 0, "a store reached the memory that was moved away");
    check(munmap(aside, kBytes) == 0, "munmap");
  }
  printf("mremap and mmap at the same address: the guest is in the new memory alone\n");
}

static void protect(int rounds) {
  for (int i = 0; i < rounds; ++i) {
    check(mprotect(window, kBytes, PROT_READ) == 0, "mprotect");
    wait_for(&efaults);
    char before[kBytes];
    memcpy(before, window, kBytes);
    sched_yield();
    check(memcmp(before, window, kBytes) == 0, "a store went through a lost right");
    check(mprotect(window, kBytes, PROT_READ | PROT_WRITE) == 0, "mprotect back");
    wait_for_guest();
  }
  printf("mprotect: EFAULT while the right is gone, and on as soon as it is back\n");
}

static void unmap(void) {
  check(munmap(window, kBytes) == 0, "munmap");
  wait_for(&efaults);
  check(map_at(window, MAP_FIXED_NOREPLACE) == window, "mmap");
  wait_for_guest();
  printf("munmap: EFAULT while there is nothing, and on as soon as there is\n");
}

static void reuse(int rounds) {
  char canary[kBytes];
  memset(canary, 0xC5, sizeof(canary));
  for (int i = 0; i < rounds; ++i) {
    slot(1, 0, 0, NULL);
    check(munmap(window, kBytes) == 0, "munmap");
    check(map_at(window, MAP_FIXED_NOREPLACE) == window, "mmap");
    memcpy(window, canary, kBytes);
    wait_for(&mmios);
    check(memcmp(window, canary, kBytes) == 0, "memory that took the address was written");
    slot(1, kWindow, kBytes, window);
    wait_for_guest();
  }
  printf("a slot deleted, its address reused: the canaries are whole\n");
}

int main(int argc, char** argv) {
  const int rounds = argc > 1 ? atoi(argv[1]) : 20;
  setvbuf(stdout, NULL, _IOLBF, 0);
  create(code, sizeof(code));
  pthread_t thread;
  check(pthread_create(&thread, NULL, guest, NULL) == 0, "pthread_create");
  wait_for_guest();
  discard(rounds);
  replace(rounds);
  protect(rounds);
  unmap();
  reuse(rounds);
  check(atomic_load(&others) == 0, "no other exit");
  // The thread may be in the guest for ever: the process's end takes it along.
  fflush(stdout);
  _exit(0);
}

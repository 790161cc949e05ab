// SPDX-License-Identifier: Apache-2.0
// Every way a program's memory changes its meaning, those libc takes by itself included. Whether
// the change was seen when it was made shows in KVM's own statistics: the entries of the guest's
// page table are gone when the call returns, and not only when the guest comes by.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <linux/types.h>
#include <malloc.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdatomic.h>
#include <sys/shm.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/wait.h>

#include "abi/hmm/uapi.h"
#include "deny.h"
#include "lent.h"

enum { kBlock = 8 << 20 };

static void* new_block(void) {
  void* const block = malloc(kBlock);
  REQUIRE(block != NULL);
  return block;
}
static void* anonymous(void* at, size_t size, int flags) {
  void* const made =
      mmap(at, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);
  REQUIRE(made != MAP_FAILED);
  return made;
}

// ---- libc by itself ----------------------------------------------------------------------------

static void free_of_a_large_block(void) {
  start();
  for (unsigned round = 0; round < 50; round++) {
    void* const block = new_block();
    lend(page_of(block));
    errno = 77;
    free(block);
    REQUIRE(errno == 77);
    REQUIRE(seen());
    guest_finds_nothing();
    // Another block at the same address, with other bytes: the guest reads these.
    void* const other = new_block();
    REQUIRE(other == block);
    memset(other, 0x80 + (int)round, kBlock);
    REQUIRE((touch(3) & 0xff) == 0x80 + round);
    free(other);
  }
}

// The guest runs code from the block. What it has decoded is forgotten with the block.
static void free_of_a_block_with_code(void) {
  start();
  uint8_t code[] = {0xb0, 0x00, 0xe6, 0x10, 0xeb, 0xfa};  // mov $N, %al; out %al, $0x10; jmp back
  for (unsigned round = 0; round < 20; round++) {
    void* const block = new_block();
    uint8_t* const at = page_of(block);
    code[1] = (uint8_t)round;
    lend(at);
    memcpy(at, code, sizeof code);
    for (unsigned twice = 0; twice < 2; twice++) {
      struct kvm_regs r;
      REQUIRE(ioctl(m.vcpu, KVM_GET_REGS, &r) == 0);
      r.rip = kWindow;
      REQUIRE(ioctl(m.vcpu, KVM_SET_REGS, &r) == 0);
      REQUIRE(run_to_exit(&m) == KVM_EXIT_IO);
      REQUIRE(*((uint8_t*)m.run + m.run->io.data_offset) == code[1]);
      if (twice == 1) break;
      free(block);
      REQUIRE(new_block() == block);
      code[1] = (uint8_t)(0x80 + round);
      memcpy(at, code, sizeof code);
    }
    free(block);
  }
}

static void realloc_moves(void) {
  start();
  void* const block = new_block();
  lend(page_of(block));
  void* const larger = realloc(block, 8 * kBlock);
  REQUIRE(larger != NULL && page_of(larger)[kPage] == 0x41);
  REQUIRE(seen());
  if (larger != block) guest_finds_nothing();
  free(larger);
}

static char* _Atomic to_lend;
static void* lend_half(void* unused) {
  while (to_lend == NULL) sched_yield();
  lend(page_of(to_lend + kBlock / 2));  // the first pages stay, for the next allocation
  return unused;
}
// The lock of the arena is held meanwhile, so nothing on the way may ask libc for memory: neither
// for a thread's value of a late key nor for the first use of anything by this thread.
static void trim_lowers_the_break(void) {
  for (unsigned i = 0; i < 40; i++) {
    pthread_key_t key;
    REQUIRE(pthread_key_create(&key, NULL) == 0);
  }
  start();
  REQUIRE(mallopt(M_MMAP_THRESHOLD, 1 << 25) == 1);
  pthread_t thread;
  REQUIRE(pthread_create(&thread, NULL, lend_half, NULL) == 0);
  char* const block = new_block();
  const char* const end = sbrk(0);
  REQUIRE(block < end && end <= block + 2 * kBlock);
  to_lend = block;
  REQUIRE(pthread_join(thread, NULL) == 0);
  free(block);
  REQUIRE((char*)sbrk(0) < end);
  REQUIRE(seen());
  guest_finds_nothing();
}

static void trim_discards(void) {
  start();
  REQUIRE(mallopt(M_MMAP_THRESHOLD, 1 << 25) == 1 && mallopt(M_TRIM_THRESHOLD, 1 << 30) == 1);
  void* const block = new_block();
  void* const above = malloc(100);
  lend(page_of(block));
  free(block);
  REQUIRE(mapped() == mapped_before + kTouched);  // it is still libc's
  REQUIRE(malloc_trim(0) == 1);
  REQUIRE(seen());
  REQUIRE(touch(5) == 0);
  free(above);
}

static void* use_an_arena(void* unused) {
  char* const block = malloc(kBlock);
  lend(page_of(block + kBlock / 2));
  free(block);
  REQUIRE(seen());
  return unused;
}
static void arena_of_a_thread_shrinks(void) {
  start();
  REQUIRE(mallopt(M_MMAP_THRESHOLD, 1 << 25) == 1);
  pthread_t thread;
  REQUIRE(pthread_create(&thread, NULL, use_an_arena, NULL) == 0);
  REQUIRE(pthread_join(thread, NULL) == 0);
}

static void* lend_own_stack(void* unused) {
  pthread_attr_t about;
  void* lowest;
  size_t size;
  REQUIRE(pthread_getattr_np(pthread_self(), &about) == 0);
  REQUIRE(pthread_attr_getstack(&about, &lowest, &size) == 0);
  lend((uint8_t*)lowest + kBlock / 4);
  return unused;
}
static void stack_of_a_thread_is_given_back(void) {
  start();
  pthread_attr_t wanted;
  pthread_attr_init(&wanted);
  REQUIRE(pthread_attr_setstacksize(&wanted, kBlock) == 0);
  pthread_t thread;
  REQUIRE(pthread_create(&thread, &wanted, lend_own_stack, NULL) == 0);
  REQUIRE(pthread_join(thread, NULL) == 0);
  REQUIRE(seen());
}

// The functions of libc itself, past everybody who stands in front of them.
static void libcs_own_functions(void) {
  start();
  void* const libc = dlopen("libc.so.6", RTLD_NOW | RTLD_NOLOAD);
  REQUIRE(libc != NULL);
  int (*const unmap)(void*, size_t) = (int (*)(void*, size_t))dlsym(libc, "munmap");
  int (*const protect)(void*, size_t, int) = (int (*)(void*, size_t, int))dlsym(libc, "mprotect");
  int (*const advise)(void*, size_t, int) = (int (*)(void*, size_t, int))dlsym(libc, "madvise");
  void* (*const map)(void*, size_t, int, int, int, off_t) =
      (void* (*)(void*, size_t, int, int, int, off_t))dlsym(libc, "mmap");
  void* (*const move)(void*, size_t, size_t, int, ...) =
      (void* (*)(void*, size_t, size_t, int, ...))dlsym(libc, "mremap");
  const int usual = MAP_PRIVATE | MAP_ANONYMOUS;
  uint8_t* const at = map(NULL, kWindowBytes, PROT_READ | PROT_WRITE, usual, -1, 0);
  lend(at);
  REFUSES(unmap(at + 1, kPage), EINVAL);
  REFUSES(protect(at + 1, kPage, PROT_NONE), EINVAL);
  REFUSES(advise(at, kPage, 9999), EINVAL);
  REQUIRE(map(at + 1, kPage, PROT_READ, usual | MAP_FIXED, -1, 0) == MAP_FAILED && errno == EINVAL);
  REQUIRE(move(at, kPage, kPage, ~0) == MAP_FAILED && errno == EINVAL);
  REQUIRE(advise(at, kWindowBytes, MADV_DONTNEED) == 0 && seen());
  lend(at);
  REQUIRE(protect(at, kWindowBytes, PROT_READ) == 0 && seen());
  REQUIRE(protect(at, kWindowBytes, PROT_READ | PROT_WRITE) == 0);
  lend(at);
  REQUIRE(map(at, kWindowBytes, PROT_READ | PROT_WRITE, usual | MAP_FIXED, -1, 0) == at && seen());
  REQUIRE(touch(0) == 0);
  lend(at);
  uint8_t* const there = map(NULL, kWindowBytes, PROT_NONE, usual, -1, 0);
  REQUIRE(move(at, kWindowBytes, kWindowBytes, MREMAP_MAYMOVE | MREMAP_FIXED, there) == there);
  REQUIRE(seen() && there[kPage] == 0x41);
  lend(there);
  REQUIRE(unmap(there, kWindowBytes) == 0 && seen());
  guest_finds_nothing();
}

// A preloaded library with a munmap of its own goes on being called for what the program calls, and
// for nothing else.
static void wrapped_by_another_library(void) {
  const unsigned long* const calls = dlsym(RTLD_DEFAULT, "wrapped_calls");
  REQUIRE(calls != NULL);
  start();
  void* const block = new_block();
  lend(page_of(block));
  const unsigned long before = *calls;
  free(block);
  REQUIRE(*calls == before && seen());
  uint8_t* const at = anonymous(NULL, kWindowBytes, 0);
  lend(at);
  REQUIRE(madvise(at, kWindowBytes, MADV_DONTNEED) == 0 && *calls == before + 1 && seen());
  lend(at);
  REQUIRE(munmap(at, kWindowBytes) == 0 && *calls == before + 2 && seen());
}

static atomic_uint hooked;
static long hook(void* at, size_t size) {
  atomic_fetch_add(&hooked, 1);
  long answer;
  __asm__ volatile("syscall"
                   : "=a"(answer)
                   : "a"(SYS_munmap), "D"(at), "S"(size)
                   : "rcx", "r11", "memory");
  return answer;
}
// The program has a hook of its own in libc's munmap: it stays, the other functions are seen.
static void hooked_by_the_program(void) {
  void* const libc = dlopen("libc.so.6", RTLD_NOW | RTLD_NOLOAD);
  uint8_t* const there = dlsym(libc, "munmap");
  uint8_t jump[] = {0x49, 0xbb, 0, 0, 0, 0, 0, 0, 0, 0, 0x41, 0xff, 0xe3};  // movabs, jmp *%r11
  void* const target = hook;
  memcpy(jump + 2, &target, sizeof target);
  uint8_t* const first = (uint8_t*)((uintptr_t)there & ~(uintptr_t)(kPage - 1));
  REQUIRE(mprotect(first, 2 * kPage, PROT_READ | PROT_WRITE | PROT_EXEC) == 0);
  memcpy(there, jump, sizeof jump);
  REQUIRE(mprotect(first, 2 * kPage, PROT_READ | PROT_EXEC) == 0);
  start();
  REQUIRE(memcmp(there, jump, sizeof jump) == 0);
  void* const block = new_block();
  lend(page_of(block));
  const unsigned before = atomic_load(&hooked);
  free(block);
  REQUIRE(atomic_load(&hooked) == before + 1);
  REQUIRE(mapped() == mapped_before + kTouched);  // past libc: nobody is told
  guest_finds_nothing();
  void* const other = new_block();
  lend(page_of(other));
  void* const larger = realloc(other, 8 * kBlock);
  REQUIRE(larger != NULL && seen());
}

static void children_have_it_too(void) {
  start();
  void* const block = new_block();
  lend(page_of(block));
  const pid_t child = fork();
  if (child == 0) {
    free(block);
    for (unsigned i = 0; i < 50; i++) free(new_block());
    _exit(0);
  }
  // The fork itself takes what the guest had; it asks again.
  REQUIRE((touch(2) & 0xff) == 0x42);
  const uint64_t now = mapped();
  int status = -1;
  REQUIRE(waitpid(child, &status, 0) == child && status == 0);
  char* const arguments[] = {(char*)"true", NULL};
  pid_t other;
  REQUIRE(posix_spawnp(&other, "true", NULL, NULL, arguments, environ) == 0);
  REQUIRE(waitpid(other, &status, 0) == other && status == 0);
  REQUIRE(mapped() == now && (touch(2) & 0xff) == 0x42);
  free(block);
  REQUIRE(mapped() < now);
  guest_finds_nothing();
}

static atomic_int stop;
static atomic_uint rounds;
static void on_alarm(int signal) {
  (void)signal;
}
static void* allocate(void* unused) {
  while (!atomic_load(&stop)) {
    char* const block = malloc(1 << 18);
    block[0] = 1;
    char* const larger = realloc(block, 1 << 20);
    REQUIRE(larger != NULL && larger[0] == 1);
    free(larger);
    void* const page = mmap(NULL, kPage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    REQUIRE(page != MAP_FAILED && mprotect(page, kPage, PROT_READ) == 0);
    REQUIRE(munmap(page, kPage) == 0);
    atomic_fetch_add(&rounds, 1);
  }
  return unused;
}
// libc's functions change under threads that are in them, with signals in between.
static void threads_are_in_it(void) {
  for (unsigned child = 0; child < 12; child++) {
    const pid_t pid = fork();
    if (pid == 0) {
      signal(SIGALRM, on_alarm);
      const struct itimerval often = {{0, 500}, {0, 500}};
      REQUIRE(setitimer(ITIMER_REAL, &often, NULL) == 0);
      REQUIRE(mallopt(M_MMAP_THRESHOLD, 1 << 17) == 1);
      pthread_t threads[3];
      for (unsigned i = 0; i < 3; i++) {
        REQUIRE(pthread_create(&threads[i], NULL, allocate, NULL) == 0);
      }
      while (atomic_load(&rounds) < 100) sched_yield();
      start();
      const unsigned now = atomic_load(&rounds);
      while (atomic_load(&rounds) < now + 500) sched_yield();
      atomic_store(&stop, 1);
      for (unsigned i = 0; i < 3; i++) REQUIRE(pthread_join(threads[i], NULL) == 0);
      _exit(0);
    }
    int status = -1;
    REQUIRE(waitpid(pid, &status, 0) == pid && status == 0);
  }
}

// A device has the pages; nothing of them comes back in the block that follows.
static void free_of_device_memory(void) {
  const int device = open("/dev/hmm_dmirror0", O_RDWR);
  REQUIRE(device >= 0);
  static uint8_t bounce[kWindowBytes];
  for (unsigned round = 0; round < 20; round++) {
    void* const block = new_block();
    uint8_t* const at = page_of(block);
    memset(at, 0xA0, kWindowBytes);
    struct hmm_dmirror_cmd move = {
        .addr = (uintptr_t)at, .ptr = (uintptr_t)bounce, .npages = kTouched};
    REQUIRE(ioctl(device, HMM_DMIRROR_MIGRATE_TO_DEV, &move) == 0 && move.cpages == kTouched);
    free(block);
    REQUIRE(new_block() == block);
    for (unsigned i = 0; i < kWindowBytes; i++) REQUIRE(at[i] == 0);
    memset(at, 0x0B, kWindowBytes);
    struct hmm_dmirror_cmd look = {
        .addr = (uintptr_t)at, .ptr = (uintptr_t)bounce, .npages = kTouched};
    REQUIRE(ioctl(device, HMM_DMIRROR_READ, &look) == 0 && bounce[7 * kPage] == 0x0B);
    free(block);
  }
}

static const uint8_t* lent_to_device;
static int child_finds_all(void* unused) {
  (void)unused;
  for (unsigned i = 0; i < kWindowBytes; i++) {
    if (lent_to_device[i] != 0xA0) return 1;
  }
  // Its own machine works, too.
  create_machine(&m, kTouch, sizeof kTouch);
  return run_at(kData) == 0 ? 0 : 2;
}
static pid_t fork_somehow(unsigned way, void* stack) {
  struct {
    uint64_t flags, pidfd, child_id, parent_id, exit_signal, stack, size, tls;
  } how = {.exit_signal = SIGCHLD};
  switch (way) {
    case 0:
      return fork();
    case 1:
      return _Fork();
    case 2:
      return (pid_t)syscall(SYS_fork);
    case 3:
      return (pid_t)syscall(SYS_clone, SIGCHLD, NULL, NULL, NULL, NULL);
    case 4:
      return (pid_t)syscall(SYS_clone3, &how, sizeof how);
    default:
      return clone(child_finds_all, stack, SIGCHLD, NULL);
  }
}
// Whichever way a child is made, it has what a device had, and the parent has it, too.
static void children_of_every_kind(void) {
  const int device = open("/dev/hmm_dmirror0", O_RDWR);
  REQUIRE(device >= 0);
  start();
  uint8_t* const at = anonymous(NULL, kWindowBytes, 0);
  char* const stack = anonymous(NULL, kBlock, 0);
  static uint8_t bounce[kWindowBytes];
  memset(at, 0xA0, kWindowBytes);
  lent_to_device = at;
  for (unsigned way = 0; way < 6; way++) {
    struct hmm_dmirror_cmd move = {
        .addr = (uintptr_t)at, .ptr = (uintptr_t)bounce, .npages = kTouched};
    REQUIRE(ioctl(device, HMM_DMIRROR_MIGRATE_TO_DEV, &move) == 0 && move.cpages == kTouched);
    const pid_t child = fork_somehow(way, stack + kBlock);
    if (child == 0) _exit(child_finds_all(NULL));
    REQUIRE(child > 0);
    int status = -1;
    REQUIRE(waitpid(child, &status, 0) == child && status == 0);
    for (unsigned i = 0; i < kWindowBytes; i++) REQUIRE(at[i] == 0xA0);
  }
}

// With libc left as it is (--libc=leave): nobody is told, and still nothing old is read.
static void free_that_nobody_sees(void) {
  start();
  void* const block = new_block();
  lend(page_of(block));
  free(block);
  REQUIRE(mapped() == mapped_before + kTouched);
  guest_finds_nothing();
  void* const other = new_block();
  REQUIRE(other == block);
  memset(other, 0x99, kBlock);
  REQUIRE((touch(3) & 0xff) == 0x99);
}

// A filter of the program's keeps the engine from changing libc: the same, and nothing breaks.
static void libc_may_not_be_changed(void) {
  REQUIRE(deny_call(SYS_mremap) == 0);
  free_that_nobody_sees();
}

// ---- the rarer calls ---------------------------------------------------------------------------

static void shared_segments(void) {
  start();
  for (unsigned raw = 0; raw < 2; raw++) {
    const int id = shmget(IPC_PRIVATE, kWindowBytes, IPC_CREAT | 0600);
    REQUIRE(id >= 0);
    uint8_t* const at = shmat(id, NULL, 0);
    REQUIRE(at != (void*)-1);
    REQUIRE(shmctl(id, IPC_RMID, NULL) == 0);
    lend(at);
    REFUSES(shmdt(at + 1), EINVAL);
    REQUIRE(mapped() == mapped_before + kTouched);
    REQUIRE((raw ? (int)syscall(SYS_shmdt, at) : shmdt(at)) == 0);
    REQUIRE(seen());
    guest_finds_nothing();
  }
}

static void segment_over_memory(void) {
  start();
  uint8_t* const at = anonymous(NULL, kWindowBytes, 0);
  lend(at);
  const int id = shmget(IPC_PRIVATE, kWindowBytes, IPC_CREAT | 0600);
  REQUIRE(shmat(id, at, 0) == (void*)-1 && errno == EINVAL);
  REQUIRE(mapped() == mapped_before + kTouched);
  REQUIRE(shmat(id, at, SHM_REMAP) == at);
  REQUIRE(shmctl(id, IPC_RMID, NULL) == 0);
  REQUIRE(seen());
  at[5 * kPage] = 0x77;
  REQUIRE(touch(5) == 0x77);
  REQUIRE(shmdt(at) == 0);
}

static void program_break(void) {
  start();
  for (unsigned way = 0; way < 3; way++) {
    uint8_t* const old = sbrk(kBlock);
    REQUIRE(old != (void*)-1);
    lend(page_of(old));
    if (way == 0) REQUIRE(brk(old) == 0);
    if (way == 1) REQUIRE(sbrk(-kBlock) == old + kBlock);
    // Past libc, which goes on counting from where it was.
    if (way == 2) REQUIRE(syscall(SYS_brk, old) == (long)old);
    REQUIRE(seen());
    guest_finds_nothing();
  }
}

static void advice_by_pidfd(void) {
  start();
  uint8_t* const at = anonymous(NULL, kWindowBytes, 0);
  const int self = (int)syscall(SYS_pidfd_open, getpid(), 0);
  REQUIRE(self >= 0);
  const struct iovec parts[] = {{at, kWindowBytes / 2}, {at + kWindowBytes / 2, kWindowBytes / 2}};
  lend(at);
  errno = 0;
  const ssize_t done = process_madvise(self, parts, 2, MADV_DONTNEED, 0);
  if (done == -1 && errno == EINVAL) return;  // a kernel before 6.13: no advice with a loss
  REQUIRE(done == kWindowBytes && seen());
  REQUIRE(touch(9) == 0);
  lend(at);
  REQUIRE(syscall(SYS_process_madvise, self, parts, 2, MADV_DONTNEED, 0) == kWindowBytes && seen());
  // Of another process nothing changes here.
  lend(at);
  const pid_t child = fork();
  if (child == 0) {
    pause();
    _exit(0);
  }
  REQUIRE((touch(2) & 0xff) == 0x42);  // after what the fork took
  const uint64_t now = mapped();
  const int other = (int)syscall(SYS_pidfd_open, child, 0);
  process_madvise(other, parts, 2, MADV_DONTNEED, 0);
  REQUIRE(mapped() == now && (touch(2) & 0xff) == 0x42);
  REQUIRE(kill(child, SIGKILL) == 0 && waitpid(child, NULL, 0) == child);
}

static void file_pages_turned(void) {
  start();
  const int file = memfd_create("pages", 0);
  REQUIRE(file >= 0 && ftruncate(file, 2 * kWindowBytes) == 0);
  uint8_t* const at = mmap(NULL, 2 * kWindowBytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  REQUIRE(at != MAP_FAILED);
  for (unsigned raw = 0; raw < 2; raw++) {
    lend(at);
    memset(at + kWindowBytes, 0x6B, kWindowBytes);
    const long turned = raw ? syscall(SYS_remap_file_pages, at, kWindowBytes, 0, kTouched, 0)
                            : remap_file_pages(at, kWindowBytes, 0, kTouched, 0);
    REQUIRE(turned == 0);
    REQUIRE(seen());
    REQUIRE((touch(4) & 0xff) == 0x6B);
    REQUIRE(mmap(at, 2 * kWindowBytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, file, 0) ==
            at);
  }
}

static void guard_pages(void) {
  enum { kInstall = 102, kRemove = 103 };
  start();
  uint8_t* const at = anonymous(NULL, kWindowBytes, 0);
  lend(at);
  if (madvise(at, kWindowBytes, kInstall) == -1 && errno == EINVAL) return;  // before Linux 6.13
  REQUIRE(seen());
  guest_finds_nothing();
  REQUIRE(madvise(at, kWindowBytes, kRemove) == 0);
  REQUIRE(touch(0) == 0);
}

static void raw_calls(void) {
  start();
  uint8_t* const at = anonymous(NULL, kWindowBytes, 0);
  lend(at);
  REQUIRE(syscall(SYS_madvise, at, kWindowBytes, MADV_DONTNEED) == 0 && seen());
  lend(at);
  REQUIRE(syscall(SYS_mprotect, at, kWindowBytes, PROT_READ) == 0 && seen());
  REQUIRE(syscall(SYS_mprotect, at, kWindowBytes, PROT_READ | PROT_WRITE) == 0);
  lend(at);
  REQUIRE(syscall(SYS_pkey_mprotect, at, kWindowBytes, PROT_NONE, -1) == 0 && seen());
  REQUIRE(pkey_mprotect(at, kWindowBytes, PROT_READ | PROT_WRITE, -1) == 0);
  lend(at);
  REQUIRE(pkey_mprotect(at, kWindowBytes, PROT_READ, -1) == 0 && seen());
  REQUIRE(mprotect(at, kWindowBytes, PROT_READ | PROT_WRITE) == 0);
  lend(at);
  uint8_t* const there = anonymous(NULL, kWindowBytes, 0);
  REQUIRE(syscall(SYS_mremap, at, kWindowBytes, kWindowBytes, MREMAP_MAYMOVE | MREMAP_FIXED,
                  there) == (long)there);
  REQUIRE(seen());
  lend(there);
  REQUIRE(syscall(SYS_munmap, there, kWindowBytes) == 0 && seen());
}

int main(int argc, char** argv) {
  // A large block is a mapping of its own, also after the first one was freed.
  REQUIRE(mallopt(M_MMAP_THRESHOLD, 1 << 17) == 1);
  static const struct test_case kCases[] = {
      {"free_of_a_large_block", free_of_a_large_block},
      {"free_of_a_block_with_code", free_of_a_block_with_code},
      {"realloc_moves", realloc_moves},
      {"trim_lowers_the_break", trim_lowers_the_break},
      {"trim_discards", trim_discards},
      {"arena_of_a_thread_shrinks", arena_of_a_thread_shrinks},
      {"stack_of_a_thread_is_given_back", stack_of_a_thread_is_given_back},
      {"libcs_own_functions", libcs_own_functions},
      {"wrapped_by_another_library", wrapped_by_another_library},
      {"hooked_by_the_program", hooked_by_the_program},
      {"children_have_it_too", children_have_it_too},
      {"threads_are_in_it", threads_are_in_it},
      {"free_of_device_memory", free_of_device_memory},
      {"children_of_every_kind", children_of_every_kind},
      {"free_that_nobody_sees", free_that_nobody_sees},
      {"libc_may_not_be_changed", libc_may_not_be_changed},
      {"shared_segments", shared_segments},
      {"segment_over_memory", segment_over_memory},
      {"program_break", program_break},
      {"advice_by_pidfd", advice_by_pidfd},
      {"file_pages_turned", file_pages_turned},
      {"guard_pages", guard_pages},
      {"raw_calls", raw_calls},
      {NULL, NULL},
  };
  return run_case(argc, argv, kCases);
}

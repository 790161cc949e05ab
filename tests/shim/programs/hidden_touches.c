// SPDX-License-Identifier: Apache-2.0
// User-mode touches of pages that a device has, where the touch of a hidden page is a signal: in
// threads that block it, in handlers, on stacks. Run as it is and where userfaultfd is denied.
#define _GNU_SOURCE
#include <linux/types.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <ucontext.h>

#include "abi/hmm/uapi.h"
#include "machine.h"

enum { kPages = 64, kBytes = kPages * kPage };

static int device;
static uint8_t* memory;

static long move_range(void* at, unsigned pages) {
  static uint8_t bounce[kBytes];
  struct hmm_dmirror_cmd move = {.addr = (uintptr_t)at, .ptr = (uintptr_t)bounce, .npages = pages};
  return ioctl(device, HMM_DMIRROR_MIGRATE_TO_DEV, &move) == 0 ? (long)move.cpages : -errno;
}
// Where nothing may go, ENOENT says so.
static void try_range(void* at, unsigned pages) {
  const long moved = move_range(at, pages);
  REQUIRE(moved >= 0 || moved == -ENOENT);
}
static uint8_t* new_memory(void) {
  void* const at = mmap(NULL, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  REQUIRE(at != MAP_FAILED);
  return at;
}
static void start(void) {
  device = open("/dev/hmm_dmirror0", O_RDWR);
  REQUIRE(device >= 0);
  memory = new_memory();
}
static void away(void) {
  memset(memory, 0x5A, kBytes);
  REQUIRE(move_range(memory, kPages) == kPages);
}
static void all_is_there(void) {
  for (unsigned i = 0; i < kBytes; i++) REQUIRE(((volatile uint8_t*)memory)[i] == 0x5A);
}

// ---- signals that are blocked -------------------------------------------------------------------

static void* touch_with_everything_blocked(void* raw) {
  sigset_t all;
  sigfillset(&all);
  const uint64_t words = ~0ul;
  if (raw != NULL) {
    REQUIRE(syscall(SYS_rt_sigprocmask, SIG_SETMASK, &words, NULL, sizeof words) == 0);
  } else {
    REQUIRE(pthread_sigmask(SIG_BLOCK, &all, NULL) == 0);
  }
  for (unsigned i = 0; i < 20; i++) {
    away();
    all_is_there();
  }
  return NULL;
}
static void blocked_in_threads(void) {
  start();
  for (unsigned raw = 0; raw < 2; raw++) {
    pthread_t thread;
    REQUIRE(pthread_create(&thread, NULL, touch_with_everything_blocked, raw ? &raw : NULL) == 0);
    REQUIRE(pthread_join(thread, NULL) == 0);
  }
}

static void touch_all(int signal) {
  (void)signal;
  all_is_there();
}
static void blocked_by_a_handler(void) {
  struct sigaction action = {.sa_handler = touch_all};
  sigfillset(&action.sa_mask);
  REQUIRE(sigaction(SIGUSR1, &action, NULL) == 0);  // before the engine, and after it
  start();
  for (unsigned i = 0; i < 20; i++) {
    away();
    REQUIRE(raise(SIGUSR1) == 0);
    if (i == 10) REQUIRE(sigaction(SIGUSR1, &action, NULL) == 0);
  }
  sigset_t mask;
  sigfillset(&mask);
  sigdelset(&mask, SIGUSR1);
  sigset_t one;
  sigemptyset(&one);
  sigaddset(&one, SIGUSR1);
  REQUIRE(sigprocmask(SIG_BLOCK, &one, NULL) == 0 && raise(SIGUSR1) == 0);
  away();
  REFUSES(sigsuspend(&mask), EINTR);
}

static uint8_t* guarded;
static atomic_uint faults;
static void open_page(int signal, siginfo_t* info, void* context) {
  (void)signal;
  (void)context;
  REQUIRE(info->si_addr == guarded);
  atomic_fetch_add(&faults, 1);
  all_is_there();
  REQUIRE(mprotect(guarded, kPage, PROT_READ | PROT_WRITE) == 0);
}
static void own_handler_touches(void) {
  struct sigaction action = {.sa_sigaction = open_page, .sa_flags = SA_SIGINFO};
  start();
  guarded = new_memory();
  REQUIRE(sigaction(SIGSEGV, &action, NULL) == 0);
  for (unsigned i = 0; i < 20; i++) {
    away();
    REQUIRE(mprotect(guarded, kPage, PROT_NONE) == 0);
    *(volatile uint8_t*)guarded = 1;
  }
  REQUIRE(atomic_load(&faults) == 20);
}

// ---- what the program sees of its masks ---------------------------------------------------------

static int blocked(int signal) {
  sigset_t now;
  REQUIRE(pthread_sigmask(SIG_BLOCK, NULL, &now) == 0);
  uint64_t words = 0;
  REQUIRE(syscall(SYS_rt_sigprocmask, SIG_BLOCK, NULL, &words, sizeof words) == 0);
  REQUIRE(sigismember(&now, signal) == (int)(words >> (signal - 1) & 1));
  return sigismember(&now, signal);
}
static void set_blocked(int how, int signal) {
  sigset_t one;
  sigemptyset(&one);
  sigaddset(&one, signal);
  REQUIRE(sigprocmask(how, &one, NULL) == 0);
}
static sigjmp_buf back;
static atomic_uint handled;
static void jump(int signal, siginfo_t* info, void* context) {
  (void)info;
  REQUIRE(blocked(SIGSEGV) && !sigismember(&((ucontext_t*)context)->uc_sigmask, SIGSEGV));
  atomic_fetch_add(&handled, 1);
  siglongjmp(back, signal);
}
static void count(int signal) {
  (void)signal;
  atomic_fetch_add(&handled, 1);
}
static void masks_are_the_programs(void) {
  start();
  away();
  REQUIRE(!blocked(SIGSEGV));
  set_blocked(SIG_BLOCK, SIGSEGV);
  REQUIRE(blocked(SIGSEGV) && !blocked(SIGUSR2));
  all_is_there();
  REQUIRE(blocked(SIGSEGV));
  set_blocked(SIG_UNBLOCK, SIGSEGV);
  REQUIRE(!blocked(SIGSEGV));
  set_blocked(SIG_SETMASK, SIGSEGV);
  REQUIRE(blocked(SIGSEGV));
  set_blocked(SIG_SETMASK, SIGUSR2);
  REQUIRE(!blocked(SIGSEGV) && blocked(SIGUSR2));
  // A handler that is left by a jump: again and again, with the mask as it was.
  struct sigaction action = {.sa_sigaction = jump, .sa_flags = SA_SIGINFO};
  REQUIRE(sigaction(SIGSEGV, &action, NULL) == 0);
  struct sigaction shown;
  REQUIRE(sigaction(SIGSEGV, NULL, &shown) == 0);
  REQUIRE(shown.sa_sigaction == jump && shown.sa_flags == SA_SIGINFO);
  REQUIRE(!sigismember(&shown.sa_mask, SIGSEGV) && !sigismember(&shown.sa_mask, SIGSTKFLT));
  for (unsigned i = 0; i < 5; i++) {
    if (sigsetjmp(back, 1) == 0) *(volatile uint8_t*)8 = 1;
    REQUIRE(!blocked(SIGSEGV));
  }
  REQUIRE(atomic_load(&handled) == 5);
}
static void a_sent_one_waits(void) {
  start();
  away();
  signal(SIGSEGV, count);
  set_blocked(SIG_BLOCK, SIGSEGV);
  REQUIRE(raise(SIGSEGV) == 0 && atomic_load(&handled) == 0);
  sigset_t one;
  sigemptyset(&one);
  sigaddset(&one, SIGSEGV);
  int which = 0;
  REQUIRE(sigwait(&one, &which) == 0 && which == SIGSEGV && blocked(SIGSEGV));
  REQUIRE(raise(SIGSEGV) == 0 && atomic_load(&handled) == 0);
  set_blocked(SIG_UNBLOCK, SIGSEGV);
  REQUIRE(atomic_load(&handled) == 1 && !blocked(SIGSEGV));
  all_is_there();
}
// As without us: a fault that is blocked, or the second one in its handler, ends the process.
static void fault_again(int signal) {
  (void)signal;
  *(volatile uint8_t*)8 = 1;
}
static void faults_end_the_process(void) {
  for (unsigned way = 0; way < 2; way++) {
    const pid_t child = fork();
    if (child == 0) {
      start();
      signal(SIGSEGV, way == 0 ? fault_again : count);
      if (way == 1) set_blocked(SIG_BLOCK, SIGSEGV);
      *(volatile uint8_t*)8 = 1;
      _exit(1);
    }
    int status = 0;
    REQUIRE(waitpid(child, &status, 0) == child);
    REQUIRE(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV);
  }
}
static void another_program_has_the_mask(void) {
  start();
  set_blocked(SIG_SETMASK, SIGSEGV);
  int ends[2];
  REQUIRE(pipe(ends) == 0);
  const pid_t child = fork();
  if (child == 0) {
    dup2(ends[1], 1);
    execl("/bin/grep", "grep", "SigBlk", "/proc/self/status", NULL);
    _exit(1);
  }
  char line[64] = "";
  REQUIRE(read(ends[0], line, sizeof line - 1) > 10);
  REQUIRE((strtoull(line + 8, NULL, 16) >> (SIGSEGV - 1) & 1) == 1);
  REQUIRE(waitpid(child, NULL, 0) == child && blocked(SIGSEGV));
}

// ---- stacks -------------------------------------------------------------------------------------

static atomic_int stop;
static void* use_stack(void* given) {
  volatile uint8_t deep[8 * kPage];
  unsigned rounds = 0;
  while (!atomic_load(&stop) || rounds < 50) {
    for (unsigned i = 0; i < sizeof deep; i += 512) deep[i] = (uint8_t)(i + rounds);
    sched_yield();
    for (unsigned i = 0; i < sizeof deep; i += 512) REQUIRE(deep[i] == (uint8_t)(i + rounds));
    rounds++;
  }
  return given;
}
static void on_device_memory(void) {
  start();
  for (unsigned round = 0; round < 20; round++) {
    uint8_t* const stack = new_memory();
    memset(stack, 1, kBytes);
    REQUIRE(move_range(stack, kPages) == kPages);
    pthread_attr_t about;
    REQUIRE(pthread_attr_init(&about) == 0);
    REQUIRE(pthread_attr_setstack(&about, stack, kBytes) == 0);
    atomic_store(&stop, 0);
    pthread_t thread;
    REQUIRE(pthread_create(&thread, &about, use_stack, NULL) == 0);
    for (unsigned i = 0; i < 20; i++) try_range(stack, kPages);
    atomic_store(&stop, 1);
    REQUIRE(pthread_join(thread, NULL) == 0);
    REQUIRE(move_range(stack, kPages) >= kPages - 16);  // nobody's now
    REQUIRE(munmap(stack, kBytes) == 0);
  }
}
static void of_threads_and_of_the_program(void) {
  pthread_t early;
  REQUIRE(pthread_create(&early, NULL, use_stack, NULL) == 0);  // before the engine
  start();
  pthread_t late;
  REQUIRE(pthread_create(&late, NULL, use_stack, NULL) == 0);
  uint8_t here[4 * kPage];
  const pthread_t threads[] = {early, late};
  for (unsigned round = 0; round < 30; round++) {
    memset(here, (int)round, sizeof here);
    uint8_t* const mine = (uint8_t*)((uintptr_t)here & ~(uintptr_t)(kPage - 1));
    try_range(mine - 2 * kPage, 6);
    for (unsigned i = 0; i < sizeof here; i++) REQUIRE(here[i] == (uint8_t)round);
    for (unsigned i = 0; i < 2; i++) {
      pthread_attr_t about;
      void* lowest;
      size_t size;
      REQUIRE(pthread_getattr_np(threads[i], &about) == 0);
      REQUIRE(pthread_attr_getstack(&about, &lowest, &size) == 0);
      try_range((uint8_t*)lowest + size - kBytes, kPages);
    }
  }
  atomic_store(&stop, 1);
  REQUIRE(pthread_join(early, NULL) == 0 && pthread_join(late, NULL) == 0);
}
// Threads that change memory, ask the device and end, each on a stack that goes all the time, its
// data and its alternate stack with it.
static double seconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}
static double end;
static void* be_in_the_engine(void* given) {
  const stack_t alternate = {.ss_sp = new_memory(), .ss_size = kBytes};
  REQUIRE(sigaltstack(&alternate, NULL) == 0);
  uint8_t* const own = new_memory();
  for (unsigned round = 0; round < 20 && seconds() < end; round++) {
    memset(own, (int)round, kBytes);
    uint8_t bounce[kPage];
    struct hmm_dmirror_cmd read = {.addr = (uintptr_t)own, .ptr = (uintptr_t)bounce, .npages = 1};
    // A device gives up after a second in which its pages went, as the kernel's does.
    const int done = ioctl(device, HMM_DMIRROR_READ, &read);
    REQUIRE(done == 0 ? bounce[17] == (uint8_t)round : errno == EBUSY);
    void* const other =
        mmap(NULL, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    REQUIRE(other != MAP_FAILED && munmap(other, kBytes) == 0);
    REQUIRE(madvise(own, kBytes, MADV_DONTNEED) == 0 && own[kPage] == 0);
    void* large = malloc(1 << 20);
    memset(large, 1, 1 << 20);
    free(large);
  }
  REQUIRE(munmap(own, kBytes) == 0);
  const stack_t none = {.ss_flags = SS_DISABLE};
  REQUIRE(sigaltstack(&none, NULL) == 0 && munmap(alternate.ss_sp, kBytes) == 0);
  return given;
}
static void* make_threads(void* given) {
  for (unsigned round = 0; round < 15 && seconds() < end; round++) {
    pthread_t thread;
    REQUIRE(pthread_create(&thread, NULL, be_in_the_engine, NULL) == 0);
    REQUIRE(pthread_join(thread, NULL) == 0);
  }
  atomic_fetch_add(&stop, 1);
  return given;
}
// All that may be written, as a program that goes through its own mappings gives it away.
static void try_everything(void) {
  FILE* const maps = fopen("/proc/self/maps", "r");
  REQUIRE(maps != NULL);
  char line[512];
  uintptr_t from[256], to[256];
  unsigned count = 0;
  while (count < 256 && fgets(line, sizeof line, maps) != NULL) {
    char rights[8];
    if (sscanf(line, "%lx-%lx %7s", &from[count], &to[count], rights) != 3) continue;
    if (strncmp(rights, "rw-p", 4) == 0 && strstr(line, "[v") == NULL) count++;
  }
  fclose(maps);
  for (unsigned i = 0; i < count; i++) {
    const uintptr_t most = 256 * kPage;
    if (to[i] - from[i] > most) from[i] = to[i] - most;
    for (uintptr_t at = from[i]; at < to[i]; at += kBytes) {
      const uintptr_t left = (to[i] - at) / kPage;
      move_range((void*)at, left < kPages ? (unsigned)left : kPages);
    }
  }
}
static void of_threads_that_are_in_the_engine(void) {
  start();
  end = seconds() + 1;
  pthread_t makers[2];
  for (unsigned i = 0; i < 2; i++) {
    REQUIRE(pthread_create(&makers[i], NULL, make_threads, NULL) == 0);
  }
  while (atomic_load(&stop) < 2) try_everything();
  for (unsigned i = 0; i < 2; i++) REQUIRE(pthread_join(makers[i], NULL) == 0);
}

static uint8_t* others;
static void touch_others(int signal) {
  (void)signal;
  for (unsigned i = 0; i < 8; i++) ((volatile uint8_t*)others)[i * kPage]++;
  atomic_fetch_add(&handled, 1);
}
static void handlers_in_between(void) {
  start();
  others = new_memory();
  const struct sigaction action = {.sa_handler = touch_others};
  REQUIRE(sigaction(SIGALRM, &action, NULL) == 0);
  const struct itimerval often = {{0, 200}, {0, 200}};
  REQUIRE(setitimer(ITIMER_REAL, &often, NULL) == 0);
  for (unsigned round = 0; round < 100; round++) {
    memset(memory, 0x5A, kBytes);
    try_range(others, 8);
    try_range(memory, kPages);
    all_is_there();
  }
  const struct itimerval never = {{0, 0}, {0, 0}};
  REQUIRE(setitimer(ITIMER_REAL, &never, NULL) == 0);
}

static void alternate_ones(void) {
  start();
  uint8_t* const stack = new_memory();
  memset(stack, 1, kBytes);
  REQUIRE(move_range(stack, kPages) == kPages);
  const stack_t alternate = {.ss_sp = stack, .ss_size = kBytes};
  REQUIRE(sigaltstack(&alternate, NULL) == 0);
  struct sigaction action = {.sa_handler = count, .sa_flags = SA_ONSTACK};
  REQUIRE(sigaction(SIGUSR1, &action, NULL) == 0 && sigaction(SIGSEGV, &action, NULL) == 0);
  for (unsigned i = 0; i < 20; i++) {
    try_range(stack, kPages);
    REQUIRE(raise(SIGUSR1) == 0 && atomic_load(&handled) == i + 1);
    away();
    all_is_there();
  }
  stack_t shown;
  REQUIRE(sigaltstack(NULL, &shown) == 0 && shown.ss_sp == stack);
}

int main(int argc, char** argv) {
  static const struct test_case kCases[] = {
      {"blocked_in_threads", blocked_in_threads},
      {"blocked_by_a_handler", blocked_by_a_handler},
      {"own_handler_touches", own_handler_touches},
      {"masks_are_the_programs", masks_are_the_programs},
      {"a_sent_one_waits", a_sent_one_waits},
      {"faults_end_the_process", faults_end_the_process},
      {"another_program_has_the_mask", another_program_has_the_mask},
      {"on_device_memory", on_device_memory},
      {"of_threads_and_of_the_program", of_threads_and_of_the_program},
      {"of_threads_that_are_in_the_engine", of_threads_that_are_in_the_engine},
      {"handlers_in_between", handlers_in_between},
      {"alternate_ones", alternate_ones},
      {NULL, NULL},
  };
  return run_case(argc, argv, kCases);
}

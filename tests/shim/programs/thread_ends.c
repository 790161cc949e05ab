// SPDX-License-Identifier: Apache-2.0
// What the kernel writes when a thread ends, on pages that a device has by then.
#define _GNU_SOURCE
#include <linux/futex.h>
#include <linux/types.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/syscall.h>
#include <time.h>

#include "on_a_device.h"

static atomic_int ready, go, ending;
static int by_number;

static void* end_thread(void) {
  atomic_store(&ready, 1);
  while (!atomic_load(&go)) sched_yield();
  if (by_number) syscall(SYS_exit, 0);
  return NULL;
}
static pthread_t begin(void* (*run)(void*)) {
  atomic_store(&ready, 0);
  atomic_store(&go, 0);
  pthread_t thread;
  REQUIRE(pthread_create(&thread, NULL, run, NULL) == 0);
  while (!atomic_load(&ready)) sched_yield();
  return thread;
}
// Who looks at the memory would bring it back.
static void end_and_wait(void) {
  away();
  atomic_store(&go, 1);
  for (unsigned i = 0; i < 5000; i++) {
    if (syscall(SYS_tgkill, getpid(), atomic_load(&ending), 0) != 0) return;
    nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
  }
  REQUIRE(!"the thread has ended");
}

// ---- robust mutexes -----------------------------------------------------------------------------

// One on each page, so that more are absent than a thread's end has places for.
static pthread_mutex_t* lock(unsigned i) {
  return (pthread_mutex_t*)((uint8_t*)page(i) + 64);
}
static void* hold_locks(void* unused) {
  (void)unused;
  for (unsigned i = 0; i < kPages; i++) REQUIRE(pthread_mutex_lock(lock(i)) == 0);
  atomic_store(&ending, (int)syscall(SYS_gettid));
  return end_thread();
}
static void make_locks(void) {
  pthread_mutexattr_t about;
  REQUIRE(pthread_mutexattr_init(&about) == 0);
  REQUIRE(pthread_mutexattr_setrobust(&about, PTHREAD_MUTEX_ROBUST) == 0);
  for (unsigned i = 0; i < kPages; i++) {
    const int protocol = i % 2 == 0 ? PTHREAD_PRIO_NONE : PTHREAD_PRIO_INHERIT;
    REQUIRE(pthread_mutexattr_setprotocol(&about, protocol) == 0);
    REQUIRE(pthread_mutex_init(lock(i), &about) == 0);
  }
}
static void locks(void) {
  start();
  make_locks();
  const pthread_t thread = begin(hold_locks);
  end_and_wait();
  for (unsigned i = 0; i < kPages; i++) {
    struct timespec soon;
    clock_gettime(CLOCK_REALTIME, &soon);
    soon.tv_sec++;
    REQUIRE(pthread_mutex_timedlock(lock(i), &soon) == EOWNERDEAD);
    REQUIRE(pthread_mutex_consistent(lock(i)) == 0 && pthread_mutex_unlock(lock(i)) == 0);
  }
  REQUIRE(pthread_join(thread, NULL) == 0);
  REQUIRE(move_pages(0, kPages) == kPages);  // nothing is held for who is gone
}
static void locks_of_numbered_exit(void) {
  by_number = 1;
  locks();
}

// ---- the word of set_tid_address ----------------------------------------------------------------

static void* take_word(void* unused) {
  (void)unused;
  *(int*)page(5) = 1;
  atomic_store(&ending, (int)syscall(SYS_set_tid_address, page(5)));
  return end_thread();
}
static void words(void) {
  start();
  for (by_number = 0; by_number < 2; by_number++) {
    begin(take_word);  // libc's own word stays: nobody can join it
    end_and_wait();
    REQUIRE(*(volatile int*)page(5) == 0);
  }
}

// ---- lists that are none ------------------------------------------------------------------------

static struct robust_list_head* head;
static void* tell_of_list(void* unused) {
  (void)unused;
  atomic_store(&ending, (int)syscall(SYS_gettid));
  REQUIRE(syscall(SYS_set_robust_list, head, sizeof *head) == 0);
  return end_thread();
}
static void hostile_lists(void) {
  start();
  head = page(0);
  struct robust_list* const one = page(1);
  struct robust_list* const other = page(2);
  void* const wild[] = {NULL, (void*)8, (void*)~0ul, (void*)(1ul << 63), (void*)-4096l, one};
  for (unsigned i = 0; i < 2 * sizeof wild / sizeof *wild; i++) {
    by_number = i % 2;
    other->next = wild[i / 2];  // the last goes round for ever
    one->next = other;
    *head = (struct robust_list_head){{one}, i % 3 == 0 ? -8 : (long)wild[i / 2], wild[i / 2]};
    const pthread_t thread = begin(tell_of_list);
    end_and_wait();
    REQUIRE(pthread_join(thread, NULL) == 0);
  }
}

int main(int argc, char** argv) {
  static const struct test_case kCases[] = {
      {"locks", locks}, {"locks_of_numbered_exit", locks_of_numbered_exit},
      {"words", words}, {"hostile_lists", hostile_lists},
      {NULL, NULL},
  };
  return run_case(argc, argv, kCases);
}

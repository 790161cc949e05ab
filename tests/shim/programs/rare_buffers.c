// SPDX-License-Identifier: Apache-2.0
// Rare calls of libc on pages that a device has. Run as it is and where userfaultfd is denied.
#define _GNU_SOURCE
#include <fcntl.h>
#include <mqueue.h>
#include <pthread.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <sys/ipc.h>
#include <sys/resource.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/timex.h>
#include <time.h>

#include "on_a_device.h"

// Those that nobody thinks of.
static void rare(void) {
  start();
  char folder[] = "/tmp/stagetwo-rare-XXXXXX";
  REQUIRE(mkdtemp(folder) != NULL && chdir(folder) == 0);
  put(0, "pipe", 5);
  AWAY(mkfifo(page(0), 0600) == 0);
  AWAY(lchown(page(0), getuid(), getgid()) == 0);
  memset(page(1), 0, 32);
  AWAY(lutimes(page(0), page(1)) == 0);
  AWAY(ftok(page(0), 7) != -1);
  AWAY(pathconf(page(0), _PC_PIPE_BUF) == 4096);
  *(unsigned*)page(2) = 128;
  AWAY(name_to_handle_at(AT_FDCWD, page(0), page(2), page(3), 0) == 0 || errno == EOPNOTSUPP);
  AWAY(remove(page(0)) == 0);
  put(0, "other-XXXXXX", 13);
  AWAY(close(mkstemp(page(0))) == 0);
  AWAY(unlink(page(0)) == 0);
  const int counter = eventfd(5, 0);
  AWAY(eventfd_read(counter, page(5)) == 0 && *(uint64_t*)page(5) == 5);
  AWAY(sched_getparam(0, page(6)) == 0);
  AWAY(sched_setscheduler(0, SCHED_OTHER, page(6)) == 0);
  AWAY(sched_rr_get_interval(0, page(7)) == 0);
  AWAY(getrlimit64(RLIMIT_NOFILE, page(8)) == 0);
  AWAY(setrlimit64(RLIMIT_NOFILE, page(8)) == 0);
  AWAY(prlimit64(0, RLIMIT_NOFILE, page(8), page(9)) == 0);
  memset(page(10), 0, sizeof(struct timex));
  AWAY(adjtimex(page(10)) != -1);
  put(11, "rare", 5);
  AWAY(pthread_setname_np(pthread_self(), page(11)) == 0);
  AWAY(pthread_getname_np(pthread_self(), page(12), 16) == 0 && strcmp(page(12), "rare") == 0);
  AWAY(pthread_getaffinity_np(pthread_self(), sizeof(cpu_set_t), page(13)) == 0);
  AWAY(pthread_setaffinity_np(pthread_self(), sizeof(cpu_set_t), page(13)) == 0);
  const int segment = shmget(IPC_PRIVATE, kPage, IPC_CREAT | 0600);
  AWAY(shmctl(segment, IPC_STAT, page(14)) == 0);
  REQUIRE(shmctl(segment, IPC_RMID, NULL) == 0);
  const int set = semget(IPC_PRIVATE, 3, IPC_CREAT | 0600);
  *(uint16_t*)page(15) = 9;
  AWAY(semctl(set, 0, SETALL, page(15)) == 0 && semctl(set, 0, GETVAL) == 9);
  REQUIRE(semctl(set, 0, IPC_RMID) == 0);
  REQUIRE(chdir("/") == 0 && rmdir(folder) == 0);
}
// The message queues of POSIX, where the kernel has them.
static void queues(void) {
  start();
  put(0, "/stagetwo-held", 15);
  put(1, &(struct mq_attr){.mq_maxmsg = 4, .mq_msgsize = 64}, sizeof(struct mq_attr));
  AWAY(mq_open(page(0), O_RDWR | O_CREAT, 0600, page(1)) != -1 || errno == ENOSYS);
  const mqd_t queue = mq_open(page(0), O_RDWR);
  if (queue == -1) return;
  AWAY(mq_unlink(page(0)) == 0);
  AWAY(mq_getattr(queue, page(2)) == 0 && ((struct mq_attr*)page(2))->mq_msgsize == 64);
  AWAY(mq_setattr(queue, page(2), page(3)) == 0);
  AWAY(clock_getres(CLOCK_REALTIME, page(4)) == 0);
  put(4, &(struct timespec){2000000000, 0}, sizeof(struct timespec));
  put(5, "words", 6);
  AWAY(mq_timedsend(queue, page(5), 6, 1, page(4)) == 0);
  AWAY(mq_timedreceive(queue, page(6), 64, page(7), page(4)) == 6);
  REQUIRE(strcmp(page(6), "words") == 0);
}

int main(int argc, char** argv) {
  static const struct test_case kCases[] = {{"rare", rare}, {"queues", queues}, {NULL, NULL}};
  return run_case(argc, argv, kCases);
}

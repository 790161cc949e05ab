// SPDX-License-Identifier: Apache-2.0
// System calls whose buffers are on a device when they are made. Run as it is and where userfaultfd
// is denied, so that the kernel itself cannot wait for a page.
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <linux/types.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <spawn.h>
#include <stdatomic.h>
#include <sys/epoll.h>
#include <sys/msg.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/sysinfo.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <sys/times.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/utsname.h>
#include <sys/wait.h>

#include "on_a_device.h"

static void files(void) {
  start();
  int* const pair = page(0);
  AWAY(pipe(pair) == 0);
  AWAY(write(pair[1], page(1), 2 * kPage) == 2 * kPage);
  const struct iovec two[] = {{page(3), kPage}, {page(6), kPage}};
  put(9, two, sizeof two);
  AWAY(readv(pair[0], page(9), 2) == 2 * kPage);
  REQUIRE(*(uint8_t*)page(6) == 1);
  const char* const path = name(2, "/proc/self/stat");
  AWAY(access(path, R_OK) == 0);
  struct stat* const about = page(4);
  AWAY(stat(path, about) == 0 && S_ISREG(about->st_mode));
  AWAY(lstat(path, about) == 0 && S_ISREG(about->st_mode));
  const int file = open(path, O_RDONLY);
  REQUIRE(file >= 0);
  AWAY(fstat(file, about) == 0 && S_ISREG(about->st_mode));
  AWAY(statx(AT_FDCWD, path, 0, STATX_TYPE, page(7)) == 0);
  AWAY(statfs(path, page(7)) == 0 && ((struct statfs*)page(7))->f_type == 0x9fa0);
  AWAY(fstatfs(file, page(7)) == 0);
  AWAY(pread(file, page(5), kPage, 0) > 10 && *(char*)page(5) >= '1');
  AWAY(preadv2(file, put(9, &two[1], sizeof two[1]), 1, 0, 0) > 10);
  AWAY(getcwd(page(8), kPage) != NULL && *(char*)page(8) == '/');
  name(2, "/proc/self/exe");
  AWAY(readlink(path, page(8), kPage) > 1 && *(char*)page(8) == '/');
  const int folder = open("/proc/self/fd", O_RDONLY | O_DIRECTORY);
  AWAY(getdents64(folder, page(10), kPage) > 0);
  AWAY(mincore(page(0), kBytes, page(11)) == 0);
  FILE* const null = fopen("/dev/null", "w");
  FILE* const zero = fopen("/dev/zero", "r");
  AWAY(fwrite(page(0), 1, kBytes, null) == kBytes);
  AWAY(fread(page(3), 1, 4 * kPage, zero) == 4 * kPage && *(uint8_t*)page(6) == 0);
  memset(page(3), 'a', kPage);
  memset(page(4), 0, 1);
  AWAY(fputs(page(3), null) >= 0);
  const struct flock whole = {.l_type = F_WRLCK};
  AWAY(fcntl(fileno(null), F_SETLK, put(1, &whole, sizeof whole)) == 0 || errno == EBADF ||
       errno == EINVAL);
  REQUIRE(errno != EFAULT);
  AWAY(ioctl(pair[0], FIONREAD, page(2)) == 0 && *(int*)page(2) == 0);
}

static void sockets(void) {
  start();
  int* const pair = page(0);
  AWAY(socketpair(AF_UNIX, SOCK_DGRAM, 0, pair) == 0);
  const int a = pair[0];
  const int b = pair[1];
  AWAY(send(a, page(1), 100, 0) == 100);
  AWAY(recv(b, page(2), 100, 0) == 100 && *(uint8_t*)page(2) == 1);
  AWAY(sendto(a, page(1), 100, 0, NULL, 0) == 100);
  socklen_t* const length = page(3);
  *length = sizeof(struct sockaddr_un);
  AWAY(recvfrom(b, page(2), 100, 0, page(4), length) == 100);
  const struct iovec parts[] = {{page(5), 50}, {page(7), 50}};
  put(9, parts, sizeof parts);
  const struct msghdr message = {
      .msg_iov = page(9), .msg_iovlen = 2, .msg_control = page(10), .msg_controllen = 0};
  put(11, &message, sizeof message);
  AWAY(sendmsg(a, page(11), 0) == 100);
  AWAY(recvmsg(b, page(11), 0) == 100);
  const struct mmsghdr several[] = {{.msg_hdr = message}, {.msg_hdr = message}};
  put(12, several, sizeof several);
  AWAY(sendmmsg(a, page(12), 2, 0) == 2);
  AWAY(recvmmsg(b, page(12), 2, 0, NULL) == 2);
  int* const value = page(6);
  *length = sizeof *value;
  AWAY(getsockopt(a, SOL_SOCKET, SO_TYPE, value, length) == 0 && *value == SOCK_DGRAM);
  *value = 1;
  AWAY(setsockopt(a, SOL_SOCKET, SO_PASSCRED, value, sizeof *value) == 0);
  *length = sizeof(struct sockaddr_un);
  AWAY(getsockname(a, page(4), length) == 0);
  *length = sizeof(struct sockaddr_un);
  AWAY(getpeername(a, page(4), length) == 0);
  const int listener = socket(AF_UNIX, SOCK_STREAM, 0);
  struct sockaddr_un* const at = page(8);
  memset(at, 0, sizeof *at);  // a name in no folder
  at->sun_family = AF_UNIX;
  snprintf(at->sun_path + 1, 40, "stagetwo held %d", getpid());
  AWAY(bind(listener, page(8), sizeof *at) == 0);
  REQUIRE(listen(listener, 1) == 0);
  AWAY(connect(socket(AF_UNIX, SOCK_STREAM, 0), page(8), sizeof *at) == 0);
  *length = sizeof *at;
  AWAY(accept4(listener, page(4), length, 0) >= 0);
}

static void waiting(void) {
  start();
  int ends[2];
  REQUIRE(pipe(ends) == 0);
  REQUIRE(write(ends[1], "x", 1) == 1);
  struct pollfd* const ask = page(0);
  *ask = (struct pollfd){.fd = ends[0], .events = POLLIN};
  AWAY(poll(ask, 1, 1000) == 1 && ask->revents == POLLIN);
  struct timespec* const second = page(1);
  *second = (struct timespec){.tv_sec = 1};
  sigset_t* const mask = page(2);
  sigemptyset(mask);
  AWAY(ppoll(ask, 1, second, mask) == 1);
  fd_set* const in = page(3);
  FD_ZERO(in);
  FD_SET(ends[0], in);
  struct timeval* const limit = page(4);
  *limit = (struct timeval){.tv_sec = 1};
  AWAY(select(ends[0] + 1, in, NULL, NULL, limit) == 1);
  AWAY(pselect(ends[0] + 1, in, NULL, NULL, second, mask) == 1);
  const int epoll = epoll_create1(0);
  struct epoll_event* const event = page(5);
  *event = (struct epoll_event){.events = EPOLLIN, .data.u64 = 77};
  AWAY(epoll_ctl(epoll, EPOLL_CTL_ADD, ends[0], event) == 0);
  AWAY(epoll_wait(epoll, page(6), 4, 1000) == 1);
  REQUIRE(((struct epoll_event*)page(6))->data.u64 == 77);
  *second = (struct timespec){.tv_nsec = 1000};
  AWAY(nanosleep(second, page(7)) == 0);
  AWAY(clock_nanosleep(CLOCK_MONOTONIC, 0, second, page(7)) == 0);
  const int timer = timerfd_create(CLOCK_MONOTONIC, 0);
  const struct itimerspec once = {.it_value = {.tv_nsec = 1000}};
  put(8, &once, sizeof once);
  AWAY(timerfd_settime(timer, 0, page(8), page(9)) == 0);
  AWAY(timerfd_gettime(timer, page(9)) == 0);
  const pid_t child = fork();
  if (child == 0) _exit(5);
  AWAY(wait4(child, page(10), 0, page(11)) == child && WEXITSTATUS(*(int*)page(10)) == 5);
  sigaddset(mask, SIGUSR1);
  REQUIRE(pthread_sigmask(SIG_BLOCK, mask, NULL) == 0 && raise(SIGUSR1) == 0);
  AWAY(sigwaitinfo(mask, page(12)) == SIGUSR1);
}

static void asking(void) {
  start();
  memset(page(0), 0, 64);
  AWAY(getrandom(page(0), 64, 0) == 64);
  AWAY(getentropy(page(1), 64) == 0);
  AWAY(uname(page(2)) == 0 && strcmp(((struct utsname*)page(2))->sysname, "Linux") == 0);
  AWAY(getrlimit(RLIMIT_NOFILE, page(3)) == 0);
  AWAY(setrlimit(RLIMIT_NOFILE, page(3)) == 0);
  AWAY(prlimit(0, RLIMIT_NOFILE, page(3), page(4)) == 0);
  AWAY(getrusage(RUSAGE_SELF, page(5)) == 0);
  AWAY(sysinfo(page(6)) == 0);
  AWAY(times(page(7)) != -1);
  const int queue = msgget(IPC_PRIVATE, IPC_CREAT | 0600);
  *(long*)page(8) = 3;
  AWAY(msgsnd(queue, page(8), 100, 0) == 0);
  AWAY(msgrcv(queue, page(9), 100, 3, 0) == 100 && *(long*)page(9) == 3);
  REQUIRE(msgctl(queue, IPC_RMID, NULL) == 0);
  // Of the other process's side it knows nothing, also where that is this one.
  static char far_side[100] = "over there";
  const struct iovec from = {far_side, 100};
  const struct iovec to = {page(11), 100};
  put(12, &from, sizeof from);
  put(13, &to, sizeof to);
  AWAY(process_vm_readv(getpid(), page(13), 1, page(12), 1, 0) == 100);
  REQUIRE(strcmp(page(11), far_side) == 0);
}

static int ends[2];
static void* receive(void* unused) {
  recv(ends[1], page(4), 100, 0);  // nothing comes
  return unused;
}
static void wait_until_asleep(void) {
  usleep(50000);
}

// While a call waits, no device takes its buffer; the page next to it is taken as ever.
static void held(void) {
  start();
  REQUIRE(socketpair(AF_UNIX, SOCK_DGRAM, 0, ends) == 0);
  away();
  pthread_t thread;
  REQUIRE(pthread_create(&thread, NULL, receive, NULL) == 0);
  wait_until_asleep();
  move_pages(0, kPages);
  REQUIRE(on_device(3) && on_device(5) && !on_device(4));
  pthread_cancel(thread);
  REQUIRE(pthread_join(thread, NULL) == 0);
  move_pages(4, 1);
  REQUIRE(on_device(4));  // the thread that held it is gone
}

static atomic_int stop;
static void* take_for_ever(void* unused) {
  while (!atomic_load(&stop)) move_pages(0, kPages);
  return unused;
}
// No message is lost to a page that goes between the look and the call.
static void nothing_is_lost(void) {
  enum { kMessages = 3000 };
  start();
  REQUIRE(socketpair(AF_UNIX, SOCK_DGRAM, 0, ends) == 0);
  pthread_t taker;
  REQUIRE(pthread_create(&taker, NULL, take_for_ever, NULL) == 0);
  for (uint32_t i = 0; i < kMessages; i++) {
    uint32_t* const out = (uint32_t*)page(i % kPages);
    uint32_t* const in = (uint32_t*)page((i + 7) % kPages);
    *out = i;
    REQUIRE(send(ends[0], out, sizeof *out, 0) == sizeof *out);
    *in = ~i;
    REQUIRE(recv(ends[1], in, sizeof *in, 0) == sizeof *in);
    REQUIRE(*in == i);
  }
  atomic_store(&stop, 1);
  REQUIRE(pthread_join(taker, NULL) == 0);
}

static sigjmp_buf back;
static void jump(int signal) {
  (void)signal;
  siglongjmp(back, 1);
}
// A handler jumps out of the call: the hold ends with the next one.
static void jumped_out_of(void) {
  start();
  REQUIRE(socketpair(AF_UNIX, SOCK_DGRAM, 0, ends) == 0);
  signal(SIGALRM, jump);
  for (unsigned round = 0; round < 20; round++) {
    away();
    if (sigsetjmp(back, 1) == 0) {
      const struct itimerval soon = {{0, 0}, {0, 2000}};
      REQUIRE(setitimer(ITIMER_REAL, &soon, NULL) == 0);
      recv(ends[1], page(4), 100, 0);
      REQUIRE(!"recv returns");
    }
    REQUIRE(send(ends[0], page(5), 10, 0) == 10);
    REQUIRE(recv(ends[1], page(6), 10, 0) == 10);
  }
  away();
}

// By number they are the same calls.
static void raw_calls(void) {
  start();
  int* const pair = page(0);
  AWAY(syscall(SYS_pipe2, pair, 0) == 0);
  AWAY(syscall(SYS_write, pair[1], page(1), 2 * kPage) == 2 * kPage);
  const struct iovec two[] = {{page(3), kPage}, {page(6), kPage}};
  put(9, two, sizeof two);
  AWAY(syscall(SYS_readv, pair[0], page(9), 2) == 2 * kPage);
  REQUIRE(*(uint8_t*)page(6) == 1);
  AWAY(syscall(SYS_vmsplice, pair[1], page(9), 2, 0) == 2 * kPage);
  AWAY(syscall(SYS_read, pair[0], page(2), 2 * kPage) == 2 * kPage);
  const char* const path = name(2, "/proc/self/stat");
  const int file = (int)syscall(SYS_openat, AT_FDCWD, path, O_RDONLY);
  REQUIRE(file >= 0);
  AWAY(syscall(SYS_open, path, O_RDONLY) >= 0);
  AWAY(syscall(SYS_access, path, R_OK) == 0);
  AWAY(syscall(SYS_pread64, file, page(5), kPage, 0) > 10 && *(char*)page(5) >= '1');
  AWAY(syscall(SYS_preadv2, file, put(9, &two[1], sizeof two[1]), 1, 0, 0, 0) > 10);
  AWAY(syscall(SYS_readlink, name(2, "/proc/self/exe"), page(8), kPage) > 1);
  AWAY(syscall(SYS_getcwd, page(8), kPage) > 0);
  AWAY(syscall(SYS_uname, page(8)) == 0);
  AWAY(syscall(SYS_clock_gettime, CLOCK_MONOTONIC, page(8)) == 0);
  AWAY(syscall(SYS_sysinfo, page(8)) == 0);
  AWAY(syscall(SYS_getrandom, page(8), 100, 0) == 100);
  AWAY(syscall(SYS_mincore, page(0), kBytes, page(11)) == 0);
  int* const word = page(12);
  *word = 5;
  AWAY(syscall(SYS_futex, word, 0, 6, NULL, NULL, 0) == -1 && errno == EAGAIN);
  int sockets_[2];
  REQUIRE(socketpair(AF_UNIX, SOCK_DGRAM, 0, sockets_) == 0);
  AWAY(syscall(SYS_sendto, sockets_[0], page(1), 100, 0, NULL, 0) == 100);
  AWAY(syscall(SYS_recvfrom, sockets_[1], page(2), 100, 0, NULL, NULL) == 100);
  struct pollfd* const ask = page(7);
  *ask = (struct pollfd){.fd = sockets_[0], .events = POLLOUT};
  AWAY(syscall(SYS_poll, ask, 1, 1000) == 1);
  aio_context_t* const queue = page(13);
  *queue = 0;
  AWAY(syscall(SYS_io_setup, 4, queue) == 0);
  const int zero = open("/dev/zero", O_RDONLY);
  const int whole = open("/proc/self/exe", O_RDONLY);
  REQUIRE(zero >= 0 && whole >= 0);
  struct iocb* const request = page(14);
  memset(request, 0, sizeof *request);
  *request = (struct iocb){.aio_lio_opcode = IOCB_CMD_PREAD,
                           .aio_fildes = (uint32_t)whole,
                           .aio_buf = (uintptr_t)page(10),
                           .aio_nbytes = 100};
  struct iocb** const list = page(15);
  *list = request;
  AWAY(syscall(SYS_io_submit, *queue, 1, list) == 1);
  AWAY(syscall(SYS_io_getevents, *queue, 1, 1, page(4), NULL) == 1);
  REQUIRE(((struct io_event*)page(4))->res == 100 && memcmp(page(10), "\177ELF", 4) == 0);
}

// What the kernel reads after io_submit has returned would miss a copy: while it works on a
// request, no page is copied. One that waits for a pipe is under way until somebody writes.
static void requests_under_way(void) {
  start();
  aio_context_t queue = 0;
  REQUIRE(syscall(SYS_io_setup, 4, &queue) == 0);
  int pair[2];
  REQUIRE(pipe(pair) == 0);
  struct iocb wait = {
      .aio_lio_opcode = IOCB_CMD_POLL, .aio_fildes = (uint32_t)pair[0], .aio_buf = POLLIN};
  struct iocb* list = &wait;
  const int denied = syscall(SYS_userfaultfd, 0) < 0;
  for (int round = 0; round < 3; round++) {
    REQUIRE(syscall(SYS_io_submit, queue, 1, &list) == 1);
    memset(memory, 1, kBytes);
    const long moved = move_pages(0, kPages);
    REQUIRE(denied ? moved == -ENOENT : moved == kPages);
    REQUIRE(memory[0] == 1);
    if (round < 2) {
      REQUIRE(write(pair[1], "x", 1) == 1);
      struct io_event event;
      const long number = round == 0 ? SYS_io_getevents : SYS_io_pgetevents;
      REQUIRE(syscall(number, queue, 1, 1, &event, NULL, NULL) == 1);
      char got;
      REQUIRE(read(pair[0], &got, 1) == 1);
    } else {
      REQUIRE(syscall(SYS_io_destroy, queue) == 0);
    }
    REQUIRE(move_pages(0, kPages) == kPages);
    REQUIRE(memory[kPage] == 1);
  }
}

// The words of another program lie with a device.
static char** words_of(const char* program, const char* argument) {
  char** const words = page(0);
  words[0] = name(1, program);
  words[1] = argument == NULL ? NULL : name(2, "-c");
  words[2] = argument == NULL ? NULL : name(3, argument);
  words[3] = NULL;
  return words;
}
static char** some_settings(void) {
  char** const settings = page(5);
  settings[0] = name(6, "STAGETWO_TEST_WORD=7");
  settings[1] = NULL;
  return settings;
}
static int exit_of(pid_t child) {
  int status = -1;
  REQUIRE(waitpid(child, &status, 0) == child);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 100 + WTERMSIG(status);
}
static void programs(void) {
  start();
  char** const words = words_of("/bin/sh", "exit $STAGETWO_TEST_WORD");
  char** const settings = some_settings();
  // The engine is no part of the child: its first word is not looked at.
  posix_spawn_file_actions_t* const steps = page(7);
  REQUIRE(posix_spawn_file_actions_init(steps) == 0);
  REQUIRE(posix_spawn_file_actions_addopen(steps, 9, name(8, "/dev/null"), O_RDONLY, 0) == 0);
  posix_spawnattr_t* const about = page(9);
  REQUIRE(posix_spawnattr_init(about) == 0);
  pid_t* const child = page(10);
  for (unsigned round = 0; round < 3; round++) {
    AWAY(posix_spawn(child, words[0], steps, about, words, settings) == 0);
    REQUIRE(exit_of(*child) == 7);
    AWAY(posix_spawnp(child, words[0], NULL, NULL, words, settings) == 0);
    REQUIRE(exit_of(*child) == 7);
    away();
    const pid_t borrowed = vfork();
    if (borrowed == 0) {
      execve(words[0], words, settings);
      _exit(99);
    }
    REQUIRE(exit_of(borrowed) == 7);
    away();
    const pid_t listed = vfork();
    if (listed == 0) {
      execle(words[0], words[0], words[1], words[2], NULL, settings);
      _exit(99);
    }
    REQUIRE(exit_of(listed) == 7);
    away();
    const pid_t numbered = vfork();
    if (numbered == 0) {
      syscall(SYS_execve, words[0], words, settings);
      _exit(99);
    }
    REQUIRE(exit_of(numbered) == 7);
  }
  AWAY(system(name(3, "exit 5")) >> 8 == 5);
  away();
  FILE* const pipe_of = popen(name(3, "exit 6"), "r");
  REQUIRE(pipe_of != NULL && pclose(pipe_of) >> 8 == 6);
  away();
  execve(name(1, "/bin/true"), words, settings);
  REQUIRE(!"execve returns");
}

static void memory_calls(void) {
  enum { kPopulateRead = 22, kPopulateWrite = 23 };
  start();
  AWAY(mlock(page(0), 2 * kPage) == 0);
  REQUIRE(munlock(page(0), 2 * kPage) == 0);
  AWAY(syscall(SYS_mlock2, page(0), 2 * kPage, 0) == 0);
  REQUIRE(munlock(page(0), 2 * kPage) == 0);
  AWAY(madvise(page(0), 2 * kPage, kPopulateRead) == 0);
  AWAY(madvise(page(0), 2 * kPage, kPopulateWrite) == 0);
  REQUIRE(*(uint8_t*)page(1) == 1);
  // Of a page that a driver has for itself the kernel says that it is there, and asks for nothing.
  uint8_t there[4] = {0};
  AWAY(mincore(page(2), 2 * kPage, there) == 0 && there[0] == 1 && there[1] == 1);
  AWAY(syscall(SYS_mincore, page(3), kPage, there + 2) == 0 && there[2] == 1);
  REQUIRE(on_device(2) && on_device(3) && there[3] == 0);
  // The other side of a copy between processes, where that is this one.
  static uint8_t copied[2 * kPage];
  const struct iovec near = {copied, sizeof copied};
  const struct iovec far = {page(4), sizeof copied};
  AWAY(process_vm_readv(getpid(), &near, 1, &far, 1, 0) == 2 * kPage && copied[kPage] == 1);
  memset(copied, 2, sizeof copied);
  AWAY(process_vm_writev(getpid(), &near, 1, &far, 1, 0) == 2 * kPage);
  REQUIRE(*(uint8_t*)page(5) == 2);
}

// This process's memory by its file in /proc: there the kernel waits for no absent page at all.
static void memory_file(void) {
  start();
  uint64_t value = 0;
  const struct iovec part = {&value, sizeof value};
  const int self = open("/proc/self/mem", O_RDWR);
  const int thread = open("/proc/thread-self/mem", O_RDWR);
  REQUIRE(self >= 0 && thread >= 0);
  const off_t at = (off_t)(uintptr_t)page(3);
  for (unsigned round = 0; round < 2; round++) {
    const int fd = round == 0 ? self : thread;
    memset(page(3), 0x61, kPage);
    AWAY(pread(fd, &value, sizeof value, at) == sizeof value);
    REQUIRE(value == 0x6161616161616161);
    value = 0x4242;
    AWAY(pwrite(fd, &value, sizeof value, at + 8) == sizeof value);
    REQUIRE(*(uint64_t*)((uint8_t*)page(3) + 8) == 0x4242);
    REQUIRE(lseek(fd, at, SEEK_SET) == at);
    AWAY(read(fd, &value, sizeof value) == sizeof value && value == 0x6161616161616161);
    AWAY(preadv(fd, &part, 1, at + 8) == sizeof value && value == 0x4242);
    AWAY(syscall(SYS_pread64, fd, &value, sizeof value, at) == sizeof value);
    REQUIRE(value == 0x6161616161616161);
    value = 0x4343;
    AWAY(syscall(SYS_pwrite64, fd, &value, sizeof value, at + 16) == sizeof value);
    REQUIRE(*(uint64_t*)((uint8_t*)page(3) + 16) == 0x4343);
  }
}

// Handlers of the program's that give pages to the device while it forks, registered before the
// engine woke and after: the child has them all the same, and they were given.
static long given;
static void give(void) {
  given += move_pages(0, kPages);
}
static int all_is_there(void) {
  for (unsigned i = 0; i < kBytes; i++) {
    if (memory[i] != 1) return 0;
  }
  return 1;
}
static void forks_with_handlers(void) {
  REQUIRE(pthread_atfork(give, NULL, NULL) == 0);
  start();
  for (unsigned round = 0; round < 2; round++) {
    given = 0;
    const pid_t child = fork();
    if (child == 0) _exit(all_is_there() ? 0 : 1);
    int status = -1;
    REQUIRE(waitpid(child, &status, 0) == child && status == 0);
    REQUIRE(given == (long)(round + 1) * kPages && all_is_there());
    REQUIRE(pthread_atfork(give, NULL, NULL) == 0);
  }
}

// What is only documented: a call past libc is refused where userfaultfd is denied, with the
// kernel's errno and nothing taken; it goes through once the page has been touched.
static long own_instruction(long number, long a, long b, long c) {
  long answer;
  __asm__ volatile("syscall"
                   : "=a"(answer)
                   : "a"(number), "D"(a), "S"(b), "d"(c)
                   : "rcx", "r11", "memory");
  return answer;
}
static void own_instructions_are_refused(void) {
  start();
  int pair[2];
  REQUIRE(pipe(pair) == 0);
  away();
  REQUIRE(own_instruction(SYS_write, pair[1], (long)page(3), 100) == -EFAULT);
  REQUIRE(((volatile uint8_t*)page(3))[0] == 1);
  REQUIRE(own_instruction(SYS_write, pair[1], (long)page(3), 100) == 100);
}

int main(int argc, char** argv) {
  static const struct test_case kCases[] = {
      {"files", files},
      {"sockets", sockets},
      {"waiting", waiting},
      {"asking", asking},
      {"held", held},
      {"nothing_is_lost", nothing_is_lost},
      {"jumped_out_of", jumped_out_of},
      {"raw_calls", raw_calls},
      {"requests_under_way", requests_under_way},
      {"programs", programs},
      {"memory_calls", memory_calls},
      {"memory_file", memory_file},
      {"forks_with_handlers", forks_with_handlers},
      {"own_instructions_are_refused", own_instructions_are_refused},
      {NULL, NULL},
  };
  return run_case(argc, argv, kCases);
}

// SPDX-License-Identifier: Apache-2.0
// A small VMM in plain C whose guest's memory goes to a device and comes back while the guest runs.
// Knows nothing but the public ABIs of KVM and of the HMM test device; prints one line for each
// thing that held. With a second argument it first denies itself userfaultfd. No store of the guest
// may be lost: it counts its rounds in a register and in a word of each of eight pages.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/kvm.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "abi/hmm/uapi.h"

enum { kPage = 4096, kPages = 8, kBytes = kPage * kPages, kCode = 0x1000, kWindow = 0x10000 };

static int vm;
static int vcpu;
static struct kvm_run* run;
static char* window;
static char bounce[kBytes];
static atomic_int stop;

static void check(int holds, const char* what) {
  if (holds) return;
  printf("failed: %s: %s\n", what, strerror(errno));
  fflush(stdout);
  _exit(1);
}

static void slot(uint32_t id, uint64_t gpa, uint64_t size, void* at) {
  struct kvm_userspace_memory_region region = {
      .slot = id, .guest_phys_addr = gpa, .memory_size = size, .userspace_addr = (uint64_t)at};
  check(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region) == 0, "KVM_SET_USER_MEMORY_REGION");
}

// Denies userfaultfd by either of its two doors, as a container's filter does.
static void deny_userfaultfd(void) {
  enum { kNewFromDevice = 0xAA00 };
  struct sock_filter filter[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_userfaultfd, 3, 0),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_ioctl, 0, 3),
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[1])),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, kNewFromDevice, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  const struct sock_fprog program = {.len = sizeof(filter) / sizeof(filter[0]), .filter = filter};
  check(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0, "PR_SET_NO_NEW_PRIVS");
  check(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0, "PR_SET_SECCOMP");
}

static void on_signal(int signal) {
  (void)signal;
}

static void* guest(void* unused) {
  (void)unused;
  while (!atomic_load(&stop)) {
    check(ioctl(vcpu, KVM_RUN, 0) == 0 || errno == EINTR, "KVM_RUN");
  }
  return NULL;
}

static void* map_new(void) {
  return mmap(NULL, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

static void create(void) {
  static const unsigned char code[] = {0xff, 0x05,              // inc word [di]
                                       0x81, 0xc7, 0x00, 0x10,  // add di, 0x1000
                                       0x81, 0xe7, 0xff, 0x7f,  // and di, 0x7fff
                                       0x75, 0xf4,              // jnz to the start
                                       0x41,                    // inc cx
                                       0xeb, 0xf1};             // jmp to the start
  const int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
  check(kvm >= 0, "open /dev/kvm");
  vm = ioctl(kvm, KVM_CREATE_VM, 0);
  check(vm >= 0, "KVM_CREATE_VM");
  char* text = map_new();
  memcpy(text, code, sizeof(code));
  window = map_new();
  slot(0, kCode, kPage, text);
  slot(1, kWindow, kBytes, window);
  vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
  check(vcpu >= 0, "KVM_CREATE_VCPU");
  const int size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
  run = mmap(NULL, (size_t)size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
  check(run != MAP_FAILED, "mmap of the vCPU");
  struct kvm_sregs sregs;
  check(ioctl(vcpu, KVM_GET_SREGS, &sregs) == 0, "KVM_GET_SREGS");
  sregs.cs.base = 0;
  sregs.cs.selector = 0;
  sregs.ds.base = kWindow;
  sregs.ds.selector = kWindow >> 4;
  check(ioctl(vcpu, KVM_SET_SREGS, &sregs) == 0, "KVM_SET_SREGS");
  struct kvm_regs regs = {.rip = kCode, .rflags = 2};
  check(ioctl(vcpu, KVM_SET_REGS, &regs) == 0, "KVM_SET_REGS");
}

static long device(int fd, unsigned long request) {
  struct hmm_dmirror_cmd cmd = {
      .addr = (uint64_t)window, .ptr = (uint64_t)bounce, .npages = kPages};
  return ioctl(fd, request, &cmd) == 0 ? 0 : -errno;
}

// The guest has changed the last page since.
static void wait_for_guest(void) {
  volatile uint16_t* last = (volatile uint16_t*)(window + (kPages - 1) * kPage);
  const uint16_t before = *last;
  const time_t start = time(NULL);
  while (*last == before) {
    check(time(NULL) - start < 20, "the guest goes on");
    sched_yield();
  }
}

// A page may come back between the move and the look: that is ENOENT or EBUSY, and no loss.
static void send(int fd, unsigned long request, int rounds) {
  for (int i = 0; i < rounds; ++i) {
    const long answer = device(fd, request);
    check(answer == 0 || answer == -ENOENT || answer == -EBUSY, "the device takes the pages");
    if (i % 4 == 0) wait_for_guest();
  }
}

static void touch_by_system_call(int fd) {
  int ends[2];
  check(pipe(ends) == 0, "pipe");
  (void)device(fd, HMM_DMIRROR_MIGRATE_TO_DEV);
  check(write(ends[1], window + kPage, 64) == 64, "write of a page on the device");
  close(ends[0]);
  close(ends[1]);
}

static void fork_with_pages_away(int fd) {
  (void)device(fd, HMM_DMIRROR_MIGRATE_TO_DEV);
  const pid_t child = fork();
  if (child == 0) {
    uint16_t least = UINT16_MAX;
    uint16_t most = 0;
    for (int page = 0; page < kPages; ++page) {
      const uint16_t word = *(volatile uint16_t*)(window + page * kPage);
      least = word < least ? word : least;
      most = word > most ? word : most;
    }
    _exit(most - least <= 1 || most - least == UINT16_MAX ? 0 : 1);
  }
  int status = 0;
  check(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0,
        "the child has the guest's memory of one moment");
}

int main(int argc, char** argv) {
  const int rounds = argc > 1 ? atoi(argv[1]) : 40;
  setvbuf(stdout, NULL, _IOLBF, 0);
  if (argc > 2) deny_userfaultfd();
  create();
  const struct sigaction action = {.sa_handler = on_signal};
  sigaction(SIGUSR1, &action, NULL);
  const int one = open("/dev/hmm_dmirror0", O_RDWR);
  const int two = open("/dev/hmm_dmirror1", O_RDWR);
  check(one >= 0 && two >= 0, "open /dev/hmm_dmirror");
  pthread_t thread;
  check(pthread_create(&thread, NULL, guest, NULL) == 0, "pthread_create");
  wait_for_guest();
  send(one, HMM_DMIRROR_MIGRATE_TO_DEV, rounds);
  printf("memory of a running guest goes to a device and comes back\n");
  send(two, HMM_DMIRROR_EXCLUSIVE, rounds);
  printf("a device's exclusive access ends with the guest's next store\n");
  touch_by_system_call(one);
  printf("a system call brings a page back\n");
  fork_with_pages_away(one);
  printf("a fork finds every page\n");
  send(two, HMM_DMIRROR_READ, rounds);
  send(one, HMM_DMIRROR_MIGRATE_TO_DEV, rounds);

  atomic_store(&stop, 1);
  run->immediate_exit = 1;
  pthread_kill(thread, SIGUSR1);
  check(pthread_join(thread, NULL) == 0, "pthread_join");
  struct kvm_regs regs;
  check(ioctl(vcpu, KVM_GET_REGS, &regs) == 0, "KVM_GET_REGS");
  // Where it stopped: the pages below di have one more; right after its store, so has the page at
  // di; and between the wrap of di and the count of the round, all of them have.
  const uint64_t at = regs.rdi & 0x7fff;
  const uint64_t done = regs.rip - kCode;
  const int wrapped = at == 0 && (done == 6 || done == 10 || done == 12);
  for (uint64_t page = 0; page < kPages; ++page) {
    const int more = wrapped || page * kPage < at || (page * kPage == at && done == 2);
    const uint16_t want = (uint16_t)((uint16_t)regs.rcx + more);
    check(*(volatile uint16_t*)(window + page * kPage) == want, "a store of the guest was lost");
  }
  printf("no store was lost\n");
  return 0;
}

// SPDX-License-Identifier: Apache-2.0
// A small VMM in plain C whose guest's memory goes to a device and comes back while the guest runs.
// Knows nothing but the public ABIs of KVM and of the HMM test device; prints one line for each
// thing that held. With a second argument it first denies itself userfaultfd. No store of the guest
// may be lost: it counts its rounds in a register and in a word of each of eight pages.
#define _GNU_SOURCE
#include <sys/wait.h>

#include "abi/hmm/uapi.h"
#include "small_vmm.h"
#include "tests/shim/programs/deny.h"

static char bounce[kBytes];

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

static const unsigned char code[] = {0xff, 0x05,              // inc word [di]
                                     0x81, 0xc7, 0x00, 0x10,  // add di, 0x1000
                                     0x81, 0xe7, 0xff, 0x7f,  // and di, 0x7fff
                                     0x75, 0xf4,              // jnz to the start
                                     0x41,                    // inc cx
                                     0xeb, 0xf1};             // jmp to the start

static long device(int fd, unsigned long request) {
  struct hmm_dmirror_cmd cmd = {
      .addr = (uint64_t)window, .ptr = (uint64_t)bounce, .npages = kPages};
  return ioctl(fd, request, &cmd) == 0 ? 0 : -errno;
}

// A page may come back between the move and the look: that is ENOENT or EBUSY, and no loss.
static void send(int fd, unsigned long request, int rounds) {
  for (int i = 0; i < rounds; ++i) {
    const long answer = device(fd, request);
    check(answer == 0 || answer == -ENOENT || answer == -EBUSY, "the device takes the pages");
    if (i % 4 == 0) wait_for_store(kPages - 1);
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
      const uint16_t found = word(page);
      least = found < least ? found : least;
      most = found > most ? found : most;
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
  if (argc > 2) check(deny_userfaultfd() == 0, "a seccomp filter");
  create(code, sizeof(code));
  const struct sigaction action = {.sa_handler = on_signal};
  sigaction(SIGUSR1, &action, NULL);
  const int one = open("/dev/hmm_dmirror0", O_RDWR);
  const int two = open("/dev/hmm_dmirror1", O_RDWR);
  check(one >= 0 && two >= 0, "open /dev/hmm_dmirror");
  pthread_t thread;
  check(pthread_create(&thread, NULL, guest, NULL) == 0, "pthread_create");
  wait_for_store(kPages - 1);
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
  for (int page = 0; page < kPages; ++page) {
    const uint64_t from = (uint64_t)page * kPage;
    const int more = wrapped || from < at || (from == at && done == 2);
    const uint16_t want = (uint16_t)((uint16_t)regs.rcx + more);
    check(word(page) == want, "a store of the guest was lost");
  }
  printf("no store was lost\n");
  return 0;
}

// SPDX-License-Identifier: Apache-2.0
// A thread forks while another one opens /dev/kvm for the first time, or makes the first VM: the
// child can do so, too. Each round in a process of its own, for which it is the first.
//
//   early_forks open|vm
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <unistd.h>

enum { kRounds = 8, kForks = 6, kPatience = 20 };

static int makes_vm;

static int make(void) {
  const int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
  if (kvm < 0) return 1;
  const int vm = makes_vm ? ioctl(kvm, KVM_CREATE_VM, 0) : dup(kvm);
  const int made = vm >= 0;
  close(vm);
  close(kvm);
  return made ? 0 : 2;
}
static void* make_first(void* unused) {
  (void)unused;
  return (void*)(long)make();
}

static int fork_beside(void) {
  pthread_t thread;
  if (makes_vm) close(open("/dev/kvm", O_RDWR | O_CLOEXEC));
  if (pthread_create(&thread, NULL, make_first, NULL) != 0) return 3;
  for (int i = 0; i < kForks; ++i) {
    const pid_t child = i % 2 == 0 ? fork() : _Fork();
    if (child == 0) {
      alarm(kPatience);
      _exit(make());
    }
    int status = -1;
    if (waitpid(child, &status, 0) != child || status != 0) return 4;
    usleep(200);
  }
  void* made = NULL;
  return pthread_join(thread, &made) == 0 && made == NULL ? 0 : 5;
}

int main(int argc, char** argv) {
  makes_vm = argc > 1 && strcmp(argv[1], "vm") == 0;
  for (int i = 0; i < kRounds; ++i) {
    const pid_t child = fork();
    if (child == 0) _exit(fork_beside());
    int status = -1;
    if (waitpid(child, &status, 0) != child || status != 0) return 1;
  }
  return 0;
}

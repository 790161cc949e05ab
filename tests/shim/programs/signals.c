// SPDX-License-Identifier: Apache-2.0
// Signals, cancellation and the death of threads while a guest runs.
#define _GNU_SOURCE
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <ucontext.h>

#include "machine.h"

static struct machine m;
static atomic_int handled, running;
static volatile int last_value;

static void count_signal(int number) {
  (void)number;
  handled++;
}

static void count_with_value(int number, siginfo_t* info, void* context) {
  (void)number;
  (void)context;
  last_value = info->si_value.sival_int;
  handled++;
}

static void install(int number, void (*handler)(int)) {
  struct sigaction action = {.sa_handler = handler};
  sigemptyset(&action.sa_mask);
  REQUIRE(sigaction(number, &action, NULL) == 0);
}

static void install_info(int number, void (*handler)(int, siginfo_t*, void*), int flags) {
  struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO | flags};
  sigemptyset(&action.sa_mask);
  REQUIRE(sigaction(number, &action, NULL) == 0);
}

static void alarm_in(long microseconds) {
  const struct itimerval timer = {.it_value = {.tv_usec = microseconds}};
  REQUIRE(setitimer(ITIMER_REAL, &timer, NULL) == 0);
}

// Until it is 0: one that comes before the run began ends nothing.
static void alarm_every(long microseconds) {
  const struct itimerval timer = {.it_interval = {.tv_usec = microseconds},
                                  .it_value = {.tv_usec = microseconds}};
  REQUIRE(setitimer(ITIMER_REAL, &timer, NULL) == 0);
}

static uint64_t guest_rip(void) {
  struct kvm_regs r;
  REQUIRE(ioctl(m.vcpu, KVM_GET_REGS, &r) == 0);
  return r.rip;
}

// --- immediate_exit and EINTR ---

static void immediate_exit(void) {
  static const uint8_t kOut[] = {0xe6, 0x10, 0xf4};  // out %al, $0x10; hlt
  create_machine(&m, kOut, sizeof kOut);
  REQUIRE(run_to_exit(&m) == KVM_EXIT_IO);
  struct kvm_run before = *m.run;
  m.run->immediate_exit = 1;
  for (unsigned i = 0; i < 2; i++) {
    REFUSES(ioctl(m.vcpu, KVM_RUN, 0), EINTR);
    REQUIRE(m.run->io.port == before.io.port && m.run->io.count == before.io.count);
  }
  m.run->immediate_exit = 0;
  REQUIRE(run_to_exit(&m) == KVM_EXIT_HLT);
}

static void handler_ends_run(void) {
  create_machine(&m, kEndless, sizeof kEndless);
  install(SIGALRM, count_signal);
  alarm_in(20000);
  REFUSES(ioctl(m.vcpu, KVM_RUN, 0), EINTR);
  REQUIRE(handled == 1);
  REQUIRE(m.run->exit_reason == KVM_EXIT_INTR);
  REQUIRE(guest_rip() == kCode);
  alarm_in(20000);  // and again
  REFUSES(ioctl(m.vcpu, KVM_RUN, 0), EINTR);
  REQUIRE(handled == 2);
}

// Installed before the device was opened, and with every libc function there is for it.
static void handler_from_before(void) {
  install_info(SIGRTMIN + 1, count_with_value, 0);
  signal(SIGUSR1, count_signal);
  create_machine(&m, kEndless, sizeof kEndless);
  struct sigaction seen;
  REQUIRE(sigaction(SIGUSR1, NULL, &seen) == 0);
  REQUIRE(seen.sa_handler == count_signal && (seen.sa_flags & SA_RESTART) != 0);
  REQUIRE(sigaction(SIGRTMIN + 1, NULL, &seen) == 0 && seen.sa_sigaction == count_with_value);
  REQUIRE(signal(SIGUSR2, count_signal) == SIG_DFL);
  REQUIRE(signal(SIGUSR2, SIG_IGN) == count_signal);
  REQUIRE(signal(SIGUSR2, SIG_DFL) == SIG_IGN);
  const union sigval value = {.sival_int = 77};
  REQUIRE(sigqueue(getpid(), SIGRTMIN + 1, value) == 0);
  REQUIRE(handled == 1 && last_value == 77);
}

static void* send_value_soon(void* target) {
  usleep(20000);
  const union sigval value = {.sival_int = 4711};
  REQUIRE(pthread_sigqueue(*(pthread_t*)target, SIGRTMIN + 2, value) == 0);
  return NULL;
}

static void siginfo_survives(void) {
  create_machine(&m, kEndless, sizeof kEndless);
  install_info(SIGRTMIN + 2, count_with_value, 0);
  pthread_t self = pthread_self(), sender;
  REQUIRE(pthread_create(&sender, NULL, send_value_soon, &self) == 0);
  REFUSES(ioctl(m.vcpu, KVM_RUN, 0), EINTR);
  REQUIRE(handled == 1 && last_value == 4711);
  pthread_join(sender, NULL);
}

static sigjmp_buf back;

static void jump_out(int number) {
  siglongjmp(back, number);
}

// The handler never returns: KVM_RUN is left in the middle, hundreds of times.
static void handler_jumps(void) {
  create_machine(&m, kEndless, sizeof kEndless);
  install(SIGALRM, jump_out);
  for (volatile unsigned i = 0; i < 200; i++) {
    if (sigsetjmp(back, 1) == 0) {
      alarm_in(500);
      ioctl(m.vcpu, KVM_RUN, 0);
      // The alarm may have come before the run began.
    }
  }
  install(SIGALRM, count_signal);
  alarm_every(1000);
  REFUSES(ioctl(m.vcpu, KVM_RUN, 0), EINTR);
  alarm_every(0);
  destroy_machine(&m);
  create_machine(&m, kHalt, sizeof kHalt);
  REQUIRE(run_to_exit(&m) == KVM_EXIT_HLT);
  destroy_machine(&m);
}

static void mask_is_the_clients(void) {
  create_machine(&m, kEndless, sizeof kEndless);
  install(SIGALRM, count_signal);
  sigset_t blocked, after;
  sigemptyset(&blocked);
  sigaddset(&blocked, SIGUSR2);
  sigaddset(&blocked, SIGSEGV);
  sigaddset(&blocked, SIGBUS);
  REQUIRE(sigprocmask(SIG_SETMASK, &blocked, NULL) == 0);
  alarm_in(10000);
  REFUSES(ioctl(m.vcpu, KVM_RUN, 0), EINTR);
  REQUIRE(sigprocmask(SIG_SETMASK, NULL, &after) == 0);
  REQUIRE(memcmp(&blocked, &after, 8) == 0);
  // A bad pointer is EFAULT with SIGSEGV blocked, too.
  REFUSES(ioctl(m.vcpu, KVM_GET_REGS, (void*)8), EFAULT);
}

static void one_shot_handler(void) {
  create_machine(&m, kEndless, sizeof kEndless);
  struct sigaction action = {.sa_handler = count_signal, .sa_flags = (int)SA_RESETHAND};
  sigemptyset(&action.sa_mask);
  REQUIRE(sigaction(SIGALRM, &action, NULL) == 0);
  alarm_in(10000);
  REFUSES(ioctl(m.vcpu, KVM_RUN, 0), EINTR);
  REQUIRE(handled == 1);
  struct sigaction seen;
  REQUIRE(sigaction(SIGALRM, NULL, &seen) == 0 && seen.sa_handler == SIG_DFL);
}

// --- KVM_SET_SIGNAL_MASK ---

static void set_signal_mask(uint64_t mask) {
  struct {
    struct kvm_signal_mask head;
    uint64_t set;
  } argument = {.set = mask};
  argument.head.len = 8;
  memcpy(argument.head.sigset, &mask, 8);
  REQUIRE(ioctl(m.vcpu, KVM_SET_SIGNAL_MASK, &argument) == 0);
}

static void* signal_later(void* target) {
  usleep(20000);
  pthread_kill(*(pthread_t*)target, SIGUSR1);
  return NULL;
}

// SIGUSR1 has its fatal default action and is blocked: it may only ever be seen as pending.
static void signal_mask(void) {
  sigset_t blocked;
  sigemptyset(&blocked);
  sigaddset(&blocked, SIGUSR1);
  REQUIRE(sigprocmask(SIG_BLOCK, &blocked, NULL) == 0);
  create_machine(&m, kEndless, sizeof kEndless);
  set_signal_mask(0);  // everything through while the guest runs
  int number = 0;
  // Sent while the vCPU is outside: the next run returns at once.
  REQUIRE(pthread_kill(pthread_self(), SIGUSR1) == 0);
  REFUSES(ioctl(m.vcpu, KVM_RUN, 0), EINTR);
  REFUSES(ioctl(m.vcpu, KVM_RUN, 0), EINTR);  // it is still pending
  REQUIRE(sigwait(&blocked, &number) == 0 && number == SIGUSR1);
  // Sent while it runs.
  pthread_t self = pthread_self(), sender;
  REQUIRE(pthread_create(&sender, NULL, signal_later, &self) == 0);
  REFUSES(ioctl(m.vcpu, KVM_RUN, 0), EINTR);
  REQUIRE(m.run->exit_reason == KVM_EXIT_INTR);
  REQUIRE(sigwait(&blocked, &number) == 0 && number == SIGUSR1);
  pthread_join(sender, NULL);
}

// A signal that the mask blocks waits until the run is over.
static void mask_blocks(void) {
  static const uint8_t kLongHalt[] = {0xb9, 0x00, 0x00, 0x00, 0x01,  // mov $0x1000000, %ecx
                                      0xff, 0xc9, 0x75, 0xfc,        // 1: dec %ecx; jnz 1b
                                      0xf4};                         // hlt
  create_machine(&m, kLongHalt, sizeof kLongHalt);
  install(SIGALRM, count_signal);
  set_signal_mask(UINT64_C(1) << (SIGALRM - 1));
  alarm_in(2000);
  REQUIRE(ioctl(m.vcpu, KVM_RUN, 0) == 0 && m.run->exit_reason == KVM_EXIT_HLT);
  REQUIRE(handled == 1);  // delivered when the call returned
}

// --- The client's own faults ---

static void* volatile fault_at;
static sigset_t mask_in_handler;
static int on_alternate_stack;
static char alternate_stack[64 * 1024];

static void take_fault(int number, siginfo_t* info, void* context) {
  (void)number;
  const char* here = (const char*)__builtin_frame_address(0);
  on_alternate_stack = here >= alternate_stack && here < alternate_stack + sizeof alternate_stack;
  REQUIRE(info->si_addr == fault_at && info->si_code == SEGV_ACCERR);
  sigprocmask(SIG_SETMASK, NULL, &mask_in_handler);
  REQUIRE(((ucontext_t*)context)->uc_mcontext.gregs[REG_RIP] != 0);
  REQUIRE(mprotect(fault_at, kPage, PROT_READ | PROT_WRITE) == 0);
  handled++;
}

static void foreign_fault(void) {
  const stack_t stack = {.ss_sp = alternate_stack, .ss_size = sizeof alternate_stack};
  REQUIRE(sigaltstack(&stack, NULL) == 0);
  create_machine(&m, kHalt, sizeof kHalt);
  struct sigaction action = {.sa_sigaction = take_fault, .sa_flags = SA_SIGINFO | SA_ONSTACK};
  sigemptyset(&action.sa_mask);
  sigaddset(&action.sa_mask, SIGUSR2);
  REQUIRE(sigaction(SIGSEGV, &action, NULL) == 0);
  struct sigaction seen;
  REQUIRE(sigaction(SIGSEGV, NULL, &seen) == 0 && seen.sa_sigaction == take_fault);
  fault_at = mmap(NULL, kPage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  *(volatile char*)fault_at = 1;  // the handler repairs it
  REQUIRE(handled == 1 && on_alternate_stack);
  REQUIRE(sigismember(&mask_in_handler, SIGUSR2) && sigismember(&mask_in_handler, SIGSEGV));
  REQUIRE(!sigismember(&mask_in_handler, SIGUSR1));
}

static void default_fault_kills(void) {
  const pid_t child = fork();
  if (child == 0) {
    create_machine(&m, kHalt, sizeof kHalt);
    *(volatile char*)(uintptr_t)64 = 1;
    _exit(0);
  }
  int status = 0;
  REQUIRE(waitpid(child, &status, 0) == child);
  REQUIRE(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV);
}

// --- Cancellation and the death of threads ---

static void* run_for_ever(void* type) {
  pthread_setcanceltype(*(int*)type, NULL);
  running = 1;
  for (;;) {
    ioctl(m.vcpu, KVM_RUN, 0);
    pthread_testcancel();
  }
  return NULL;
}

static void cancel_thread(int type, const char* code, size_t size) {
  create_machine(&m, code, size);
  for (unsigned round = 0; round < 20; round++) {
    pthread_t runner;
    running = 0;
    REQUIRE(pthread_create(&runner, NULL, run_for_ever, &type) == 0);
    while (!running) usleep(100);
    usleep(round * 100);
    REQUIRE(pthread_cancel(runner) == 0);
    void* result = NULL;
    REQUIRE(pthread_join(runner, &result) == 0 && result == PTHREAD_CANCELED);
    set_rip(&m, kCode);
  }
  // No lock, section or reference was left behind.
  memcpy(m.memory + kCode, kHalt, sizeof kHalt);
  set_rip(&m, kCode);
  REQUIRE(run_to_exit(&m) == KVM_EXIT_HLT);
  REQUIRE(set_slot(m.vm, 0, 0, m.memory, 0, 0) == 0);
  destroy_machine(&m);
}

static void cancelled_deferred(void) {
  static const char kOutLoop[] = {(char)0xe6, 0x10, (char)0xeb, (char)0xfc};  // out; jmp
  cancel_thread(PTHREAD_CANCEL_DEFERRED, kOutLoop, sizeof kOutLoop);
}

static void cancelled_asynchronous(void) {
  cancel_thread(PTHREAD_CANCEL_ASYNCHRONOUS, (const char*)kEndless, sizeof kEndless);
}

static void exit_thread(int number) {
  (void)number;
  pthread_exit((void*)3);
}

static void* run_once(void* unused) {
  running = 1;
  ioctl(m.vcpu, KVM_RUN, 0);
  return unused;
}

// A thread that ends in a handler, inside KVM_RUN as far as it can tell.
static void thread_ends_in_handler(void) {
  create_machine(&m, kEndless, sizeof kEndless);
  install(SIGUSR1, exit_thread);
  pthread_t runner;
  REQUIRE(pthread_create(&runner, NULL, run_once, NULL) == 0);
  while (!running) usleep(100);
  usleep(10000);
  REQUIRE(pthread_kill(runner, SIGUSR1) == 0);
  void* result = NULL;
  REQUIRE(pthread_join(runner, &result) == 0 && result == (void*)3);
  memcpy(m.memory + kCode, kHalt, sizeof kHalt);
  set_rip(&m, kCode);
  REQUIRE(run_to_exit(&m) == KVM_EXIT_HLT);
  // An invalidation waits for nobody.
  REQUIRE(munmap(m.memory, kMemorySize) == 0);
}

int main(int argc, char** argv) {
  static const struct test_case kCases[] = {
      {"immediate_exit", immediate_exit},
      {"handler_ends_run", handler_ends_run},
      {"handler_from_before", handler_from_before},
      {"siginfo_survives", siginfo_survives},
      {"handler_jumps", handler_jumps},
      {"mask_is_the_clients", mask_is_the_clients},
      {"one_shot_handler", one_shot_handler},
      {"signal_mask", signal_mask},
      {"mask_blocks", mask_blocks},
      {"foreign_fault", foreign_fault},
      {"default_fault_kills", default_fault_kills},
      {"cancelled_deferred", cancelled_deferred},
      {"cancelled_asynchronous", cancelled_asynchronous},
      {"thread_ends_in_handler", thread_ends_in_handler},
      {NULL, NULL},
  };
  return run_case(argc, argv, kCases);
}

// SPDX-License-Identifier: Apache-2.0
// A program that watches its own memory, by a userfaultfd or by a handler of SIGSEGV, lends the
// very same pages to a guest and to a device. What it would see on a real machine, it sees.
#define _GNU_SOURCE
#include <linux/types.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/syscall.h>

#include "abi/hmm/uapi.h"
#include "deny.h"
#include "lent.h"
#include "machine.h"

// Newer than some headers.
struct move_request {
  uint64_t to, from, size, mode;
  int64_t moved;
};
#define MOVE_PAGES _IOWR(UFFDIO, 0x05, struct move_request)
struct continue_request {
  struct uffdio_range range;
  uint64_t mode;
  int64_t mapped;
};
#define CONTINUE_PAGES _IOWR(UFFDIO, 0x07, struct continue_request)
enum { kMinorMode = 1 << 2, kMinorFlag = 1 << 2, kMinorOfSharedMemory = 1 << 10 };

static int uffd;
static uint8_t* window;
static int file = -1;

static uint8_t* private_window(void) {
  void* const at =
      mmap(NULL, kWindowBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  REQUIRE(at != MAP_FAILED);
  return at;
}

static void watch(uint64_t features, uint64_t mode) {
  uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
  REQUIRE(uffd >= 0);
  struct uffdio_api api = {.api = UFFD_API, .features = features};
  REQUIRE(ioctl(uffd, UFFDIO_API, &api) == 0);
  struct uffdio_register range = {.range = {(uintptr_t)window, kWindowBytes}, .mode = mode};
  REQUIRE(ioctl(uffd, UFFDIO_REGISTER, &range) == 0);
}

static struct uffd_msg next_fault(void) {
  struct uffd_msg message;
  struct pollfd ready = {.fd = uffd, .events = POLLIN};
  REQUIRE(poll(&ready, 1, 10000) == 1);
  REQUIRE(read(uffd, &message, sizeof message) == sizeof message);
  REQUIRE(message.event == UFFD_EVENT_PAGEFAULT);
  return message;
}
static uint64_t page_at(const struct uffd_msg* message) {
  return message->arg.pagefault.address & ~(uint64_t)(kPage - 1);
}
static void protect_page(uint64_t page, int on) {
  struct uffdio_writeprotect request = {.range = {page, kPage},
                                        .mode = on ? UFFDIO_WRITEPROTECT_MODE_WP : 0};
  REQUIRE(ioctl(uffd, UFFDIO_WRITEPROTECT, &request) == 0);
}

static void* touch_third_page(void* result) {
  *(uint64_t*)result = touch(3);
  return NULL;
}

// ---- its own userfaultfd -----------------------------------------------------------------------

// Pages come from the program, for the guest and for the program itself.
static void missing(void) {
  create_machine(&m, kTouch, sizeof kTouch);
  window = private_window();
  lend(window);
  REQUIRE(madvise(window, kWindowBytes, MADV_DONTNEED) == 0);
  watch(0, UFFDIO_REGISTER_MODE_MISSING);
  uint8_t bytes[kPage];
  memset(bytes, 0x66, sizeof bytes);
  for (unsigned round = 0; round < 20; round++) {
    uint64_t got = 0;
    pthread_t thread;
    REQUIRE(pthread_create(&thread, NULL, touch_third_page, &got) == 0);
    const struct uffd_msg message = next_fault();
    REQUIRE(page_at(&message) == (uintptr_t)window + 3 * kPage);
    struct uffdio_copy copy = {.dst = page_at(&message), .src = (uintptr_t)bytes, .len = kPage};
    REQUIRE(ioctl(uffd, UFFDIO_COPY, &copy) == 0);
    REQUIRE(pthread_join(thread, NULL) == 0);
    REQUIRE((got & 0xff) == 0x66);
    REQUIRE(madvise(window, kWindowBytes, MADV_DONTNEED) == 0);
  }
}

// The page is in the file already; the program says when it may be seen.
static void minor(void) {
  create_machine(&m, kTouch, sizeof kTouch);
  file = memfd_create("window", 0);
  REQUIRE(file >= 0 && ftruncate(file, kWindowBytes) == 0);
  window = mmap(NULL, kWindowBytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  uint8_t* const other = mmap(NULL, kWindowBytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  REQUIRE(window != MAP_FAILED && other != MAP_FAILED);
  lend(window);
  for (unsigned round = 0; round < 10; round++) {
    if (round == 0) watch(kMinorOfSharedMemory, kMinorMode);
    REQUIRE(madvise(window, kWindowBytes, MADV_DONTNEED) == 0);
    other[3 * kPage] = (uint8_t)(0x70 + round);
    uint64_t got = 0;
    pthread_t thread;
    REQUIRE(pthread_create(&thread, NULL, touch_third_page, &got) == 0);
    const struct uffd_msg message = next_fault();
    REQUIRE((message.arg.pagefault.flags & kMinorFlag) != 0);
    other[3 * kPage + 1] = 0x11;
    struct continue_request go_on = {.range = {page_at(&message), kPage}};
    REQUIRE(ioctl(uffd, CONTINUE_PAGES, &go_on) == 0);
    REQUIRE(pthread_join(thread, NULL) == 0);
    REQUIRE((got & 0xffff) == 0x1170 + round);
  }
}

// A page that the program protects is not stored to until it says so; and while the guest waits for
// that, the program may change other memory of the guest.
static void write_protected(void) {
  create_machine(&m, kTouch, sizeof kTouch);
  window = private_window();
  lend(window);
  watch(UFFD_FEATURE_PAGEFAULT_FLAG_WP, UFFDIO_REGISTER_MODE_WP);
  for (unsigned round = 0; round < 10; round++) {
    for (unsigned i = 0; i < 5; i++) REQUIRE((touch(i) & 0xff) == 0x40 + i);
    const uint64_t before = mapped();
    protect_page((uintptr_t)window + 3 * kPage, 1);
    REQUIRE(mapped() == before - 1);
    uint64_t got = 0;
    pthread_t thread;
    REQUIRE(pthread_create(&thread, NULL, touch_third_page, &got) == 0);
    const struct uffd_msg message = next_fault();
    REQUIRE(page_at(&message) == (uintptr_t)window + 3 * kPage);
    REQUIRE((message.arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WP) != 0);
    REQUIRE(mprotect(window + 4 * kPage, kPage, PROT_READ) == 0);
    REQUIRE(mprotect(window + 4 * kPage, kPage, PROT_READ | PROT_WRITE) == 0);
    protect_page(page_at(&message), 0);
    REQUIRE(pthread_join(thread, NULL) == 0);
    REQUIRE((got & 0xff) == 0x43);
  }
}

// Pages that the program moves away are not the guest's any more.
static void moved(void) {
  create_machine(&m, kTouch, sizeof kTouch);
  uint8_t* const lent = private_window();
  lend(lent);
  window = private_window();
  watch(0, UFFDIO_REGISTER_MODE_MISSING);
  struct move_request request = {
      .to = (uintptr_t)window, .from = (uintptr_t)lent, .size = 4 * kPage};
  errno = 0;
  if (ioctl(uffd, MOVE_PAGES, &request) == -1 && errno == EINVAL) return;  // before Linux 6.8
  REQUIRE(request.moved == 4 * kPage);
  REQUIRE(mapped() == mapped_before + kTouched - 4);
  REQUIRE(window[3 * kPage] == 0x43);
  REQUIRE(touch(3) == 0 && (touch(5) & 0xff) == 0x45);
  REQUIRE(window[3 * kPage] == 0x43);
}

static uint8_t bounce[kWindowBytes];
static int device = -1;
static void to_device(void) {
  if (device < 0) device = open("/dev/hmm_dmirror0", O_RDWR);
  REQUIRE(device >= 0);
  struct hmm_dmirror_cmd move = {
      .addr = (uintptr_t)window, .ptr = (uintptr_t)bounce, .npages = kTouched};
  // ENOENT: one of them stayed where it was; the others went.
  REQUIRE(ioctl(device, HMM_DMIRROR_MIGRATE_TO_DEV, &move) == 0 || errno == ENOENT);
}
static uint8_t on_device(unsigned page) {
  uint8_t said[kTouched];
  struct hmm_dmirror_cmd look = {
      .addr = (uintptr_t)window, .ptr = (uintptr_t)said, .npages = kTouched};
  REQUIRE(ioctl(device, HMM_DMIRROR_SNAPSHOT, &look) == 0);
  return (said[page] & 0xf0) == HMM_DMIRROR_PROT_DEV_PRIVATE_LOCAL;
}

// The range was the engine's to watch, and becomes the program's; then the other way round.
static void watched_by_both(void) {
  window = private_window();
  for (unsigned i = 0; i < kTouched; i++) memset(window + i * kPage, (int)(0x20 + i), kPage);
  to_device();
  REQUIRE(on_device(3));
  watch(0, UFFDIO_REGISTER_MODE_MISSING);
  for (unsigned i = 0; i < kTouched; i++) REQUIRE(window[i * kPage + 5] == 0x20 + i);
  to_device();
  for (unsigned i = 0; i < kTouched; i++) REQUIRE(window[i * kPage + 5] == 0x20 + i);
  REQUIRE(poll(&(struct pollfd){.fd = uffd, .events = POLLIN}, 1, 0) == 0);
  // What is really missing is still the program's to fill.
  REQUIRE(madvise(window, kPage, MADV_DONTNEED) == 0);
  REQUIRE(close(uffd) == 0);
  REQUIRE(window[0] == 0 && window[kPage] == 0x21);
}

static void* store_to_third_page(void* unused) {
  ((volatile uint8_t*)window)[3 * kPage] = 0x99;
  return unused;
}
// What the program protects stays protected: a device does not take the page, and its next store is
// the program's to answer. The others go and come.
static void protected_from_devices(void) {
  window = private_window();
  memset(window, 0x21, kWindowBytes);
  to_device();
  watch(UFFD_FEATURE_PAGEFAULT_FLAG_WP, UFFDIO_REGISTER_MODE_WP);
  for (unsigned round = 0; round < 3; round++) {
    for (unsigned i = 0; i < kTouched; i++) window[i * kPage + 1] = 1;
    protect_page((uintptr_t)window + 3 * kPage, 1);
    to_device();
    REQUIRE(on_device(2) && !on_device(3));
    for (unsigned i = 0; i < kTouched; i++) {
      REQUIRE(window[i * kPage + 5] == 0x21);
    }
    pthread_t thread;
    REQUIRE(pthread_create(&thread, NULL, store_to_third_page, NULL) == 0);
    const struct uffd_msg message = next_fault();
    REQUIRE((message.arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WP) != 0);
    REQUIRE(page_at(&message) == (uintptr_t)window + 3 * kPage);
    protect_page(page_at(&message), 0);
    REQUIRE(pthread_join(thread, NULL) == 0 && window[3 * kPage] == 0x99);
    to_device();
    REQUIRE(on_device(3) && window[3 * kPage] == 0x99);
    // Protected while it is away: it is back, and protected.
    window[4 * kPage] = window[3 * kPage] = 0x99;
    to_device();
    protect_page((uintptr_t)window + 3 * kPage, 1);
    REQUIRE(!on_device(3) && window[3 * kPage] == 0x99);
    protect_page((uintptr_t)window + 3 * kPage, 0);
  }
}

// ---- its own handler ---------------------------------------------------------------------------

static volatile sig_atomic_t barriers;
static volatile uintptr_t last_fault;
static char other_stack[64 << 10];

// A garbage collector's write barrier: remembers the page and opens it.
static void barrier(int signal, siginfo_t* info, void* context) {
  (void)context;
  const uintptr_t page = (uintptr_t)info->si_addr & ~(uintptr_t)(kPage - 1);
  const char here = 0;
  const int on_other = &here >= other_stack && &here < other_stack + sizeof other_stack;
  if (signal != SIGSEGV || info->si_code != SEGV_ACCERR || !on_other ||
      page - (uintptr_t)window >= kWindowBytes) {
    _exit(99);
  }
  last_fault = page;
  barriers++;
  if (mprotect((void*)page, kPage, PROT_READ | PROT_WRITE) != 0) _exit(98);
}
static void install_barrier(void) {
  const stack_t stack = {.ss_sp = other_stack, .ss_size = sizeof other_stack};
  REQUIRE(sigaltstack(&stack, NULL) == 0);
  struct sigaction action = {.sa_sigaction = barrier, .sa_flags = SA_SIGINFO | SA_ONSTACK};
  sigemptyset(&action.sa_mask);
  REQUIRE(sigaction(SIGSEGV, &action, NULL) == 0);
}

// A run time that installs its handlers without libc's sigaction.
static void collects_by_number(void) {
  struct {
    void (*handler)(int, siginfo_t*, void*);
    unsigned long flags;
    void* restorer;
    unsigned long mask;
  } action, old;
  install_barrier();
  window = private_window();
  create_machine(&m, kTouch, sizeof kTouch);
  REQUIRE(syscall(SYS_rt_sigaction, SIGSEGV, NULL, &action, 8) == 0);
  REQUIRE(action.handler == barrier && (action.flags & SA_SIGINFO) != 0);
  REFUSES(syscall(SYS_rt_sigaction, SIGSEGV, NULL, &old, 4), EINVAL);
  REFUSES(syscall(SYS_rt_sigaction, SIGSEGV, 8, NULL, 8), EFAULT);
  REFUSES(syscall(SYS_rt_sigaction, SIGKILL, &action, NULL, 8), EINVAL);
  REQUIRE(signal(SIGSEGV, SIG_DFL) != SIG_ERR);
  REQUIRE(syscall(SYS_rt_sigaction, SIGSEGV, &action, &old, 8) == 0);
  REQUIRE(old.handler == NULL);
  lend(window);
  REQUIRE(mprotect(window, kWindowBytes, PROT_READ) == 0);
  REFUSES(run_at(kWindow + 5 * kPage), EFAULT);
  REQUIRE(barriers == 0);
  window[2 * kPage] = 0x55;
  REQUIRE(barriers == 1 && touch(2) % 256 == 0x55);
}

static void collects_lent_memory(void) {
  install_barrier();  // before the first device is opened
  window = private_window();
  create_machine(&m, kTouch, sizeof kTouch);
  for (unsigned round = 0; round < 20; round++) {
    lend(window);
    REQUIRE(mprotect(window, kWindowBytes, PROT_READ) == 0);
    REQUIRE(mapped() == mapped_before);
    // The program's store goes through its barrier, a guest's is the kernel's EFAULT and no signal.
    const int before = barriers;
    window[2 * kPage] = 0x55;
    REQUIRE(barriers == before + 1 && last_fault == (uintptr_t)window + 2 * kPage);
    REQUIRE(touch(2) % 256 == 0x55);
    REFUSES(run_at(kWindow + 5 * kPage), EFAULT);
    REQUIRE(barriers == before + 1);
    // So is a buffer of the engine's.
    REFUSES(ioctl(m.vcpu, KVM_GET_REGS, window + 6 * kPage), EFAULT);
    REQUIRE(barriers == before + 1);
    ((volatile uint8_t*)window)[5 * kPage]++;
    REQUIRE(touch(5) % 256 == 0x46);
    REQUIRE(mprotect(window, kWindowBytes, PROT_READ | PROT_WRITE) == 0);
  }
}

// A page that a device has is no business of the barrier; one that the program protects is.
static void collects_device_memory(void) {
  window = private_window();
  for (unsigned i = 0; i < kTouched; i++) memset(window + i * kPage, (int)(0x20 + i), kPage);
  to_device();
  install_barrier();
  REQUIRE(on_device(4));
  for (unsigned i = 0; i < kTouched; i += 2) REQUIRE(window[i * kPage + 9] == 0x20 + i);
  window[kPage] = 0x99;
  REQUIRE(barriers == 0);
  REQUIRE(mprotect(window, kWindowBytes, PROT_READ) == 0);
  for (unsigned i = 0; i < kTouched; i++) REQUIRE(window[i * kPage + 9] == 0x20 + i);
  REQUIRE(barriers == 0);
  for (unsigned i = 0; i < kTouched; i++) window[i * kPage] = (uint8_t)i;
  REQUIRE(barriers == kTouched);
  to_device();
  for (unsigned i = 0; i < kTouched; i++) REQUIRE(window[i * kPage] == i);
  REQUIRE(barriers == kTouched);
}

static void collects_device_memory_without_userfaultfd(void) {
  REQUIRE(deny_userfaultfd() == 0);
  collects_device_memory();
}

int main(int argc, char** argv) {
  static const struct test_case kCases[] = {
      {"missing", missing},
      {"minor", minor},
      {"write_protected", write_protected},
      {"moved", moved},
      {"watched_by_both", watched_by_both},
      {"protected_from_devices", protected_from_devices},
      {"collects_lent_memory", collects_lent_memory},
      {"collects_by_number", collects_by_number},
      {"collects_device_memory", collects_device_memory},
      {"collects_device_memory_without_userfaultfd", collects_device_memory_without_userfaultfd},
      {NULL, NULL},
  };
  return run_case(argc, argv, kCases);
}

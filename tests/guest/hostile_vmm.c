// SPDX-License-Identifier: Apache-2.0
// The VMM of a secure guest that does to the guest's memory whatever a process may: each attack on
// a new guest. Held to: the guest reads its own bytes, zeros where the VMM took memory and slot
// away, or nothing any more (EHWPOISON, EFAULT); the VMM reads none of them, by no call, in no
// child, in no pipe, in no core dump. hostile_vmm_test.py runs it under stagetwo; with a name it
// makes that attack alone, with "denied" before it without userfaultfd.
#define _GNU_SOURCE
#include <linux/userfaultfd.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>

#include "tests/guest/hostile_guest.h"
#include "tests/shim/programs/deny.h"

// ---- taking addresses away ---------------------------------------------------------------------

static void unmap_a_secure_page(void) {
  munmap(page_at(2), kPage);
  guest_has_its_page(2);  // it is elsewhere
  fresh_at(page_at(2), kPage);
  sees_nothing(page_at(2), kPage);
  guest_has_all();
  sees_nothing(window, kBytes);
}
static void unmap_a_sealed_page(void) {
  seal(2);
  munmap(page_at(2), kPage);
  must(order(kLoad, 2 * kPage, 0) == EFAULT, "a load of what is nowhere");
  fresh_at(page_at(2), kPage);
  guest_has_ended(2);
}
static void map_over_everything(void) {
  seal(1);
  fresh_at(window, kBytes);
  for (unsigned page = 2; page < kPages; page++) guest_has_its_page(page);
  sees_nothing(window, kBytes);
  guest_has_ended(1);
}
static void discard(int advice, int is_lost) {
  seal(1);
  const int done = madvise(window, kBytes, advice);
  if (done != 0) must(errno == EINVAL || errno == EBUSY || errno == EPERM, "madvise");
  guest_has_its_page(2);
  sees_nothing(page_at(2), kPage);
  guest_has_its_page(2);
  if (is_lost && done == 0) {
    guest_has_ended(1);
  } else {
    guest_has_all();
  }
}
static void dontneed(void) {
  discard(MADV_DONTNEED, 1);
}
static void madv_free(void) {
  discard(MADV_FREE, 0);
}
static void pageout(void) {
  discard(MADV_PAGEOUT, 0);
}
static void cold(void) {
  discard(MADV_COLD, 0);
}
static void removed(void) {
  discard(MADV_REMOVE, 0);
}
static void collapse(void) {
  discard(25 /* MADV_COLLAPSE */, 0);
}
static void merge(void) {
  discard(MADV_MERGEABLE, 0);
}
static void populate(void) {
  discard(23 /* MADV_POPULATE_WRITE */, 0);
}
static void lock(void) {
  must(mlock(window, kBytes) == 0, "mlock");
  sees_nothing(window, kBytes);
  guest_has_all();
  must(munlock(window, kBytes) == 0, "munlock");
  guest_has_all();
}
// What is the engine's is not locked with it. A process that may not lock so much is refused.
static void lock_all(void) {
  for (int on_fault = 0; on_fault <= MCL_ONFAULT; on_fault += MCL_ONFAULT) {
    const int locked = mlockall(MCL_CURRENT | MCL_FUTURE | on_fault);
    must(locked == 0 || errno == ENOMEM || errno == EPERM, "mlockall");
    sees_nothing(window, kBytes);
    guest_has_all();
    end();
    begin();
    guest_has_all();
    sees_nothing(window, kBytes);
    guest_has_all();
    must(munlockall() == 0, "munlockall");
    guest_has_all();
  }
}
static void move_pages_away(int flags) {
  seal(1);
  char* const to = map_at(NULL, 0);
  must(mremap(page_at(1), 2 * kPage, 2 * kPage, MREMAP_MAYMOVE | MREMAP_FIXED | flags, to) == to,
       "mremap");
  sees_nothing(to, 2 * kPage);
  guest_has_its_page(4);
  if (flags == 0) fresh_at(page_at(1), 2 * kPage);
  sees_nothing(window, kBytes);
  // Where they were the pages are not. Of the one that was sealed the guest finds another's bytes.
  guest_has_ended(1);
  sees_nothing(to, 2 * kPage);
}
static void remap(void) {
  move_pages_away(0);
}
static void remap_dontunmap(void) {
  move_pages_away(4 /* MREMAP_DONTUNMAP */);
}
static void remap_there_and_back(void) {
  seal(1);
  char* const to = map_at(NULL, 0);
  must(mremap(page_at(1), 2 * kPage, 2 * kPage, MREMAP_MAYMOVE | MREMAP_FIXED, to) == to, "mremap");
  must(mremap(to, 2 * kPage, 2 * kPage, MREMAP_MAYMOVE | MREMAP_FIXED, page_at(1)) == page_at(1),
       "mremap back");
  sees_nothing(window, kBytes);
  guest_has_all();
}
static void exchange_addresses(void) {
  char* const to = map_at(NULL, 0);
  seal(1);
  seal(2);
  must(mremap(page_at(1), kPage, kPage, MREMAP_MAYMOVE | MREMAP_FIXED, to) == to, "mremap 1");
  must(mremap(page_at(2), kPage, kPage, MREMAP_MAYMOVE | MREMAP_FIXED, page_at(1)) == page_at(1),
       "mremap 2");
  must(mremap(to, kPage, kPage, MREMAP_MAYMOVE | MREMAP_FIXED, page_at(2)) == page_at(2),
       "mremap 3");
  guest_has_ended(2);
}
static void rights(int prot) {
  seal(1);
  for (unsigned page = 1; page <= 2; page++) {
    must(mprotect(window, kBytes, prot) == 0, "mprotect");
    // A sealed page may be where the guest cannot have it from; it is not lost.
    const int loaded = order(kLoad, page * kPage + 8, 0);
    must(loaded == 0 || loaded == EFAULT, "a load meanwhile");
    must(mprotect(window, kBytes, PROT_READ | PROT_WRITE) == 0, "mprotect back");
    if (loaded != 0) must(go_on() == 0, "the load, afterwards");
    must(said == text(page, 2), "what it reads");
  }
  guest_has_all();
  sees_nothing(window, kBytes);
  guest_has_all();
}
static void no_rights(void) {
  rights(PROT_NONE);
}
static void read_only(void) {
  rights(PROT_READ);
}

// ---- system calls and other processes ----------------------------------------------------------

static void through_a_pipe(void) {
  int ends[2];
  static char got[kPage];
  must(pipe(ends) == 0, "pipe");
  must(write(ends[1], page_at(2), kPage) == kPage, "write");
  must(read(ends[0], got, kPage) == kPage, "read");
  sees_nothing(got, kPage);
  guest_has_all();
  // By reference: the frame is in the pipe while the guest has its page back.
  const struct iovec piece = {page_at(3), kPage};
  const ssize_t spliced = vmsplice(ends[1], &piece, 1, 0);
  guest_has_its_page(4);
  if (spliced == kPage) {
    must(read(ends[0], got, kPage) == kPage, "read of what was spliced");
    sees_nothing(got, kPage);
  }
  guest_has_all();
  must(write(ends[1], got, 16) == 16 && read(ends[0], page_at(5), 16) == 16, "read into a page");
  close(ends[0]);
  close(ends[1]);
  guest_has_ended(5);
}
static void by_its_own_mem_file(void) {
  static char got[kPage];
  const int mem = open("/proc/self/mem", O_RDWR | O_CLOEXEC);
  must(mem >= 0, "/proc/self/mem");
  must(pread(mem, got, kPage, (off_t)page_at(2)) == kPage, "pread");
  sees_nothing(got, kPage);
  guest_has_all();
  must(pwrite(mem, got, 8, (off_t)page_at(6)) == 8, "pwrite");
  close(mem);
  guest_has_ended(6);
}
static int in_child(int (*what)(pid_t vmm)) {
  int go[2];
  must(pipe(go) == 0, "pipe");
  const pid_t vmm = getpid(), child = fork();
  must(child >= 0, "fork");
  if (child == 0) {
    char byte;
    _exit(read(go[0], &byte, 1) == 1 ? what(vmm) : 9);
  }
  prctl(PR_SET_PTRACER, child, 0, 0, 0);
  must(write(go[1], "x", 1) == 1, "the pipe");
  int status = -1;
  must(waitpid(child, &status, 0) == child, "waitpid");
  close(go[0]);
  close(go[1]);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 99;
}
static int reads_vmm(pid_t vmm) {
  static char got[kPage];
  const struct iovec to = {got, kPage}, from = {page_at(3), kPage};
  if (process_vm_readv(vmm, &to, 1, &from, 1, 0) != kPage) return 7;
  return clear_words(got, kPage) == 0 ? 0 : 1;
}
static int writes_vmm(pid_t vmm) {
  static char bytes[64];
  const struct iovec from = {bytes, 64}, to = {page_at(3) + 100, 64};
  return process_vm_writev(vmm, &from, 1, &to, 1, 0) == 64 ? 0 : 7;
}
static void by_another_process(void) {
  const int read_it = in_child(reads_vmm);
  must(read_it == 0 || read_it == 7, "process_vm_readv");
  guest_has_all();
  const int wrote_it = in_child(writes_vmm);
  must(wrote_it == 0 || wrote_it == 7, "process_vm_writev");
  if (wrote_it == 0) guest_has_ended(3);
}
static int looks(pid_t vmm) {
  (void)vmm;
  if (clear_words(window, kBytes) != 0) return 1;
  memset(window, 0, kBytes);  // its own copy
  struct kvm_regs regs;
  if (ioctl(vcpu, KVM_GET_REGS, &regs) == 0 || errno != EIO) return 2;
  return ioctl(vm, KVM_PPC_SVM_OFF, 0) == 0 || errno != EIO ? 3 : 0;
}
static void fork_twice(void) {
  must(in_child(looks) == 0, "the child");
  guest_has_all();
  must(order(kStore, 8, text(0, 2)) == 0, "the guest's store");
  must(in_child(looks) == 0, "the second child");
  guest_has_all();
}
static void fork_without(void) {
  must(madvise(window, 4 * kPage, MADV_DONTFORK) == 0, "MADV_DONTFORK");
  must(madvise(page_at(4), 4 * kPage, MADV_WIPEONFORK) == 0, "MADV_WIPEONFORK");
  const pid_t child = fork();
  must(child >= 0, "fork");
  if (child == 0) _exit(clear_words(page_at(4), 4 * kPage) == 0 ? 0 : 1);
  int status = -1;
  must(waitpid(child, &status, 0) == child && status == 0, "the child");
  guest_has_all();
  sees_nothing(window, kBytes);
  guest_has_all();
}

// ---- the client's own userfaultfd --------------------------------------------------------------

static void own_userfaultfd(void) {
  const int uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
  if (uffd < 0) return;
  struct uffdio_api api = {.api = UFFD_API};
  must(ioctl(uffd, UFFDIO_API, &api) == 0, "UFFDIO_API");
  struct uffdio_register span = {.range = {(uintptr_t)window, kBytes},
                                 .mode = UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP};
  if (ioctl(uffd, UFFDIO_REGISTER, &span) == 0) {
    guest_has_all();
    static char noise[kPage];
    struct uffdio_copy copy = {.dst = (uintptr_t)page_at(2), .src = (uintptr_t)noise, .len = kPage};
    const int copied = ioctl(uffd, UFFDIO_COPY, &copy) == 0;
    // Where the VMM puts a page of its own in the stand-in's place the guest's is still the
    // guest's.
    guest_has_its_page(2);
    if (copied) sees_nothing(page_at(2), kPage);
    guest_has_its_page(3);
    must(ioctl(uffd, UFFDIO_UNREGISTER, &span.range) == 0, "UFFDIO_UNREGISTER");
  }
  close(uffd);
  sees_nothing(page_at(4), kPage);
  guest_has_its_page(4);
}

// ---- sealed bytes ------------------------------------------------------------------------------

static void exchange(void) {
  static char first[kPage];
  memcpy(first, page_at(1), kPage);
  memcpy(page_at(1), page_at(2), kPage);
  memcpy(page_at(2), first, kPage);
  guest_has_ended(1);
}
static void replay(void) {
  static char old[kPage];
  memcpy(old, page_at(1), kPage);
  guest_has_its_page(1);
  sees_nothing(page_at(1), kPage);
  must(memcmp(old, page_at(1), kPage) != 0, "another sealing of the same bytes");
  memcpy(page_at(1), old, kPage);
  guest_has_ended(1);
}
static void replay_of_a_former_life(void) {
  static char old[kPage];
  memcpy(old, page_at(1), kPage);
  must(ioctl(vm, KVM_PPC_SVM_OFF, 0) == 0, "KVM_PPC_SVM_OFF");
  must(clear_words(window, kBytes) == 0 && window[0] == 0, "zeros");
  end();
  begin();
  seal(1);
  memcpy(page_at(1), old, kPage);
  guest_has_ended(1);
}
static void code_too(void) {
  struct kvm_regs regs;
  must(ioctl(vcpu, KVM_GET_REGS, &regs) == 0, "KVM_GET_REGS");
  struct kvm_translation where = {.linear_address = kCode};
  must(ioctl(vcpu, KVM_TRANSLATE, &where) == 0, "KVM_TRANSLATE");
  guest_has_all();
}

// ---- slots and the guest's life ----------------------------------------------------------------

static atomic_int over;
static atomic_uint attacks;

static void* takes_the_slot_away(void* unused) {
  (void)unused;
  while (!over) {
    slot(1, kWindow, 0, window);
    sees_nothing(window, kBytes);
    slot(1, kWindow, kBytes, window);
    atomic_fetch_add(&attacks, 1);
    usleep(200);
  }
  return NULL;
}
static void* resets(void* unused) {
  (void)unused;
  while (!over) {
    if (ioctl(vm, KVM_PPC_SVM_OFF, 0) != 0) must(errno == EBUSY, "KVM_PPC_SVM_OFF");
    sees_nothing(window, kBytes);
    atomic_fetch_add(&attacks, 1);
    usleep(50);
  }
  return NULL;
}
static pthread_t runner;
static void* signals(void* unused) {
  (void)unused;
  while (!over) {
    pthread_kill(runner, SIGUSR1);
    sees_nothing(page_at(3), kPage);
    atomic_fetch_add(&attacks, 1);
    usleep(20);
  }
  return NULL;
}
static void nothing(int number) {
  (void)number;
}

// While `attack` goes on the guest stores and loads.
static void beside(void* (*attack)(void*), int is_same_guest) {
  pthread_t thread;
  over = 0;
  attacks = 0;
  runner = pthread_self();
  signal(SIGUSR1, nothing);
  must(pthread_create(&thread, NULL, attack, NULL) == 0, "a thread");
  for (unsigned turn = 0; turn < 400 || (attacks < 20 && turn < 100000); turn++) {
    const uint32_t at = turn % kPages * kPage + 12, word = turn * 0x01000193;
    if (!is_same_guest) {
      // Reset, its memory and its program are gone: it is done.
      if (order(kLoad, at, 0) != 0) break;
      continue;
    }
    must(order(kStore, at, word) == 0, "a store");
    must(order(kLoad, at, 0) == 0, "a load");
    if (attack == signals) must(said == word, "what the guest wrote");
  }
  over = 1;
  must(pthread_join(thread, NULL) == 0, "the thread");
  if (attack == signals) sees_nothing(window, kBytes);
}
static void slot_goes_in_the_middle(void) {
  beside(takes_the_slot_away, 1);
  slot(1, kWindow, 0, window);
  sees_nothing(window, kBytes);
  must(window[0] == 0 && memcmp(window, window + 1, kBytes - 1) == 0, "zeros");
}
static void signals_in_the_middle(void) {
  beside(signals, 1);
}
static void slot_moves(void) {
  slot(1, kWindow, 0, window);
  char* const other = map_at(NULL, 0);
  memset(other, 0x5a, kBytes);
  slot(1, kWindow, kBytes, other);
  must(order(kLoad, kPage, 0) == 0 && said == 0, "memory that was plugged");
  must(order(kStore, kPage, 0xc0de1000) == 0, "a store");
  sees_nothing(other, kBytes);
  struct kvm_userspace_memory_region region = {.slot = 1,
                                               .guest_phys_addr = kWindow + 4 * kPage,
                                               .memory_size = kBytes,
                                               .userspace_addr = (uint64_t)other};
  must(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region) == 0, "moving a slot");
  sees_nothing(other, kBytes);
  must(order(kLoad, 5 * kPage, 0) == 0 && said == 0, "what was moved is zeros");
}
static void* counts(void* unused) {
  (void)unused;
  static const uint32_t words[3] = {kCount, 0, 0};
  for (unsigned given = 0; !over;) {
    if (ioctl(vcpu, KVM_RUN, 0) != 0) continue;
    if (run->exit_reason != KVM_EXIT_IO || run->io.direction == KVM_EXIT_IO_OUT) break;
    memcpy((char*)run + run->io.data_offset, &words[given++ % 3], 4);
  }
  return NULL;
}
// SVM_OFF is EBUSY while the vCPU is in KVM_RUN; thrown out by a signal it is reset.
static void reset_beside_a_running_vcpu(void) {
  must(order(kShare, kWindowFrame, 1) == 0 && said == 0, "UV_SHARE_PAGE");
  pthread_t thread;
  over = 0;
  signal(SIGUSR1, nothing);
  must(pthread_create(&thread, NULL, counts, NULL) == 0, "a thread");
  const time_t start = time(NULL);
  while (*(volatile uint32_t*)window < 1000) must(time(NULL) - start < 20, "the guest counts");
  must(ioctl(vm, KVM_PPC_SVM_OFF, 0) != 0 && errno == EBUSY, "EBUSY");
  over = 1;
  for (int done = -1; done != 0;) {
    pthread_kill(thread, SIGUSR1);
    done = ioctl(vm, KVM_PPC_SVM_OFF, 0);
    if (done != 0) must(errno == EBUSY, "KVM_PPC_SVM_OFF");
  }
  must(pthread_join(thread, NULL) == 0, "the thread");
  must(window[0] == 0 && memcmp(window, window + 1, kBytes - 1) == 0, "zeros");
}
static void resets_in_the_middle(void) {
  beside(resets, 0);
  sees_nothing(window, kBytes);  // a guest without a program may have written noise
}
static void closes_all(void) {
  seal(1);
  end();
  sees_nothing(window, kBytes);
  must(window[0] == 0 && memcmp(window, window + 1, kBytes - 1) == 0, "zeros");
  vm = vcpu = -1;
}

static const struct {
  const char* name;
  void (*run)(void);
} kAttacks[] = {
    {"unmap_a_secure_page", unmap_a_secure_page},
    {"unmap_a_sealed_page", unmap_a_sealed_page},
    {"map_over_everything", map_over_everything},
    {"dontneed", dontneed},
    {"free", madv_free},
    {"pageout", pageout},
    {"cold", cold},
    {"removed", removed},
    {"collapse", collapse},
    {"merge", merge},
    {"populate", populate},
    {"lock", lock},
    {"lock_all", lock_all},
    {"remap", remap},
    {"remap_dontunmap", remap_dontunmap},
    {"remap_there_and_back", remap_there_and_back},
    {"exchange_addresses", exchange_addresses},
    {"no_rights", no_rights},
    {"read_only", read_only},
    {"through_a_pipe", through_a_pipe},
    {"by_its_own_mem_file", by_its_own_mem_file},
    {"by_another_process", by_another_process},
    {"fork_twice", fork_twice},
    {"fork_without", fork_without},
    {"own_userfaultfd", own_userfaultfd},
    {"exchange", exchange},
    {"replay", replay},
    {"replay_of_a_former_life", replay_of_a_former_life},
    {"code_too", code_too},
    {"slot_goes_in_the_middle", slot_goes_in_the_middle},
    {"slot_moves", slot_moves},
    {"signals_in_the_middle", signals_in_the_middle},
    {"reset_beside_a_running_vcpu", reset_beside_a_running_vcpu},
    {"resets_in_the_middle", resets_in_the_middle},
    {"closes_all", closes_all},
};

// Dies where it stands, some pages sealed, some used since; or before the guest was secure: then
// the dump has its bytes.
// Page 3 is not the text any more.
static void* runs_on(void* none) {
  order(kCount, kWindow + 3 * kPage, 0);
  return none;
}
static void die(int is_secure, int is_running) {
  is_secure ? begin() : begin_normal();
  if (is_secure) {
    seal(1);
    seal(2);
    guest_has_its_page(2);
  }
  if (is_running) {
    if (is_secure) must(order(kShare, kWindowFrame + 3, 1) == 0 && said == 0, "UV_SHARE_PAGE");
    volatile uint32_t* const count = (volatile uint32_t*)page_at(3);
    count[0] = count[1] = 0;
    pthread_t thread;
    must(pthread_create(&thread, NULL, runs_on, NULL) == 0, "a thread");
    while (*count < 1000) sched_yield();
  }
  printf("dies\n");
  abort();
}

int main(int argc, char** argv) {
  unsigned made = 0;
  setvbuf(stdout, NULL, _IOLBF, 0);
  if (argc > 1 && strcmp(argv[1], "denied") == 0) {
    must(deny_userfaultfd() == 0, "a seccomp filter");
    argc--;
    argv++;
  }
  if (argc > 1 && strncmp(argv[1], "die", 3) == 0) {
    die(strstr(argv[1], "secure") != NULL, strstr(argv[1], "running") != NULL);
  }
  for (unsigned i = 0; i < sizeof kAttacks / sizeof kAttacks[0]; i++) {
    now = kAttacks[i].name;
    if (argc > 1 && strcmp(argv[1], now) != 0) continue;
    begin();
    kAttacks[i].run();
    if (vm >= 0) end();
    made++;
  }
  printf("%u attacks, nothing in clear\n", made);
  return made != 0 ? 0 : 1;
}

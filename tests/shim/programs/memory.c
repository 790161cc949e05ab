// SPDX-License-Identifier: Apache-2.0
// Guest memory is the program's own memory: what the program does to it, the guest sees.
#define _GNU_SOURCE
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/syscall.h>

#include "machine.h"

static struct machine m;

static volatile uint64_t* word(uint64_t gpa) {
  return (volatile uint64_t*)(m.memory + gpa);
}

static uint64_t rax(void) {
  struct kvm_regs r;
  REQUIRE(ioctl(m.vcpu, KVM_GET_REGS, &r) == 0);
  return r.rax;
}

// mov 0x200000, %rax; out %al, $0x10; jmp back
static const uint8_t kReadLoop[] = {0x48, 0x8b, 0x04, 0x25, 0x00, 0x00,
                                    0x20, 0x00, 0xe6, 0x10, 0xeb, 0xf4};

static uint64_t guest_reads(void) {
  REQUIRE(run_to_exit(&m) == KVM_EXIT_IO);
  return rax();
}

static void discard_and_remap(void) {
  create_machine(&m, kReadLoop, sizeof kReadLoop);
  *word(kData) = 42;
  REQUIRE(guest_reads() == 42);
  *word(kData) = 43;
  REQUIRE(guest_reads() == 43);
  REQUIRE(madvise(m.memory + kData, kPage, MADV_DONTNEED) == 0);
  REQUIRE(guest_reads() == 0);
  // Another page at the same address.
  REQUIRE(munmap(m.memory + kData, kPage) == 0);
  REQUIRE(mmap(m.memory + kData, kPage, PROT_READ | PROT_WRITE,
               MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == m.memory + kData);
  *word(kData) = 99;
  REQUIRE(guest_reads() == 99);
  // Nothing at all: the kernel's EFAULT.
  REQUIRE(munmap(m.memory + kData, kPage) == 0);
  int answer;
  do {
    answer = ioctl(m.vcpu, KVM_RUN, 0);
  } while (answer == -1 && errno == EINTR);
  REQUIRE(answer == -1 && errno == EFAULT);
}

static void move_away(void) {
  create_machine(&m, kReadLoop, sizeof kReadLoop);
  *word(kData) = 7;
  REQUIRE(guest_reads() == 7);
  void* moved = mremap(m.memory + kData, kPage, kPage, MREMAP_MAYMOVE | MREMAP_FIXED,
                       mmap(NULL, kPage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  REQUIRE(moved != MAP_FAILED && *(uint64_t*)moved == 7);
  REFUSES(ioctl(m.vcpu, KVM_RUN, 0), EFAULT);
}

static atomic_int stop;

static void* write_for_ever(void* unused) {
  for (uint64_t i = 1; !stop; i++) *word(kData) = i;
  return unused;
}

static void threads_write(void) {
  create_machine(&m, kReadLoop, sizeof kReadLoop);
  pthread_t writer;
  REQUIRE(pthread_create(&writer, NULL, write_for_ever, NULL) == 0);
  uint64_t last = 0, changes = 0;
  for (unsigned i = 0; i < 200000 && changes < 100; i++) {
    const uint64_t now = guest_reads();
    REQUIRE(now >= last);  // never an older value
    changes += now != last;
    last = now;
  }
  stop = 1;
  pthread_join(writer, NULL);
  REQUIRE(changes >= 2);
}

// The page of the run structure: every mapping the kernel gives, and those it refuses.
static void run_page_mappings(void) {
  create_machine(&m, kHalt, sizeof kHalt);
  REQUIRE(mmap(NULL, kPage, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_SHARED, m.vcpu, 0) ==
              MAP_FAILED &&
          errno == EPERM);
  struct kvm_run* second = mmap(NULL, kPage, PROT_READ, MAP_SHARED, m.vcpu, 0);
  REQUIRE(second != MAP_FAILED);
  REQUIRE(run_to_exit(&m) == KVM_EXIT_HLT);
  REQUIRE(second->exit_reason == KVM_EXIT_HLT);
  REQUIRE(munmap(second, kPage) == 0);
  REQUIRE(mmap(NULL, kPage, PROT_READ, MAP_SHARED, m.vcpu, 1) == MAP_FAILED && errno == EINVAL);
}

// inc %rcx; mov %rcx, 0x200000; jmp back
static const uint8_t kWriteLoop[] = {0x48, 0xff, 0xc1, 0x48, 0x89, 0x0c, 0x25,
                                     0x00, 0x00, 0x20, 0x00, 0xeb, 0xf3};

static void* run_guest(void* unused) {
  while (!stop) {
    REQUIRE(ioctl(m.vcpu, KVM_RUN, 0) == 0 || errno == EINTR);
    if (m.run->exit_reason == KVM_EXIT_HLT) break;
  }
  return unused;
}

// What the guest wrote after a log was fetched is in a later log: no page is lost between.
static void dirty_log_loses_nothing(void) {
  enum { kRounds = 2000, kPages = kMemorySize / kPage };
  create_machine(&m, kWriteLoop, sizeof kWriteLoop);
  REQUIRE(set_slot(m.vm, 0, 0, m.memory, kMemorySize, KVM_MEM_LOG_DIRTY_PAGES) == 0);
  pthread_t runner;
  REQUIRE(pthread_create(&runner, NULL, run_guest, NULL) == 0);
  uint64_t bitmap[kPages / 64], seen = 0;
  unsigned unlogged = 0;
  struct kvm_dirty_log log = {.slot = 0, .dirty_bitmap = bitmap};
  for (unsigned i = 0; i < kRounds; i++) {
    REQUIRE(ioctl(m.vm, KVM_GET_DIRTY_LOG, &log) == 0);
    const uint64_t now = *word(kData);
    const int dirty = (int)(bitmap[kData / kPage / 64] >> (kData / kPage % 64) & 1);
    // A change that two logs in a row do not show was lost.
    unlogged = now != seen && !dirty ? unlogged + 1 : 0;
    REQUIRE(unlogged < 2);
    seen = now;
  }
  stop = 1;
  memcpy(m.memory + kCode, kHalt, sizeof kHalt);
  m.run->immediate_exit = 1;
  pthread_join(runner, NULL);
}

// When the call that deletes a slot has returned, no vCPU uses it.
static void deletion_is_synchronous(void) {
  create_machine(&m, kWriteLoop, sizeof kWriteLoop);
  // The data in a slot of its own.
  REQUIRE(set_slot(m.vm, 0, 0, m.memory, 0, 0) == 0);
  REQUIRE(set_slot(m.vm, 0, 0, m.memory, kData, 0) == 0);
  REQUIRE(set_slot(m.vm, 1, kData, m.memory + kData, kPage, 0) == 0);
  pthread_t runner;
  REQUIRE(pthread_create(&runner, NULL, run_guest, NULL) == 0);
  for (unsigned i = 0; i < 200; i++) {
    usleep(200);
    REQUIRE(set_slot(m.vm, 1, kData, m.memory + kData, 0, 0) == 0);
    const uint64_t at_deletion = *word(kData);
    usleep(100);
    REQUIRE(*word(kData) == at_deletion);
    REQUIRE(set_slot(m.vm, 1, kData, m.memory + kData, kPage, 0) == 0);
  }
  stop = 1;
  memcpy(m.memory + kCode, kHalt, sizeof kHalt);
  pthread_join(runner, NULL);
}

// The guest's addresses may be numbers that mean something in the program, too. What the guest
// reads is its own copy, poisoned here to differ from the program's.
static uint64_t poisoned = 0x1111111111111111;

static void own_copy_of_addresses(void) {
  // The page with `poisoned` at the same virtual address in the guest, on another physical page.
  const uint64_t va = (uint64_t)(uintptr_t)&poisoned;
  REQUIRE(va < (UINT64_C(1) << 30) || (va >> 47) == 0);
  enum { kPml4Copy = 0x5000, kTables = 0x6000, kTarget = 0x210000 };
  uint8_t code[16] = {0x48, 0xa1};  // movabs va, %rax
  memcpy(code + 2, &va, 8);
  code[10] = 0xf4;
  create_machine(&m, code, 11);
  // 4 KiB mapping of that one address; code and stack stay identity mapped unless it is below 1
  // GiB.
  const unsigned i4 = va >> 39 & 511, i3 = va >> 30 & 511, i2 = va >> 21 & 511, i1 = va >> 12 & 511;
  memcpy(m.memory + kPml4Copy, m.memory + kPml4, kPage);
  const int low = i4 == 0 && i3 == 0;
  const unsigned pdpt = i4 == 0 ? kPdpt : kTables;
  const unsigned pd = low ? kPd : kTables + kPage;
  if (i4 != 0) set_entry(&m, kPml4, i4, pdpt | 3);
  if (!low) set_entry(&m, pdpt, i3, pd | 3);
  set_entry(&m, pd, i2, (kTables + 2 * kPage) | 3);
  set_entry(&m, kTables + 2 * kPage, i1, kTarget | 3);
  *(uint64_t*)(m.memory + kTarget + (va & (kPage - 1))) = 0x2222222222222222;
  REQUIRE(run_to_exit(&m) == KVM_EXIT_HLT);
  REQUIRE(rax() == 0x2222222222222222);
  REQUIRE(poisoned == 0x1111111111111111);
}

// The page a vCPU waits for comes from a userfaultfd, whatever this user may ask the kernel for.
static void* resolve(void* argument) {
  const int uffd = *(int*)argument;
  struct uffd_msg message;
  struct pollfd ready = {.fd = uffd, .events = POLLIN};
  REQUIRE(poll(&ready, 1, 10000) == 1 && read(uffd, &message, sizeof message) == sizeof message);
  REQUIRE(message.event == UFFD_EVENT_PAGEFAULT);
  uint64_t* page = mmap(NULL, kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  REQUIRE(page != MAP_FAILED);
  *page = 77;
  struct uffdio_copy copy = {.dst = message.arg.pagefault.address & ~(uint64_t)(kPage - 1),
                             .src = (uintptr_t)page,
                             .len = kPage};
  REQUIRE(ioctl(uffd, UFFDIO_COPY, &copy) == 0);
  return NULL;
}

static void userfaultfd_serves_vcpus(void) {
  const long before = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
  REQUIRE(before >= 0 || errno == EPERM);
  create_machine(&m, kReadLoop, sizeof kReadLoop);
  int uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
  REQUIRE(uffd >= 0);
  struct uffdio_api api = {.api = UFFD_API};
  REQUIRE(ioctl(uffd, UFFDIO_API, &api) == 0);
  REQUIRE(madvise(m.memory + kData, kPage, MADV_DONTNEED) == 0);
  struct uffdio_register range = {.range = {.start = (uintptr_t)(m.memory + kData), .len = kPage},
                                  .mode = UFFDIO_REGISTER_MODE_MISSING};
  REQUIRE(ioctl(uffd, UFFDIO_REGISTER, &range) == 0);
  pthread_t resolver;
  REQUIRE(pthread_create(&resolver, NULL, resolve, &uffd) == 0);
  REQUIRE(guest_reads() == 77);
  REQUIRE(pthread_join(resolver, NULL) == 0);
}

int main(int argc, char** argv) {
  static const struct test_case kCases[] = {
      {"discard_and_remap", discard_and_remap},
      {"move_away", move_away},
      {"threads_write", threads_write},
      {"run_page_mappings", run_page_mappings},
      {"dirty_log_loses_nothing", dirty_log_loses_nothing},
      {"deletion_is_synchronous", deletion_is_synchronous},
      {"own_copy_of_addresses", own_copy_of_addresses},
      {"userfaultfd_serves_vcpus", userfaultfd_serves_vcpus},
      {NULL, NULL},
  };
  return run_case(argc, argv, kCases);
}

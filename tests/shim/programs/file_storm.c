// SPDX-License-Identifier: Apache-2.0
// Everything that befalls a guest_memfd, at once: a guest uses its pages while threads punch and
// allocate, bind and unbind, close the file and make another, and children hold it, punch it and
// become other programs with it. Nobody waits for anybody but by the calls themselves. At the end
// nothing is left of any of the files.
#define _GNU_SOURCE
#include "abi/kvm/uapi.h"
//
#include <pthread.h>
#include <sched.h>
#include <time.h>

#include "guest_file.h"

enum { kPrivate = 0x800000 };

static struct machine machine;
static volatile int stop;
static volatile int current = -1;  // the file's number; another's, or nobody's, a moment later
static volatile unsigned long turns[5];

// One of the answers that the order of events allows.
static int is_one_of(int answer, const int* allowed) {
  if (answer >= 0) return 1;
  for (; *allowed != 0; allowed++) {
    if (errno == *allowed) return 1;
  }
  return 0;
}
#define ANSWERS(call, ...)                         \
  do {                                             \
    static const int allowed[] = {__VA_ARGS__, 0}; \
    errno = 0;                                     \
    REQUIRE(is_one_of((int)(call), allowed));      \
  } while (0)

static int set_half(uint64_t pages) {
  struct kvm_userspace_memory_region2 both = {.slot = 1,
                                              .flags = pages != 0 ? KVM_MEM_GUEST_MEMFD : 0,
                                              .guest_phys_addr = kPrivate,
                                              .memory_size = pages * kPage,
                                              .userspace_addr = (uintptr_t)machine.memory,
                                              .guest_memfd = (uint32_t)current};
  return ioctl(machine.vm, KVM_SET_USER_MEMORY_REGION2, &both);
}

static void* punch(void* unused) {
  for (; !stop; turns[0]++) {
    ANSWERS(fallocate(current, kPunch, 0, kPages * kPage), EBADF);
    ANSWERS(fallocate(current, FALLOC_FL_KEEP_SIZE, 0, kPages * kPage), EBADF, EINTR);
  }
  return unused;
}

static void* bind_and_unbind(void* unused) {
  for (; !stop; turns[1]++) {
    ANSWERS(set_half(kPages), EBADF, EINVAL);
    ANSWERS(set_half(0), EINVAL);
  }
  return unused;
}

static void* close_and_make(void* unused) {
  for (; !stop; turns[2]++) {
    const int old = current, copy = turns[2] % 3 == 0 ? dup(old) : -1;
    const int next = create(kPages * kPage, 0);
    REQUIRE(next >= 0);
    current = next;
    REQUIRE(close(old) == 0);
    if (copy >= 0) REQUIRE(close(copy) == 0);
  }
  return unused;
}

static void* have_children(void* unused) {
  for (; !stop; turns[3]++) {
    const pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0) {
      const int mine = current;
      ANSWERS(fallocate(mine, kPunch, 0, kPage), EBADF);
      ANSWERS(ioctl(machine.vm, KVM_CHECK_EXTENSION, KVM_CAP_USER_MEMORY), EIO);
      if (turns[3] % 2 == 0) execl("/proc/self/exe", "file_storm", "another", (char*)NULL);
      _exit(0);
    }
    ends_well(child);
  }
  return unused;
}

static void* run_guest(void* unused) {
  for (; !stop; turns[4]++) {
    errno = 0;
    const int answer = ioctl(machine.vcpu, KVM_RUN, 0);
    const unsigned reason = machine.run->exit_reason;
    // Halted after its rounds, or there were no pages to be had.
    REQUIRE((answer == 0 && reason == KVM_EXIT_HLT) ||
            (answer == -1 && (errno == EINTR || (errno == EFAULT && reason == 39))));
    set_rip(&machine, kCode);
  }
  return unused;
}

static unsigned count_named(const char* path, const char* name) {
  FILE* const file = fopen(path, "re");
  static char line[4608];
  unsigned found = 0;
  REQUIRE(file != NULL);
  while (fgets(line, sizeof line, file) != NULL) found += strstr(line, name) != NULL;
  fclose(file);
  return found;
}

// The last of several holders of a file may be the engine's own thread, which looks after those
// that a child held when they were closed.
static void wait_until_gone(const char* name) {
  for (unsigned i = 0; count_named("/proc/self/maps", name) != 0; i++) {
    REQUIRE(i < 10000);
    usleep(1000);
  }
}

static void storm(void) {
  make_vm(KVM_X86_SW_PROTECTED_VM);
  machine.kvm = kvm_fd;
  machine.vm = vm_fd;
  machine.memory =
      mmap(NULL, kMemorySize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  REQUIRE(set_slot(vm_fd, 0, 0, machine.memory, kMemorySize, 0) == 0);
  set_entry(&machine, kPml4, 0, kPdpt | 3);
  set_entry(&machine, kPdpt, 0, kPd | 3);
  for (unsigned i = 0; i < 512; i++) set_entry(&machine, kPd, i, ((uint64_t)i << 21) | 0x83);
  static const uint8_t code[] = {0xb9, 0x00, 0x10, 0x00, 0x00,              // mov $4096, %ecx
                                 0xbf, 0x00, 0x00, 0x80, 0x00,              // mov $0x800000, %edi
                                 0x48, 0x89, 0x0f, 0x48, 0x03, 0x8f, 0x00,  // mov %rcx, (%rdi)
                                 0x10, 0x00, 0x00,                          // add 4096(%rdi), %rcx
                                 0x48, 0x31, 0x8f, 0x00, 0x20, 0x00, 0x00,  // xor %rcx, 8192(%rdi)
                                 0xf4};
  memcpy(machine.memory + kCode, code, sizeof code);
  machine.vcpu = ioctl(vm_fd, KVM_CREATE_VCPU, 0);
  machine.run_size = ioctl(kvm_fd, KVM_GET_VCPU_MMAP_SIZE, 0);
  machine.run =
      mmap(NULL, (size_t)machine.run_size, PROT_READ | PROT_WRITE, MAP_SHARED, machine.vcpu, 0);
  REQUIRE(machine.vcpu >= 0 && machine.run != MAP_FAILED);
  enter_long_mode(&machine);
  set_rip(&machine, kCode);
  struct kvm_memory_attributes all = {
      .address = kPrivate, .size = kPages * kPage, .attributes = KVM_MEMORY_ATTRIBUTE_PRIVATE};
  REQUIRE(ioctl(vm_fd, KVM_SET_MEMORY_ATTRIBUTES, &all) == 0);
  current = create(kPages * kPage, 0);

  void* (*const all_of_them[])(void*) = {punch, bind_and_unbind, close_and_make, have_children,
                                         run_guest};
  pthread_t threads[5];
  for (unsigned i = 0; i < 5; i++) {
    REQUIRE(pthread_create(&threads[i], NULL, all_of_them[i], NULL) == 0);
  }
  const char* const seconds = getenv("STAGETWO_TEST_SECONDS");
  struct timespec start, now;
  clock_gettime(CLOCK_MONOTONIC, &start);
  const double limit = (seconds != NULL ? atof(seconds) : 3.0) / 4;
  for (;;) {
    usleep(10000);
    clock_gettime(CLOCK_MONOTONIC, &now);
    const double passed =
        (double)(now.tv_sec - start.tv_sec) + (double)(now.tv_nsec - start.tv_nsec) / 1e9;
    int each = 1;
    for (unsigned i = 0; i < 5; i++) each &= turns[i] > 3;
    if (passed > limit && each) break;
  }
  stop = 1;
  for (unsigned i = 0; i < 5; i++) REQUIRE(pthread_join(threads[i], NULL) == 0);
  for (unsigned i = 0; i < 5; i++) printf("%lu ", turns[i]);
  printf("turns\n");

  ANSWERS(set_half(0), EINVAL);
  REQUIRE(close(current) == 0);
  wait_until_gone("kvm-gmem");
  REQUIRE(munmap(machine.run, (size_t)machine.run_size) == 0);
  REQUIRE(close(machine.vcpu) == 0 && close(vm_fd) == 0 && close(kvm_fd) == 0);
  wait_until_gone("stagetwo:1:");
}

static void another(void) {}

int main(int argc, char** argv) {
  static const struct test_case kCases[] = {{"storm", storm}, {"another", another}, {NULL, NULL}};
  return run_case(argc, argv, kCases);
}

// SPDX-License-Identifier: Apache-2.0
// VMs whose guests need all of their memory all the time: each goes through its pages for ever, one
// after another or here and there, and counts on each. Knows nothing but the public KVM ABI: what
// limits the memory is not told here.
//
//   refaulting_vmm VMS MEGABYTES in-order|at-random private|shared
//
// MEGABYTES a power of two. Of several VMs the first one uses an eighth of its memory. All of it is
// filled before there is a VM, half of it with what does not get smaller. Prints where the memory
// of each VM is, waits for a line, lets the guests run until another one, and prints "whole" and
// how many pages they went through, or what was not right.
#include "small_vmm.h"

enum { kMostVms = 4, kAtOnce = 64, kDonePort = 0x10 };
static const uint64_t kBase = 0x10000000;

// ebx: the memory. ebp: its last page. edx: the last number, made by the multiplier in edi. esi: so
// many a round.
extern const char guest_begin[], guest_end[];
__asm__(
    ".pushsection .rodata\n"
    ".globl guest_begin, guest_end\n"
    ".code32\n"
    "guest_begin:\n"
    "  movl %esi, %ecx\n"
    "1: imull %edi, %edx\n"
    "  incl %edx\n"
    "  movl %edx, %eax\n"
    "  andl %ebp, %eax\n"
    "  shll $12, %eax\n"
    "  addl %ebx, %eax\n"
    "  incl (%eax)\n"
    "  decl %ecx\n"
    "  jnz 1b\n"
    "  outb %al, $0x10\n"
    "  jmp guest_begin\n"
    "guest_end:\n"
    ".code64\n"
    ".popsection\n");

struct machine {
  int vcpu;
  struct kvm_run* run;
  char* memory;
  uint32_t uses;  // pages, a power of two
  unsigned long went;
  pthread_t thread;
};
static struct machine machines[kMostVms];
static size_t pages;
// Of a linear congruential generator with an increment of 1: each page once a round.
static uint32_t multiplier;

static uint64_t draw(void) {
  static uint64_t state = 1;
  uint64_t z = (state += 0x9e3779b97f4a7c15U);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9U;
  return z ^ (z >> 27);
}

static void* run_guest(void* of) {
  struct machine* self = of;
  while (!atomic_load(&stop)) {
    const int ran = ioctl(self->vcpu, KVM_RUN, 0);
    if (ran != 0 && (errno == EINTR || errno == EAGAIN)) continue;
    check(ran == 0 && self->run->exit_reason == KVM_EXIT_IO, "KVM_RUN");
    self->went += kAtOnce;
  }
  return NULL;
}

// A mapping of its own for each: with a page behind it that nobody may touch.
static void fill(struct machine* self, int shared) {
  self->memory = mmap(NULL, (pages + 1) * kPage, PROT_READ | PROT_WRITE,
                      (shared ? MAP_SHARED : MAP_PRIVATE) | MAP_ANONYMOUS, -1, 0);
  check(self->memory != MAP_FAILED, "memory");
  check(mprotect(self->memory + pages * kPage, kPage, PROT_NONE) == 0, "mprotect");
  for (size_t page = 0; page < pages; ++page) {
    uint64_t* words = (uint64_t*)(self->memory + page * kPage);
    for (size_t i = 1; i < kPage / 8; ++i) words[i] = page % 2 == 0 ? draw() : page;
    words[0] = 0;
  }
}

static void make(struct machine* self, int kvm, char* low) {
  vm = ioctl(kvm, KVM_CREATE_VM, 0);
  check(vm >= 0, "KVM_CREATE_VM");
  slot(0, kCode, kPage, low);
  slot(1, kBase, pages * kPage, self->memory);
  create_vcpu(kvm);
  self->vcpu = vcpu;
  self->run = run;
  struct kvm_sregs sregs;
  check(ioctl(vcpu, KVM_GET_SREGS, &sregs) == 0, "KVM_GET_SREGS");
  const struct kvm_segment flat = {
      .limit = 0xffffffff, .selector = 0x10, .type = 3, .present = 1, .db = 1, .s = 1, .g = 1};
  sregs.ds = sregs.es = sregs.ss = sregs.cs = flat;
  sregs.cs.selector = 0x8;
  sregs.cs.type = 11;
  sregs.cr0 |= 1;
  check(ioctl(vcpu, KVM_SET_SREGS, &sregs) == 0, "KVM_SET_SREGS");
  const struct kvm_regs regs = {.rip = kCode,
                                .rflags = 2,
                                .rbx = kBase,
                                .rbp = self->uses - 1,
                                .rdi = multiplier,
                                .rsi = kAtOnce};
  check(ioctl(vcpu, KVM_SET_REGS, &regs) == 0, "KVM_SET_REGS");
}

static size_t count_wrong(const struct machine* self) {
  uint32_t* wanted = calloc(pages, sizeof(*wanted));
  check(wanted != NULL, "memory");
  uint32_t number = 0;
  for (unsigned long i = 0; i < self->went; ++i) {
    number = number * multiplier + 1;
    ++wanted[number & (self->uses - 1)];
  }
  size_t wrong = 0;
  for (size_t page = 0; page < pages; ++page) {
    wrong += memcmp(self->memory + page * kPage, &wanted[page], 4) != 0;
  }
  free(wanted);
  return wrong;
}

int main(int argc, char** argv) {
  check(argc == 5, "arguments: VMS MEGABYTES in-order|at-random private|shared");
  const int vms = atoi(argv[1]);
  check(vms >= 1 && vms <= kMostVms, "number of VMs");
  pages = (size_t)atoi(argv[2]) << 8;
  multiplier = strcmp(argv[3], "in-order") == 0 ? 1 : 1664525;
  setvbuf(stdout, NULL, _IOLBF, 0);
  const int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
  check(kvm >= 0, "open /dev/kvm");
  char* low = mmap(NULL, kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  check(low != MAP_FAILED, "memory");
  memcpy(low, guest_begin, (size_t)(guest_end - guest_begin));
  for (int i = 0; i < vms; ++i) fill(&machines[i], strcmp(argv[4], "shared") == 0);
  for (int i = 0; i < vms; ++i) {
    machines[i].uses = (uint32_t)(i == 0 && vms > 1 ? pages / 8 : pages);
    make(&machines[i], kvm, low);
    printf("memory %p %zu\n", (void*)machines[i].memory, pages * kPage);
  }
  check(getchar() == '\n', "a line");
  for (int i = 0; i < vms; ++i) {
    check(pthread_create(&machines[i].thread, NULL, run_guest, &machines[i]) == 0, "a thread");
  }
  check(getchar() == '\n', "a line");
  atomic_store(&stop, 1);
  for (int i = 0; i < vms; ++i) pthread_join(machines[i].thread, NULL);
  for (int i = 0; i < vms; ++i) {
    check(count_wrong(&machines[i]) == 0, "each page is counted on as often as the guest came by");
  }
  printf("whole:");
  for (int i = 0; i < vms; ++i) printf(" %lu", machines[i].went);
  printf(" pages\n");
  return 0;
}

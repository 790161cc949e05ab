// SPDX-License-Identifier: Apache-2.0
// A small VMM in plain C whose guest writes a seeded pattern all over its memory and verifies it,
// here and there and again, while the VMM reads the same memory in user mode and by write(2),
// moves the slot, and converts pages of a second slot between shared and private: such a page has
// bytes of each kind, and both are verified. Knows nothing but the public KVM ABI: who limits its
// memory is not told here.
//
//   swapping_vmm MEGABYTES MILLISECONDS SEED [shared]
//
// Prints where the memory is, then "whole" and what was done, or what was not right.
//
// The guest works through a list: write a page (a template and a mark), or verify one.
#define _GNU_SOURCE
#include "abi/kvm/uapi.h"
#include "small_vmm.h"

enum {
  kList = 0x2000,       // entries of four words: what, page, template, mark
  kTemplates = 0x4000,  // 64 pages, every second one random
  kTemplateCount = 64,
  kLow = 0x100000,  // code, list and templates
  kAtMost = 255,
  kWrite = 1,
  kVerify = 2,
  kDonePort = 0x10,
  kBadPort = 0x11,
};
static const uint64_t kBases[2] = {0x10000000, 0x60000000};
static const uint64_t kBothBase = 0xb0000000;

extern const char guest_begin[], guest_end[];
__asm__(
    ".pushsection .rodata\n"
    ".globl guest_begin, guest_end\n"
    ".code32\n"
    "guest_begin:\n"
    "  movl $0x2000, %ebp\n"
    "1: movl 0(%ebp), %ebx\n"
    "  testl %ebx, %ebx\n"
    "  jz 5f\n"
    "  movl 4(%ebp), %edi\n"
    "  movl 8(%ebp), %esi\n"
    "  movl 12(%ebp), %edx\n"
    "  cmpl $1, %ebx\n"
    "  jne 2f\n"
    "  movl %edx, (%edi)\n"
    "  addl $4, %edi\n"
    "  addl $4, %esi\n"
    "  movl $1023, %ecx\n"
    "  rep movsl\n"
    "  jmp 4f\n"
    "2: cmpl %edx, (%edi)\n"
    "  jne 3f\n"
    "  addl $4, %edi\n"
    "  addl $4, %esi\n"
    "  movl $1023, %ecx\n"
    "  repe cmpsl\n"
    "  je 4f\n"
    "3: movl 4(%ebp), %eax\n"
    "  outl %eax, $0x11\n"
    "4: addl $16, %ebp\n"
    "  jmp 1b\n"
    "5: outb %al, $0x10\n"
    "  jmp guest_begin\n"
    "guest_end:\n"
    ".code64\n"
    ".popsection\n");

// Pages from `pages` on are those of the second slot, an eighth as many.
static char* low;
static char* memory;
static char* both;
static size_t pages, all_pages;
static uint32_t* marks;  // of each page; 0: never written
static uint32_t* private_marks;
static char* is_private;
static uint64_t state;
static unsigned base;
static unsigned long writes, verified, host_reads, system_calls, moves, conversions;

static uint64_t draw(void) {
  uint64_t z = (state += 0x9e3779b97f4a7c15U);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9U;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebU;
  return z ^ (z >> 31);
}

static char* template_of(uint32_t mark) {
  return low + kTemplates + (size_t)(mark % kTemplateCount) * kPage;
}

// What the VMM can see of a page: what it has as shared memory.
static char* bytes_of(size_t page) {
  return page < pages ? memory + page * kPage : both + (page - pages) * kPage;
}
static uint32_t gpa_of(size_t page) {
  return (uint32_t)(page < pages ? kBases[base] + page * kPage
                                 : kBothBase + (page - pages) * kPage);
}
static uint32_t* guest_mark(size_t page) {
  return is_private[page] ? &private_marks[page] : &marks[page];
}

static int is_right(const char* bytes, size_t page) {
  static const char zeros[kPage];
  if (marks[page] == 0) return memcmp(bytes, zeros, kPage) == 0;
  return memcmp(bytes, &marks[page], 4) == 0 &&
         memcmp(bytes + 4, template_of(marks[page]) + 4, kPage - 4) == 0;
}

static void place_memory(void) {
  slot(1, kBases[base], (uint64_t)pages * kPage, memory);
}

// A slot of another address must go first: two slots never overlap in time.
static void move_memory(void) {
  base = 1 - base;
  if (draw() % 2 == 0) slot(1, 0, 0, NULL);
  place_memory();
  ++moves;
}

static void run_list(void) {
  for (;;) {
    const int ran = ioctl(vcpu, KVM_RUN, 0);
    if (ran != 0 && (errno == EINTR || errno == EAGAIN)) continue;
    check(ran == 0, "KVM_RUN");
    check(run->exit_reason == KVM_EXIT_IO, "the guest ends its list");
    if (run->io.port == kDonePort) return;
    const uint32_t at = *(uint32_t*)((char*)run + run->io.data_offset);
    printf("failed: the guest read other bytes than it wrote, address %x\n", (unsigned)at);
    fflush(stdout);
    _exit(1);
  }
}

static void put(uint32_t* entry, int what, size_t page) {
  const uint32_t mark = *guest_mark(page);
  entry[0] = (uint32_t)what;
  entry[1] = gpa_of(page);
  entry[2] = (uint32_t)(template_of(mark) - low);
  entry[3] = mark;
}

static void guest_round(int sequential) {
  uint32_t* entry = (uint32_t*)(low + kList);
  size_t page = draw() % all_pages;
  for (int i = 0; i < kAtMost; ++i, entry += 4) {
    page = sequential ? (page + 1) % all_pages : draw() % all_pages;
    uint32_t* mark = guest_mark(page);
    const int writing = *mark == 0 || draw() % 3 == 0;
    if (writing) {
      *mark = (uint32_t)draw() | 1U << 31;
      ++writes;
    } else {
      ++verified;
    }
    put(entry, writing ? kWrite : kVerify, page);
  }
  entry[0] = 0;
  run_list();
}

// The guest writes all pages from `page` on, or verifies what it has written.
static void guest_goes_through(size_t page, int what) {
  while (page < all_pages) {
    uint32_t* entry = (uint32_t*)(low + kList);
    for (int i = 0; i < kAtMost && page < all_pages; ++page) {
      if (what == kWrite) *guest_mark(page) = (uint32_t)draw() | 1U << 31;
      if (*guest_mark(page) == 0) continue;
      put(entry, what, page);
      entry += 4;
      ++i;
    }
    entry[0] = 0;
    run_list();
  }
}

static void convert(size_t first, size_t count, int to_private) {
  struct kvm_memory_attributes range = {
      .address = gpa_of(first),
      .size = count * kPage,
      .attributes = to_private ? KVM_MEMORY_ATTRIBUTE_PRIVATE : 0};
  check(ioctl(vm, KVM_SET_MEMORY_ATTRIBUTES, &range) == 0, "KVM_SET_MEMORY_ATTRIBUTES");
  memset(is_private + first, to_private, count);
  ++conversions;
}
static void convert_some(void) {
  const size_t first = pages + draw() % (all_pages - pages);
  const size_t most = all_pages - first < 32 ? all_pages - first : 32;
  const size_t count = 1 + draw() % most;
  convert(first, count, draw() % 2 == 0);
}

static void host_round(int pipe_in, int pipe_out) {
  for (int i = 0; i < 8; ++i, ++host_reads) {
    const size_t page = draw() % all_pages;
    check(is_right(bytes_of(page), page), "the VMM reads what the guest wrote");
  }
  const size_t page = draw() % all_pages;
  char copy[kPage];
  check(write(pipe_in, bytes_of(page), kPage) == kPage, "write(2) from guest memory");
  check(read(pipe_out, copy, kPage) == kPage, "read of the pipe");
  check(is_right(copy, page), "write(2) takes what the guest wrote");
  ++system_calls;
}

static void create_both(void) {
  const size_t bytes = (all_pages - pages) * kPage;
  both = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  check(both != MAP_FAILED, "memory");
  struct kvm_create_guest_memfd wanted = {.size = bytes};
  const int fd = ioctl(vm, KVM_CREATE_GUEST_MEMFD, &wanted);
  check(fd >= 0, "KVM_CREATE_GUEST_MEMFD");
  struct kvm_userspace_memory_region2 region = {.slot = 2,
                                                .flags = KVM_MEM_GUEST_MEMFD,
                                                .guest_phys_addr = kBothBase,
                                                .memory_size = bytes,
                                                .userspace_addr = (uint64_t)both,
                                                .guest_memfd = (uint32_t)fd};
  check(ioctl(vm, KVM_SET_USER_MEMORY_REGION2, &region) == 0, "KVM_SET_USER_MEMORY_REGION2");
}

static void create_swapping(size_t megabytes, int shared) {
  const int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
  check(kvm >= 0, "open /dev/kvm");
  vm = ioctl(kvm, KVM_CREATE_VM, KVM_X86_SW_PROTECTED_VM);
  check(vm >= 0, "KVM_CREATE_VM");
  pages = megabytes << 8;
  all_pages = pages + pages / 8;
  marks = calloc(all_pages, sizeof(*marks));
  private_marks = calloc(all_pages, sizeof(*private_marks));
  is_private = calloc(all_pages, 1);
  check(marks != NULL && private_marks != NULL && is_private != NULL, "memory");
  low = mmap(NULL, kLow, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  memory = mmap(NULL, pages * kPage, PROT_READ | PROT_WRITE,
                (shared ? MAP_SHARED : MAP_PRIVATE) | MAP_ANONYMOUS, -1, 0);
  check(low != MAP_FAILED && memory != MAP_FAILED, "memory");
  memcpy(low + kCode, guest_begin, (size_t)(guest_end - guest_begin));
  for (size_t i = 0; i < kTemplateCount * kPage / 8; ++i) {
    // Pages of odd number get smaller: a third of them is random.
    const size_t page = i / (kPage / 8);
    ((uint64_t*)(low + kTemplates))[i] = page % 2 == 0 || i % 3 == 0 ? draw() : page;
  }
  slot(0, 0, kLow, low);
  place_memory();
  create_both();
  create_vcpu(kvm);
  struct kvm_sregs sregs;
  check(ioctl(vcpu, KVM_GET_SREGS, &sregs) == 0, "KVM_GET_SREGS");
  const struct kvm_segment flat = {
      .limit = 0xffffffff, .selector = 0x10, .type = 3, .present = 1, .db = 1, .s = 1, .g = 1};
  sregs.ds = sregs.es = sregs.ss = flat;
  sregs.cs = flat;
  sregs.cs.selector = 0x8;
  sregs.cs.type = 11;
  sregs.cr0 |= 1;
  check(ioctl(vcpu, KVM_SET_SREGS, &sregs) == 0, "KVM_SET_SREGS");
  start_at_code();
}

static unsigned long now_ms(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (unsigned long)now.tv_sec * 1000 + (unsigned long)now.tv_nsec / 1000000;
}

int main(int argc, char** argv) {
  check(argc >= 4, "arguments: MEGABYTES MILLISECONDS SEED [shared]");
  state = strtoull(argv[3], NULL, 0);
  setvbuf(stdout, NULL, _IOLBF, 0);
  create_swapping((size_t)atoi(argv[1]), argc > 4 && strcmp(argv[4], "shared") == 0);
  printf("memory %p %zu\n", (void*)memory, pages * kPage);
  int pipe_fds[2];
  check(pipe2(pipe_fds, O_CLOEXEC) == 0, "pipe");
  // The private halves of the second slot, to be left alone for a while.
  convert(pages, all_pages - pages, 1);
  guest_goes_through(pages, kWrite);
  convert(pages, all_pages - pages, 0);
  // Everything once, then here and there until the time is over, then everything again.
  for (size_t done = 0; done < all_pages; done += kAtMost) guest_round(1);
  const unsigned long end = now_ms() + (unsigned long)atoi(argv[2]);
  for (unsigned long round = 0; now_ms() < end; ++round) {
    guest_round(round % 4 == 0);
    host_round(pipe_fds[1], pipe_fds[0]);
    if (round % 16 == 0) move_memory();
    if (round % 4 == 1) convert_some();
  }
  for (size_t page = 0; page < all_pages; ++page) {
    check(is_right(bytes_of(page), page), "everything is right in the end");
  }
  convert(pages, all_pages - pages, 1);
  guest_goes_through(pages, kVerify);
  printf(
      "whole: %lu writes, %lu verified, %lu read, %lu system calls, %lu moves, %lu conversions\n",
      writes, verified, host_reads, system_calls, moves, conversions);
  return 0;
}

// SPDX-License-Identifier: Apache-2.0
// A small VMM in plain C whose guest of two vCPUs writes a seeded pattern all over its memory and
// verifies it, here and there and again, while the VMM reads the same memory in user mode and by
// write(2), moves slots, and converts pages of one slot between shared and private: such a page has
// bytes of each kind, and both are verified. Knows nothing but the public KVM ABI: who limits its
// memory is not told here.
//
//   swapping_vmm MEGABYTES MILLISECONDS SEED [shared]
//
// Prints where the memory is, then "whole" and what was done, or what was not right.
//
// Each vCPU has a thread and a part of the memory of its own: a slot, and half of the slot that has
// private pages. What is done to one part happens while the other's vCPU runs. Some pages are
// written once, and verified by both.
//
// A vCPU works through a list: write a page (a template and a mark), or verify one.
#define _GNU_SOURCE
#include "abi/kvm/uapi.h"
#include "small_vmm.h"

enum {
  kVcpus = 2,
  kList = 0x2000,       // a page for each vCPU; entries of four words: what, page, template, mark
  kTemplates = 0x4000,  // 64 pages, every second one random
  kTemplateCount = 64,
  kCommon = 0x80000,  // pages of both parts
  kLow = 0x100000,    // code, lists, templates and common pages
  kCommonPages = (kLow - kCommon) / kPage,
  kAtMost = 255,
  kAtLeastRounds = 4,  // in which everything is done once
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
    "  movl %esp, %ebp\n"  // the list; nobody pushes
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

// Pages from `pages` on are those of the slot with private pages, an eighth as many; behind them
// the common ones.
static char* low;
static char* memory;
static char* both;
static size_t pages, all_pages;
static uint32_t* marks;  // of each page; 0: never written
static uint32_t* private_marks;
static char* is_private;
static unsigned long end_ms;

// What one thread has. Its own pages: `count` from `first` on, and `both_count` from `both_first`.
struct part {
  pthread_t thread;
  unsigned id;
  int vcpu;
  struct kvm_run* run;
  uint64_t state;
  unsigned base;
  size_t first, count, both_first, both_count;
  int pipe_fds[2];
  unsigned long writes, verified, host_reads, system_calls, moves, conversions;
};
static struct part parts[kVcpus];

static uint64_t draw(struct part* part) {
  uint64_t z = (part->state += 0x9e3779b97f4a7c15U);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9U;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebU;
  return z ^ (z >> 31);
}
static uint32_t draw_mark(struct part* part) {
  return (uint32_t)draw(part) | 1U << 31;
}

static size_t pages_of(const struct part* part) {
  return part->count + part->both_count;
}
static size_t page_of(const struct part* part, size_t index) {
  return index < part->count ? part->first + index : part->both_first + index - part->count;
}
static size_t draw_page(struct part* part) {
  return page_of(part, draw(part) % pages_of(part));
}
static size_t draw_common(struct part* part) {
  return all_pages + draw(part) % kCommonPages;
}

static char* template_of(uint32_t mark) {
  return low + kTemplates + (size_t)(mark % kTemplateCount) * kPage;
}

// What the VMM can see of a page: what it has as shared memory.
static char* bytes_of(size_t page) {
  if (page >= all_pages) return low + kCommon + (page - all_pages) * kPage;
  return page < pages ? memory + page * kPage : both + (page - pages) * kPage;
}
static uint32_t gpa_of(const struct part* part, size_t page) {
  if (page >= all_pages) return (uint32_t)(kCommon + (page - all_pages) * kPage);
  return (uint32_t)(page < pages ? kBases[part->base] + page * kPage
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

static void place_memory(const struct part* part) {
  slot(1 + part->id, kBases[part->base] + part->first * kPage, (uint64_t)part->count * kPage,
       memory + part->first * kPage);
}

// The slot goes first, or is given another address by one call.
static void move_memory(struct part* part) {
  part->base = 1 - part->base;
  if (draw(part) % 2 == 0) slot(1 + part->id, 0, 0, NULL);
  place_memory(part);
  ++part->moves;
}

static void run_list(struct part* part) {
  for (;;) {
    const int ran = ioctl(part->vcpu, KVM_RUN, 0);
    if (ran != 0 && (errno == EINTR || errno == EAGAIN)) continue;
    check(ran == 0, "KVM_RUN");
    check(part->run->exit_reason == KVM_EXIT_IO, "the guest ends its list");
    if (part->run->io.port == kDonePort) return;
    const uint32_t at = *(uint32_t*)((char*)part->run + part->run->io.data_offset);
    printf("failed: the guest read other bytes than it wrote, address %x\n", (unsigned)at);
    fflush(stdout);
    _exit(1);
  }
}

static uint32_t* list_of(const struct part* part) {
  return (uint32_t*)(low + kList + (size_t)part->id * kPage);
}

static uint32_t* put(const struct part* part, uint32_t* entry, int what, size_t page) {
  const uint32_t mark = *guest_mark(page);
  entry[0] = (uint32_t)what;
  entry[1] = gpa_of(part, page);
  entry[2] = (uint32_t)(template_of(mark) - low);
  entry[3] = mark;
  return entry + 4;
}

// One in eight entries is of a common page.
static void guest_round(struct part* part, int sequential) {
  uint32_t* entry = list_of(part);
  size_t index = draw(part) % pages_of(part);
  for (int i = 0; i < kAtMost; ++i) {
    if (i % 8 == 7) {
      entry = put(part, entry, kVerify, draw_common(part));
      ++part->verified;
      continue;
    }
    index = sequential ? (index + 1) % pages_of(part) : draw(part) % pages_of(part);
    const size_t page = page_of(part, index);
    uint32_t* mark = guest_mark(page);
    const int writing = *mark == 0 || draw(part) % 3 == 0;
    if (writing) *mark = draw_mark(part);
    entry = put(part, entry, writing ? kWrite : kVerify, page);
    ++*(writing ? &part->writes : &part->verified);
  }
  entry[0] = 0;
  run_list(part);
}

// The guest writes `count` pages from `page` on, or verifies what it has written of them.
static void guest_goes_through(struct part* part, size_t page, size_t count, int what) {
  const size_t end = page + count;
  while (page < end) {
    uint32_t* entry = list_of(part);
    for (int i = 0; i < kAtMost && page < end; ++page) {
      if (what == kWrite) *guest_mark(page) = draw_mark(part);
      if (*guest_mark(page) == 0) continue;
      entry = put(part, entry, what, page);
      ++i;
    }
    entry[0] = 0;
    run_list(part);
  }
}

static void convert(struct part* part, size_t first, size_t count, int to_private) {
  struct kvm_memory_attributes range = {
      .address = gpa_of(part, first),
      .size = count * kPage,
      .attributes = to_private ? KVM_MEMORY_ATTRIBUTE_PRIVATE : 0};
  check(ioctl(vm, KVM_SET_MEMORY_ATTRIBUTES, &range) == 0, "KVM_SET_MEMORY_ATTRIBUTES");
  memset(is_private + first, to_private, count);
  ++part->conversions;
}
static void convert_some(struct part* part) {
  const size_t at = draw(part) % part->both_count;
  const size_t most = part->both_count - at < 32 ? part->both_count - at : 32;
  const size_t count = 1 + draw(part) % most;
  convert(part, part->both_first + at, count, draw(part) % 2 == 0);
}

static void host_round(struct part* part) {
  for (int i = 0; i < 8; ++i, ++part->host_reads) {
    const size_t page = i == 7 ? draw_common(part) : draw_page(part);
    check(is_right(bytes_of(page), page), "the VMM reads what the guest wrote");
  }
  const size_t page = draw_page(part);
  char copy[kPage];
  check(write(part->pipe_fds[1], bytes_of(page), kPage) == kPage, "write(2) from guest memory");
  check(read(part->pipe_fds[0], copy, kPage) == kPage, "read of the pipe");
  check(is_right(copy, page), "write(2) takes what the guest wrote");
  ++part->system_calls;
}

static void create_both(void) {
  const size_t bytes = (all_pages - pages) * kPage;
  both = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  check(both != MAP_FAILED, "memory");
  struct kvm_create_guest_memfd wanted = {.size = bytes};
  const int fd = ioctl(vm, KVM_CREATE_GUEST_MEMFD, &wanted);
  check(fd >= 0, "KVM_CREATE_GUEST_MEMFD");
  struct kvm_userspace_memory_region2 region = {.slot = 1 + kVcpus,
                                                .flags = KVM_MEM_GUEST_MEMFD,
                                                .guest_phys_addr = kBothBase,
                                                .memory_size = bytes,
                                                .userspace_addr = (uint64_t)both,
                                                .guest_memfd = (uint32_t)fd};
  check(ioctl(vm, KVM_SET_USER_MEMORY_REGION2, &region) == 0, "KVM_SET_USER_MEMORY_REGION2");
}

static void create_part(int kvm, unsigned id, uint64_t seed) {
  struct part* const part = &parts[id];
  part->id = id;
  part->state = seed;
  part->count = pages / kVcpus;
  part->first = id * part->count;
  part->both_count = (all_pages - pages) / kVcpus;
  part->both_first = pages + id * part->both_count;
  check(pipe2(part->pipe_fds, O_CLOEXEC) == 0, "pipe");
  place_memory(part);
  part->run = open_vcpu(kvm, id, &part->vcpu);
  struct kvm_sregs sregs;
  check(ioctl(part->vcpu, KVM_GET_SREGS, &sregs) == 0, "KVM_GET_SREGS");
  const struct kvm_segment flat = {
      .limit = 0xffffffff, .selector = 0x10, .type = 3, .present = 1, .db = 1, .s = 1, .g = 1};
  sregs.ds = sregs.es = sregs.ss = flat;
  sregs.cs = flat;
  sregs.cs.selector = 0x8;
  sregs.cs.type = 11;
  sregs.cr0 |= 1;
  check(ioctl(part->vcpu, KVM_SET_SREGS, &sregs) == 0, "KVM_SET_SREGS");
  struct kvm_regs regs = {.rip = kCode, .rsp = kList + id * kPage, .rflags = 2};
  check(ioctl(part->vcpu, KVM_SET_REGS, &regs) == 0, "KVM_SET_REGS");
}

static void create_swapping(size_t megabytes, int shared, uint64_t seed) {
  const int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
  check(kvm >= 0, "open /dev/kvm");
  vm = ioctl(kvm, KVM_CREATE_VM, KVM_X86_SW_PROTECTED_VM);
  check(vm >= 0, "KVM_CREATE_VM");
  pages = megabytes << 8;
  all_pages = pages + pages / 8;
  marks = calloc(all_pages + kCommonPages, sizeof(*marks));
  private_marks = calloc(all_pages + kCommonPages, sizeof(*private_marks));
  is_private = calloc(all_pages + kCommonPages, 1);
  check(marks != NULL && private_marks != NULL && is_private != NULL, "memory");
  low = mmap(NULL, kLow, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  memory = mmap(NULL, pages * kPage, PROT_READ | PROT_WRITE,
                (shared ? MAP_SHARED : MAP_PRIVATE) | MAP_ANONYMOUS, -1, 0);
  check(low != MAP_FAILED && memory != MAP_FAILED, "memory");
  memcpy(low + kCode, guest_begin, (size_t)(guest_end - guest_begin));
  struct part templates = {.state = seed};
  for (size_t i = 0; i < kTemplateCount * kPage / 8; ++i) {
    // Pages of odd number get smaller: a third of them is random.
    const size_t page = i / (kPage / 8);
    ((uint64_t*)(low + kTemplates))[i] = page % 2 == 0 || i % 3 == 0 ? draw(&templates) : page;
  }
  slot(0, 0, kLow, low);
  create_both();
  for (unsigned id = 0; id < kVcpus; ++id) create_part(kvm, id, draw(&templates));
}

static unsigned long now_ms(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (unsigned long)now.tv_sec * 1000 + (unsigned long)now.tv_nsec / 1000000;
}

// Everything once, then here and there until the time is over, then everything again.
static void* work(void* of) {
  struct part* const part = of;
  // The private halves, to be left alone for a while.
  convert(part, part->both_first, part->both_count, 1);
  guest_goes_through(part, part->both_first, part->both_count, kWrite);
  convert(part, part->both_first, part->both_count, 0);
  guest_goes_through(part, part->first, part->count, kWrite);
  for (unsigned long round = 0; round < kAtLeastRounds || now_ms() < end_ms; ++round) {
    guest_round(part, round % 4 == 0);
    host_round(part);
    if (round % 16 == 0) move_memory(part);
    if (round % 4 == 1) convert_some(part);
  }
  guest_goes_through(part, part->first, part->count, kVerify);
  for (size_t i = 0; i < pages_of(part); ++i) {
    const size_t page = page_of(part, i);
    check(is_right(bytes_of(page), page), "everything is right in the end");
  }
  convert(part, part->both_first, part->both_count, 0);
  guest_goes_through(part, part->both_first, part->both_count, kVerify);
  convert(part, part->both_first, part->both_count, 1);
  guest_goes_through(part, part->both_first, part->both_count, kVerify);
  guest_goes_through(part, all_pages, kCommonPages, kVerify);
  return NULL;
}

int main(int argc, char** argv) {
  check(argc >= 4, "arguments: MEGABYTES MILLISECONDS SEED [shared]");
  setvbuf(stdout, NULL, _IOLBF, 0);
  create_swapping((size_t)atoi(argv[1]), argc > 4 && strcmp(argv[4], "shared") == 0,
                  strtoull(argv[3], NULL, 0));
  printf("memory %p %zu\n", (void*)memory, pages * kPage);
  guest_goes_through(&parts[0], all_pages, kCommonPages, kWrite);
  end_ms = now_ms() + (unsigned long)atoi(argv[2]);
  for (unsigned i = 0; i < kVcpus; ++i) {
    check(pthread_create(&parts[i].thread, NULL, work, &parts[i]) == 0, "thread");
  }
  struct part all = {0};
  for (unsigned i = 0; i < kVcpus; ++i) {
    check(pthread_join(parts[i].thread, NULL) == 0, "thread");
    all.writes += parts[i].writes;
    all.verified += parts[i].verified;
    all.host_reads += parts[i].host_reads;
    all.system_calls += parts[i].system_calls;
    all.moves += parts[i].moves;
    all.conversions += parts[i].conversions;
  }
  printf(
      "whole: %lu writes, %lu verified, %lu read, %lu system calls, %lu moves, %lu conversions\n",
      all.writes, all.verified, all.host_reads, all.system_calls, all.moves, all.conversions);
  return 0;
}

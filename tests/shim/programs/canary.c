// SPDX-License-Identifier: Apache-2.0
// A guest holds a value in private memory and does with it what guests do: stores across pages,
// copies by string and vector instructions, pushes, exchanges, runs code that has it in itself. Its
// VMM then looks for the value in all that this process can read. The value is in no variable of
// ours: it is the exclusive or of two others.
#define _GNU_SOURCE
#include "abi/kvm/uapi.h"
//
#include <signal.h>
#include <sys/time.h>

#include "machine.h"

enum {
  kPrivate = 0x800000,
  kPages = 16,
  kSays = 0xea,
  kConvert = 12,  // KVM_HC_MAP_GPA_RANGE
  kHolds = 1,
  kGaveUp = 2,
};

static const volatile uint64_t key = UINT64_C(0x0f1e2d3c4b5a6978);
static const volatile uint64_t hidden = UINT64_C(0x5ec2e70badc0ffee);

// rdi: the private pages. What is stored is r8, and rbx counts what was not as expected.
__asm__(
    ".pushsection .rodata\n"
    ".globl guest_begin, guest_end\n"
    "guest_begin:\n"
    "  mov $0x800000, %rdi\n"
    "  mov $16, %edx\n"
    "  call convert\n"
    "  xor %ebp, %ebp\n"
    "  movabs $0x5ec2e70badc0ffee, %r8\n"
    "  movabs $0x0f1e2d3c4b5a6978, %r9\n"
    "  xor %r9, %r8\n"
    "  mov $200, %r15d\n"  // often enough for a signal to come between
    "again:\n"
    "  mov $0x800000, %rdi\n"
    "  mov %r8, (%rdi)\n"
    "  mov %r8, 0xffc(%rdi)\n"  // over two pages
    "  cmp %r8, 0xffc(%rdi)\n"
    "  setne %bl\n"
    "  or %bl, %bpl\n"
    "  mov %r8, %rax\n"  // two pages of it, and on to others, where the pages lie otherwise
    "  add $0x2000, %rdi\n"
    "  mov $1024, %ecx\n"
    "  cld\n"
    "  rep stosq\n"
    "  mov $0x802000, %esi\n"
    "  mov $0x805008, %edi\n"
    "  mov $1000, %ecx\n"
    "  rep movsq\n"
    "  mov $0x802000, %esi\n"
    "  mov $0x805008, %edi\n"
    "  mov $1000, %ecx\n"
    "  repe cmpsq\n"
    "  setne %bl\n"
    "  or %bl, %bpl\n"
    "  std\n"  // downward, element by element
    "  mov $0x803ff8, %esi\n"
    "  mov $0x808ff8, %edi\n"
    "  mov $300, %ecx\n"
    "  rep movsq\n"
    "  cld\n"
    "  mov $0x802000, %esi\n"
    "  lodsq\n"
    "  mov $0x802000, %edi\n"
    "  scasq\n"
    "  setne %bl\n"
    "  or %bl, %bpl\n"
    "  mov $0x800000, %edi\n"
    "  movq %r8, %xmm1\n"
    "  punpcklqdq %xmm1, %xmm1\n"
    "  movdqu %xmm1, 0x9ff8(%rdi)\n"  // over two pages
    "  movdqu 0x9ff8(%rdi), %xmm2\n"
    "  movdqa %xmm2, 0xa100(%rdi)\n"
    "  pshufd $0x4e, 0xa100(%rdi), %xmm3\n"
    "  fxsave 0xa200(%rdi)\n"
    "  mov $0x80b004, %esp\n"  // a stack whose words lie over two pages
    "  push %r8\n"
    "  pop %rcx\n"
    "  push %r8\n"
    "  pushq (%rsp)\n"
    "  popq 0xa000(%rdi)\n"
    "  pop %rcx\n"
    "  mov %r8, %rax\n"
    "  xchg %rax, 0x8ffc(%rdi)\n"
    "  lock cmpxchg %r8, 0xa008(%rdi)\n"
    "  lock xadd %rax, 0xaffc(%rdi)\n"
    "  mov %r8, %rbx\n"
    "  mov %r8, %rcx\n"
    "  mov %r8, %rax\n"
    "  mov %r8, %rdx\n"
    "  lock cmpxchg16b 0xa010(%rdi)\n"
    "  mov $0x80c100, %esi\n"  // code that has it in itself: in a page, and over two
    "  call write_code\n"
    "  call *%rsi\n"
    "  call *%rsi\n"
    "  cmp %r8, %rax\n"
    "  setne %bl\n"
    "  or %bl, %bpl\n"
    "  mov $0x80cffb, %esi\n"
    "  call write_code\n"
    "  call *%rsi\n"
    "  cmp %r8, %rax\n"
    "  setne %bl\n"
    "  or %bl, %bpl\n"
    "  cmp %rax, (%rdi)\n"
    "  dec %r15d\n"
    "  jnz again\n"
    "  mov $0x20000, %esp\n"
    "  pxor %xmm1, %xmm1\n"
    "  pxor %xmm2, %xmm2\n"
    "  pxor %xmm3, %xmm3\n"
    "  xor %r8d, %r8d\n"  // in no register when the host looks
    "  xor %ebx, %ebx\n"
    "  xor %ecx, %ecx\n"
    "  xor %edx, %edx\n"
    "  mov $1, %eax\n"
    "  out %al, $0xea\n"
    "  mov $0x800000, %edi\n"
    "  mov $0, %edx\n"
    "  call convert\n"
    "  mov $2, %eax\n"
    "  out %al, $0xea\n"
    "  hlt\n"
    "write_code:\n"  // movabs $r8, %rax; ret
    "  movw $0xb848, (%rsi)\n"
    "  mov %r8, 2(%rsi)\n"
    "  movb $0xc3, 10(%rsi)\n"
    "  ret\n"
    "convert:\n"
    "  mov $12, %eax\n"
    "  mov %rdi, %rbx\n"
    "  mov $16, %ecx\n"
    "  vmcall\n"
    "  test %rax, %rax\n"
    "  jnz 1f\n"
    "  ret\n"
    "1: hlt\n"
    "guest_end:\n"
    ".popsection\n");
extern const char guest_begin[], guest_end[];

static struct machine machine;
static int file;

static void create_private_machine(void) {
  struct machine* const m = &machine;
  m->kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
  REQUIRE(m->kvm >= 0);
  m->vm = ioctl(m->kvm, KVM_CREATE_VM, KVM_X86_SW_PROTECTED_VM);
  REQUIRE(m->vm >= 0);
  struct kvm_enable_cap cap = {.cap = KVM_CAP_EXIT_HYPERCALL, .args = {1u << kConvert}};
  REQUIRE(ioctl(m->vm, KVM_ENABLE_CAP, &cap) == 0);
  m->memory = mmap(NULL, kMemorySize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  REQUIRE(m->memory != MAP_FAILED && set_slot(m->vm, 0, 0, m->memory, kMemorySize, 0) == 0);
  set_entry(m, kPml4, 0, kPdpt | 3);
  set_entry(m, kPdpt, 0, kPd | 3);
  for (unsigned i = 0; i < 512; i++) set_entry(m, kPd, i, ((uint64_t)i << 21) | 0x83);
  memcpy(m->memory + kCode, guest_begin, (size_t)(guest_end - guest_begin));
  struct kvm_create_guest_memfd size = {.size = kPages * kPage};
  file = ioctl(m->vm, KVM_CREATE_GUEST_MEMFD, &size);
  void* const shared =
      mmap(NULL, kPages * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  struct kvm_userspace_memory_region2 both = {.slot = 1,
                                              .flags = KVM_MEM_GUEST_MEMFD,
                                              .guest_phys_addr = kPrivate,
                                              .memory_size = kPages * kPage,
                                              .userspace_addr = (uintptr_t)shared,
                                              .guest_memfd = (uint32_t)file};
  REQUIRE(file >= 0 && ioctl(m->vm, KVM_SET_USER_MEMORY_REGION2, &both) == 0);
  m->vcpu = ioctl(m->vm, KVM_CREATE_VCPU, 0);
  m->run_size = ioctl(m->kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
  m->run = mmap(NULL, (size_t)m->run_size, PROT_READ | PROT_WRITE, MAP_SHARED, m->vcpu, 0);
  REQUIRE(m->vcpu >= 0 && m->run != MAP_FAILED);
  struct {
    struct kvm_cpuid2 head;
    struct kvm_cpuid_entry2 entries[256];
  } list = {.head = {.nent = 256}};
  REQUIRE(ioctl(m->kvm, KVM_GET_SUPPORTED_CPUID, &list) == 0);
  REQUIRE(ioctl(m->vcpu, KVM_SET_CPUID2, &list) == 0);
  enter_long_mode(m);
  struct kvm_sregs s;
  REQUIRE(ioctl(m->vcpu, KVM_GET_SREGS, &s) == 0);
  s.cr4 |= 1u << 9;  // OSFXSR
  REQUIRE(ioctl(m->vcpu, KVM_SET_SREGS, &s) == 0);
  set_rip(m, kCode);
}

static void answer_conversion(void) {
  const uint64_t to_private = machine.run->hypercall.args[2] >> 4 & 1;
  struct kvm_memory_attributes change = {.address = machine.run->hypercall.args[0],
                                         .size = machine.run->hypercall.args[1] * kPage,
                                         .attributes = to_private << 3};
  REQUIRE(ioctl(machine.vm, KVM_SET_MEMORY_ATTRIBUTES, &change) == 0);
  if (!to_private) {
    REQUIRE(fallocate(file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, kPages * kPage) == 0);
  }
  machine.run->hypercall.ret = 0;
}

// Post: the guest has said `what`.
static void run_until(unsigned what) {
  for (;;) {
    const unsigned reason = run_to_exit(&machine);
    if (reason == KVM_EXIT_HYPERCALL) {
      answer_conversion();
      continue;
    }
    REQUIRE(reason == KVM_EXIT_IO && machine.run->io.port == kSays);
    REQUIRE(*((uint8_t*)machine.run + machine.run->io.data_offset) == what);
    struct kvm_regs r;
    REQUIRE(ioctl(machine.vcpu, KVM_GET_REGS, &r) == 0 && (r.rbp & 0xff) == 0);
    return;
  }
}

// --- Looking ---

enum { kChunk = 1 << 16 };
static uint8_t buffer[kChunk + 8];

static unsigned count_in(int memory, uintptr_t at, uintptr_t end, int complain) {
  unsigned found = 0;
  while (at < end) {
    const size_t left = end - at, size = left < sizeof buffer ? left : sizeof buffer;
    const ssize_t got = pread(memory, buffer, size, (off_t)at);
    for (ssize_t i = 0; i + 8 <= got; i++) {
      uint64_t word;
      memcpy(&word, buffer + i, sizeof word);
      if ((word ^ key) != hidden) continue;
      found++;
      if (complain) fprintf(stderr, "found at %lx\n", (unsigned long)(at + (uintptr_t)i));
    }
    at += got <= 0 ? kPage : (size_t)got < size ? (size_t)got : kChunk;
    memset(buffer, 0, sizeof buffer);
  }
  return found;
}

struct mapping {
  uintptr_t first, end;
  int readable, engines, dumped;
};

// The next entry of /proc/self/smaps.
static int next_mapping(FILE* maps, struct mapping* m) {
  static char line[4608];
  char rights[5] = "";
  int begun = 0;
  while (fgets(line, sizeof line, maps) != NULL) {
    if (!begun) {
      REQUIRE(sscanf(line, "%lx-%lx %4s", &m->first, &m->end, rights) == 3);
      const int kernels = strstr(line, "[vvar") != NULL || strstr(line, "[vsyscall]") != NULL;
      m->readable = rights[0] == 'r' && !kernels;
      m->engines = strstr(line, "/memfd:stagetwo:pages:kvm-gmem") != NULL ||
                   strstr(line, "/memfd:stagetwo:1:vcpu") != NULL;
      begun = 1;
    } else if (strncmp(line, "VmFlags:", 8) == 0) {
      m->dumped = strstr(line, " dd") == NULL;
      return 1;
    }
  }
  return 0;
}

// How often it stands in mappings of that kind; where it does, they are not dumped.
static unsigned look(int engines) {
  const int memory = open("/proc/self/mem", O_RDONLY | O_CLOEXEC);
  FILE* const maps = fopen("/proc/self/smaps", "re");
  REQUIRE(memory >= 0 && maps != NULL);
  unsigned found = 0;
  struct mapping m;
  while (next_mapping(maps, &m)) {
    if (!m.readable || m.engines != engines) continue;
    const unsigned here = count_in(memory, m.first, m.end, !engines);
    REQUIRE(here == 0 || (engines && !m.dumped));
    found += here;
  }
  fclose(maps);
  close(memory);
  return found;
}

static void nowhere(void) {
  create_private_machine();
  run_until(kHolds);
  REQUIRE(look(0) == 0);
  REQUIRE(look(1) != 0);  // it is there to be found
  run_until(kGaveUp);
  REQUIRE(look(0) == 0);
  REQUIRE(look(1) == 0);
}

// A signal stores the registers it finds on the stack of the thread.
static volatile unsigned signals;
static void count_signal(int signal) {
  (void)signal;
  signals++;
}
static void interrupted(void) {
  create_private_machine();
  const struct sigaction action = {.sa_handler = count_signal};
  const struct itimerval often = {{0, 100}, {0, 100}}, never = {{0, 0}, {0, 0}};
  REQUIRE(sigaction(SIGALRM, &action, NULL) == 0 && setitimer(ITIMER_REAL, &often, NULL) == 0);
  run_until(kHolds);
  REQUIRE(setitimer(ITIMER_REAL, &never, NULL) == 0 && signals != 0);
  REQUIRE(look(0) == 0);
}

int main(int argc, char** argv) {
  static const struct test_case kCases[] = {
      {"nowhere", nowhere}, {"interrupted", interrupted}, {NULL, NULL}};
  return run_case(argc, argv, kCases);
}

// SPDX-License-Identifier: Apache-2.0
// A machine with private memory: a guest that keeps a secret in pages its VMM cannot map, and asks
// by hypercall for conversions in both directions. The VMM serves them as a confidential VM's
// would: change the attribute, give the backing of the half that was left away, run on. It measures
// nothing it cannot check: what it says of the secret it has looked for in all of its own memory.
//
// Only the public KVM ABI is used. Where /dev/kvm offers software-protected VMs it runs there, too:
//
//     build/bin/stagetwo run -- build/examples/private_vmm
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#if __has_include(<stagetwo/uapi/kvm.h>)
#include <stagetwo/uapi/kvm.h>
#else
#include "abi/kvm/uapi.h"
#endif

enum {
  kPage = 4096,
  kPml4 = 0x1000,
  kPdpt = 0x2000,
  kPd = 0x3000,
  kCode = 0x10000,
  kStackTop = 0x20000,
  kMemorySize = 0x400000,
  kData = 0x800000,  // pages that may be private
  kDataPages = 4,
  kPort = 0xea,
  kMapGpaRange = 12,  // KVM_HC_MAP_GPA_RANGE
};
// The guest's secret, and what it is hidden by wherever it must not be found.
// Both volatile, or the compiler would put the secret itself into our code.
static const volatile uint64_t secret_key = UINT64_C(0x0f1e2d3c4b5a6978);
static const volatile uint64_t hidden_secret = UINT64_C(0x5ec2e70badc0ffee);

enum { kWrote = 1, kKeepsSecret = 2, kReadShared = 3, kReadPrivate = 4 };

// rbx, rcx, rdx: page, count, attributes of a hypercall. What it says goes out by the port, and rbp
// is its finding: 1 where it saw what it expects.
__asm__(
    ".pushsection .rodata\n"
    ".globl guest_begin, guest_end\n"
    "guest_begin:\n"
    "  mov $0x800000, %rdi\n"
    "  movq $0x1111, (%rdi)\n"  // all memory begins shared
    "  mov $1, %al\n"
    "  out %al, $0xea\n"
    "  mov $16, %edx\n"  // make it private
    "  call convert\n"
    "  movabs $0x5ec2e70badc0ffee, %r8\n"
    "  movabs $0x0f1e2d3c4b5a6978, %r9\n"
    "  xor %r9, %r8\n"
    "  mov %r8, (%rdi)\n"  // the secret, in a page of its own
    "  cmp %r8, (%rdi)\n"
    "  sete %bpl\n"
    "  xor %r8, %r8\n"  // and in no register when the host looks
    "  mov $2, %al\n"
    "  out %al, $0xea\n"
    "  mov $0, %edx\n"  // share the page again
    "  call convert\n"
    "  cmpq $0x2222, (%rdi)\n"  // what the host wrote into its side meanwhile
    "  sete %bpl\n"
    "  mov $3, %al\n"
    "  out %al, $0xea\n"
    "  mov $16, %edx\n"
    "  call convert\n"
    "  cmpq $0, (%rdi)\n"  // the old private page was given away
    "  sete %bpl\n"
    "  mov $4, %al\n"
    "  out %al, $0xea\n"
    "  hlt\n"
    "convert:\n"
    "  mov $12, %eax\n"
    "  mov %rdi, %rbx\n"
    "  mov $4, %ecx\n"
    "  vmcall\n"
    "  test %rax, %rax\n"
    "  jnz 1f\n"
    "  ret\n"
    "1: hlt\n"
    "guest_end:\n"
    ".popsection\n");
extern const char guest_begin[], guest_end[];

struct machine {
  int kvm, vm, vcpu, file;
  uint8_t* memory;
  uint8_t* shared;  // the shared half of the pages at kData
  struct kvm_run* run;
  unsigned conversions, told;
};

static void must(int ok, const char* what) {
  if (ok) return;
  fprintf(stderr, "private_vmm: %s: %s\n", what, strerror(errno));
  exit(1);
}

static void* fresh_memory(size_t size) {
  void* at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  must(at != MAP_FAILED, "mmap");
  return at;
}

// ---- the machine -------------------------------------------------------------------------------

static void build_page_tables(struct machine* m) {
  const uint64_t present_write = 3, large = 0x80;
  uint64_t* const pml4 = (uint64_t*)(m->memory + kPml4);
  uint64_t* const pdpt = (uint64_t*)(m->memory + kPdpt);
  uint64_t* const pd = (uint64_t*)(m->memory + kPd);
  pml4[0] = kPdpt | present_write;
  pdpt[0] = kPd | present_write;
  for (unsigned i = 0; i < 512; i++) pd[i] = ((uint64_t)i << 21) | present_write | large;
}

static void create_memory(struct machine* m) {
  m->memory = fresh_memory(kMemorySize);
  m->shared = fresh_memory(kDataPages * kPage);
  build_page_tables(m);
  memcpy(m->memory + kCode, guest_begin, (size_t)(guest_end - guest_begin));
  struct kvm_userspace_memory_region2 plain = {
      .slot = 0, .memory_size = kMemorySize, .userspace_addr = (uintptr_t)m->memory};
  must(ioctl(m->vm, KVM_SET_USER_MEMORY_REGION2, &plain) == 0, "the slot of plain memory");

  struct kvm_create_guest_memfd size = {.size = kDataPages * kPage};
  m->file = ioctl(m->vm, KVM_CREATE_GUEST_MEMFD, &size);
  must(m->file >= 0, "KVM_CREATE_GUEST_MEMFD");
  struct kvm_userspace_memory_region2 both = {.slot = 1,
                                              .flags = KVM_MEM_GUEST_MEMFD,
                                              .guest_phys_addr = kData,
                                              .memory_size = kDataPages * kPage,
                                              .userspace_addr = (uintptr_t)m->shared,
                                              .guest_memfd = (uint32_t)m->file};
  must(ioctl(m->vm, KVM_SET_USER_MEMORY_REGION2, &both) == 0, "the slot of both halves");
  must(mmap(NULL, kPage, PROT_READ, MAP_SHARED, m->file, 0) == MAP_FAILED, "a file nobody maps");
}

static void create_vcpu(struct machine* m) {
  m->vcpu = ioctl(m->vm, KVM_CREATE_VCPU, 0);
  must(m->vcpu >= 0, "KVM_CREATE_VCPU");
  const int size = ioctl(m->kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
  void* run = mmap(NULL, (size_t)size, PROT_READ | PROT_WRITE, MAP_SHARED, m->vcpu, 0);
  must(run != MAP_FAILED, "mmap of the run page");
  m->run = run;
  struct kvm_sregs s;
  must(ioctl(m->vcpu, KVM_GET_SREGS, &s) == 0, "KVM_GET_SREGS");
  const struct kvm_segment code = {
      .limit = 0xffffffff, .selector = 0x8, .type = 11, .present = 1, .s = 1, .l = 1, .g = 1};
  const struct kvm_segment data = {
      .limit = 0xffffffff, .selector = 0x10, .type = 3, .present = 1, .s = 1, .db = 1, .g = 1};
  s.cs = code;
  s.ds = s.es = s.fs = s.gs = s.ss = data;
  s.cr3 = kPml4;
  s.cr4 = 1u << 5;
  s.efer = (1u << 8) | (1u << 10);
  s.cr0 = 1u | (1u << 4) | (1u << 31);
  must(ioctl(m->vcpu, KVM_SET_SREGS, &s) == 0, "KVM_SET_SREGS");
  struct kvm_regs r = {.rip = kCode, .rsp = kStackTop, .rflags = 2};
  must(ioctl(m->vcpu, KVM_SET_REGS, &r) == 0, "KVM_SET_REGS");
}

static int create_machine(struct machine* m) {
  m->kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
  must(m->kvm >= 0, "open /dev/kvm");
  const int types = ioctl(m->kvm, KVM_CHECK_EXTENSION, KVM_CAP_VM_TYPES);
  if ((types >> KVM_X86_SW_PROTECTED_VM & 1) == 0) return 0;
  m->vm = ioctl(m->kvm, KVM_CREATE_VM, KVM_X86_SW_PROTECTED_VM);
  must(m->vm >= 0, "KVM_CREATE_VM");
  struct kvm_enable_cap cap = {.cap = KVM_CAP_EXIT_HYPERCALL, .args = {1u << kMapGpaRange}};
  must(ioctl(m->vm, KVM_ENABLE_CAP, &cap) == 0, "KVM_CAP_EXIT_HYPERCALL");
  create_memory(m);
  create_vcpu(m);
  return 1;
}

// ---- the secret, looked for in all that this process can read ----------------------------------

struct scan {
  unsigned found, in_engine;
  unsigned long long bytes;
};

static unsigned count_secrets(const uint8_t* at, size_t size) {
  const uint64_t key = secret_key, hidden = hidden_secret;
  unsigned found = 0;
  for (size_t i = 0; i + 8 <= size; i++) {
    uint64_t word;
    memcpy(&word, at + i, sizeof word);
    found += (word ^ key) == hidden;  // it is never in a variable of ours
  }
  return found;
}

static void scan_range(int mem, uintptr_t at, uintptr_t end, int engine, struct scan* result) {
  enum { kChunk = 1 << 16 };
  static uint8_t buffer[kChunk + 8];
  while (at < end) {
    const size_t left = end - at, size = left < sizeof buffer ? left : sizeof buffer;
    const ssize_t got = pread(mem, buffer, size, (off_t)at);
    // Up to a page that nobody can read; the rest of the mapping comes after it.
    at += got <= 0 ? kPage : (size_t)got < size ? (size_t)got : kChunk;
    if (got <= 0) continue;
    const unsigned found = count_secrets(buffer, (size_t)got);
    if (engine) {
      result->in_engine += found;
    } else {
      result->found += found;
    }
    result->bytes += (unsigned long long)got;
    memset(buffer, 0, sizeof buffer);
  }
}

static struct scan scan_own_memory(void) {
  struct scan result = {0};
  const int mem = open("/proc/self/mem", O_RDONLY | O_CLOEXEC);
  FILE* const maps = fopen("/proc/self/maps", "re");
  must(mem >= 0 && maps != NULL, "/proc/self");
  static char line[4608];
  while (fgets(line, sizeof line, maps) != NULL) {
    unsigned long first, end;
    char rights[5];
    if (sscanf(line, "%lx-%lx %4s", &first, &end, rights) != 3 || rights[0] != 'r') continue;
    if (strstr(line, "[vvar") != NULL || strstr(line, "[vsyscall]") != NULL) continue;
    // The engine's own mapping of the file: where a kernel would use its direct map.
    scan_range(mem, first, end, strstr(line, "/memfd:stagetwo:pages:kvm-gmem") != NULL, &result);
  }
  fclose(maps);
  close(mem);
  return result;
}

// ---- what the guest asks for -------------------------------------------------------------------

static void convert(struct machine* m) {
  const uint64_t gpa = m->run->hypercall.args[0], pages = m->run->hypercall.args[1];
  const int to_private = (m->run->hypercall.args[2] >> 4 & 1) != 0;
  struct kvm_memory_attributes change = {
      .address = gpa,
      .size = pages * kPage,
      .attributes = to_private ? KVM_MEMORY_ATTRIBUTE_PRIVATE : 0};
  must(ioctl(m->vm, KVM_SET_MEMORY_ATTRIBUTES, &change) == 0, "KVM_SET_MEMORY_ATTRIBUTES");
  // The half that is left is given back: private pages by a hole in the file, shared ones as any
  // memory of the VMM's own.
  if (to_private) {
    must(madvise(m->shared + (gpa - kData), change.size, MADV_DONTNEED) == 0, "madvise");
  } else {
    must(fallocate(m->file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)(gpa - kData),
                   (off_t)change.size) == 0,
         "fallocate");
  }
  printf("host   made %llu pages %s at the guest's request; their %s backing is gone\n",
         (unsigned long long)pages, to_private ? "private" : "shared",
         to_private ? "shared" : "private");
  m->run->hypercall.ret = 0;
  m->conversions++;
}

static void listen_to(struct machine* m, unsigned said) {
  uint64_t* const mine = (uint64_t*)m->shared;
  struct kvm_regs r;
  must(ioctl(m->vcpu, KVM_GET_REGS, &r) == 0, "KVM_GET_REGS");
  must(said == ++m->told && (said == kWrote || (r.rbp & 1) == 1), "what the guest saw");
  if (said == kWrote) {
    must(*mine == 0x1111, "the guest's store");
    printf("guest  wrote to a shared page: the host reads it\n");
  } else if (said == kKeepsSecret) {
    must(*mine == 0, "the shared half");
    *mine = 0x2222;
    const struct scan seen = scan_own_memory();
    must(seen.found == 0, "the secret where the VMM can read it");
    printf("guest  keeps a secret in a private page: the host finds zeroes where it was shared\n");
    printf("host   looked through all it can read: the secret is nowhere\n");
    if (seen.in_engine != 0) {
      printf("engine has it in a mapping of its own, which stands for the kernel's\n");
    }
  } else if (said == kReadShared) {
    printf("guest  reads what the host wrote while the page was private\n");
  } else if (said == kReadPrivate) {
    printf("guest  finds zeroes in its new private page: the secret is gone\n");
  }
}

int main(void) {
  struct machine m = {0};
  setvbuf(stdout, NULL, _IOLBF, 0);
  if (!create_machine(&m)) {
    printf("this /dev/kvm has no software-protected VMs\n");
    return 4;
  }
  for (;;) {
    must(ioctl(m.vcpu, KVM_RUN, 0) == 0 || errno == EINTR, "KVM_RUN");
    switch (m.run->exit_reason) {
      case KVM_EXIT_HYPERCALL:
        convert(&m);
        break;
      case KVM_EXIT_IO:
        listen_to(&m, *((uint8_t*)m.run + m.run->io.data_offset));
        break;
      case KVM_EXIT_INTR:
        break;
      case KVM_EXIT_HLT:
        must(m.told == kReadPrivate && m.conversions == 3, "all of the story");
        printf("guest  halted after %u conversions\n", m.conversions);
        return 0;
      default:
        fprintf(stderr, "private_vmm: exit reason %u was not expected\n", m.run->exit_reason);
        return 1;
    }
  }
}

// SPDX-License-Identifier: Apache-2.0
// A machine whose guest becomes secure, as POWER's do: it asks by UV_ESM, and from then on its VMM
// reads ciphertext wherever it looks, but for the pages the guest shares for I/O. The VMM pages it
// out and back, saves its sealed pages and puts them in again, plugs memory and takes it out, tries
// an older copy of a page, and resets it. It measures nothing it cannot check: what it says of the
// secret it has looked for in all of its own memory.
//
// Only the public KVM ABI is used, POWER's part of it: no x86 kernel offers it. The guest's calls
// have POWER's numbers and go by VMCALL (docs/howto-secure-guests.md):
//
//     build/bin/stagetwo run --secure -- build/examples/secure_vmm
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
  kSecret = 0x200000,
  kBuffers = 0x300000,  // two pages for I/O
  kMemorySize = 0x400000,
  kPlugged = 0x800000,
  kPluggedSize = 16 * kPage,
  kNotOffered = 4,
};
// The guest's secret, and what it is hidden by wherever it must not be found.
// Both volatile, or the compiler would put the secret itself into our code.
static const volatile uint64_t secret_key = UINT64_C(0x0f1e2d3c4b5a6978);
static const volatile uint64_t hidden_secret = UINT64_C(0x5ec2e70badc0ffee);

enum {
  kBecameSecure = 1,
  kShared,
  kCameBack,
  kWasRestored,
  kUsedPlugged,
  kUnshared,
  kChangedSecret,
  kStory,
};

// What it says goes out by the port, and rbp is its finding: 0 where all is as it expects. r12 is
// not 0 in its second life, which is short.
__asm__(
    ".pushsection .rodata\n"
    ".globl guest_begin, guest_end\n"
    "guest_begin:\n"
    "  mov $0xf110, %eax\n"  // UV_ESM: where the kernel begins, where the device tree is
    "  mov $0x10000, %ebx\n"
    "  mov $0x3000, %ecx\n"
    "  vmcall\n"
    "  mov %rax, %rbp\n"
    "  mov $1, %al\n"
    "  out %al, $0xea\n"
    "  test %r12, %r12\n"
    "  jnz 9f\n"
    "  call secret\n"
    "  mov %r8, 0x200000\n"  // the secret, in a page of its own
    "  xor %r8, %r8\n"       // and in no register when the host looks
    "  mov $0xf130, %eax\n"  // UV_SHARE_PAGE: first page, count
    "  mov $0x300, %ebx\n"
    "  mov $2, %ecx\n"
    "  vmcall\n"
    "  mov %rax, %rbp\n"
    "  movabs $0x6b73612065736165, %rax\n"
    "  mov %rax, 0x300000\n"
    "  mov $2, %al\n"
    "  out %al, $0xea\n"
    "  call same\n"
    "  cmpq $0x2222, 0x301000\n"  // what the host answered
    "  je 1f\n"
    "  mov $2, %ebp\n"
    "1: mov $3, %al\n"
    "  out %al, $0xea\n"
    "  call same\n"
    "  mov $4, %al\n"
    "  out %al, $0xea\n"
    "  mov 0x800000, %rbp\n"  // plugged: zeros
    "  movq $0x3333, 0x800000\n"
    "  mov $5, %al\n"
    "  out %al, $0xea\n"
    "  mov $0xf134, %eax\n"  // UV_UNSHARE_PAGE
    "  mov $0x300, %ebx\n"
    "  mov $2, %ecx\n"
    "  vmcall\n"
    "  mov %rax, %rbp\n"
    "  or 0x300000, %rbp\n"  // nothing is imported: zeros
    "  mov $6, %al\n"
    "  out %al, $0xea\n"
    "  incq 0x200008\n"  // the copy the host has of this page is an old one now
    "  mov $7, %al\n"
    "  out %al, $0xea\n"
    "  mov 0x200000, %rax\n"
    "9: hlt\n"
    "secret:\n"
    "  movabs $0x5ec2e70badc0ffee, %r8\n"
    "  movabs $0x0f1e2d3c4b5a6978, %r9\n"
    "  xor %r9, %r8\n"
    "  ret\n"
    "same:\n"
    "  call secret\n"
    "  xor 0x200000, %r8\n"
    "  mov %r8, %rbp\n"
    "  ret\n"
    "guest_end:\n"
    ".popsection\n");
extern const char guest_begin[], guest_end[];

struct machine {
  int kvm, vm, vcpu;
  uint8_t* memory;
  uint8_t* plugged;
  struct kvm_run* run;
  unsigned told, life;
  uint8_t old[kPage];  // of the secret's page, sealed
};

static void must(int ok, const char* what) {
  if (ok) return;
  fprintf(stderr, "secure_vmm: %s: %s\n", what, strerror(errno));
  exit(1);
}

static void* fresh_memory(size_t size) {
  void* at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  must(at != MAP_FAILED, "mmap");
  return at;
}

static int set_slot(struct machine* m, unsigned slot, uint64_t gpa, size_t size, void* at) {
  struct kvm_userspace_memory_region region = {
      .slot = slot, .guest_phys_addr = gpa, .memory_size = size, .userspace_addr = (uintptr_t)at};
  return ioctl(m->vm, KVM_SET_USER_MEMORY_REGION, &region);
}

// ---- the machine -------------------------------------------------------------------------------

static void load_guest(struct machine* m) {
  const uint64_t present_write = 3, large = 0x80;
  uint64_t* const pml4 = (uint64_t*)(m->memory + kPml4);
  uint64_t* const pdpt = (uint64_t*)(m->memory + kPdpt);
  uint64_t* const pd = (uint64_t*)(m->memory + kPd);
  pml4[0] = kPdpt | present_write;
  pdpt[0] = kPd | present_write;
  for (unsigned i = 0; i < 512; i++) pd[i] = ((uint64_t)i << 21) | present_write | large;
  memcpy(m->memory + kCode, guest_begin, (size_t)(guest_end - guest_begin));

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
  struct kvm_regs r = {.rip = kCode, .rsp = kStackTop, .rflags = 2, .r12 = m->life};
  must(ioctl(m->vcpu, KVM_SET_REGS, &r) == 0, "KVM_SET_REGS");
}

static int create_machine(struct machine* m) {
  m->kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
  must(m->kvm >= 0, "open /dev/kvm");
  if (ioctl(m->kvm, KVM_CHECK_EXTENSION, KVM_CAP_PPC_SECURE_GUEST) != 1) return 0;
  m->vm = ioctl(m->kvm, KVM_CREATE_VM, 0);
  must(m->vm >= 0, "KVM_CREATE_VM");
  struct kvm_enable_cap cap = {.cap = KVM_CAP_PPC_SECURE_GUEST, .args = {1}};
  must(ioctl(m->vm, KVM_ENABLE_CAP, &cap) == 0, "KVM_CAP_PPC_SECURE_GUEST");
  m->memory = fresh_memory(kMemorySize);
  must(set_slot(m, 0, 0, kMemorySize, m->memory) == 0, "the slot");
  m->vcpu = ioctl(m->vm, KVM_CREATE_VCPU, 0);
  must(m->vcpu >= 0, "KVM_CREATE_VCPU");
  const int size = ioctl(m->kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
  void* run = mmap(NULL, (size_t)size, PROT_READ | PROT_WRITE, MAP_SHARED, m->vcpu, 0);
  must(run != MAP_FAILED, "mmap of the run page");
  m->run = run;
  load_guest(m);
  return 1;
}

// ---- the secret, looked for in all that this process can read ----------------------------------

struct scan {
  unsigned found;      // where the VMM keeps its things
  unsigned in_engine;  // elsewhere in the process
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

static unsigned scan_range(int mem, uintptr_t at, uintptr_t end) {
  enum { kChunk = 1 << 16 };
  static uint8_t buffer[kChunk + 8];
  unsigned found = 0;
  while (at < end) {
    const size_t left = end - at, size = left < sizeof buffer ? left : sizeof buffer;
    const ssize_t got = pread(mem, buffer, size, (off_t)at);
    // Up to a page that nobody can read; the rest of the mapping comes after it.
    at += got <= 0 ? kPage : (size_t)got < size ? (size_t)got : kChunk;
    if (got <= 0) continue;
    found += count_secrets(buffer, (size_t)got);
    memset(buffer, 0, sizeof buffer);
  }
  return found;
}

static struct scan scan_own_memory(const struct machine* m) {
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
    // Secure memory nobody can read, not even so; where it had to be ordinary locked memory, it is
    // an anonymous mapping of the engine's.
    const uintptr_t mine = (uintptr_t)m->memory;
    const int is_memory = first < mine + kMemorySize && mine < end;
    const int is_named = strchr(line, '/') != NULL || strchr(line, '[') != NULL;
    const unsigned found = scan_range(mem, first, end);
    if (is_memory || is_named) {
      result.found += found;
    } else {
      result.in_engine += found;
    }
  }
  fclose(maps);
  close(mem);
  return result;
}

// ---- what the host does between two words of the guest's ---------------------------------------

// The guest's memory as the VMM has it, to a file and back: what is secure goes sealed.
static void save_and_restore(struct machine* m) {
  const int file = memfd_create("snapshot", MFD_CLOEXEC);
  must(file >= 0, "memfd_create");
  must(write(file, m->memory, kMemorySize) == kMemorySize, "the snapshot");
  // Sealed pages are memory like any other: they may leave, and come back.
  memset(m->memory + kSecret, 0, kPage);
  must(madvise(m->memory + kSecret + kPage, 255 * kPage, MADV_DONTNEED) == 0, "madvise");
  must(pread(file, m->memory, kMemorySize, 0) == kMemorySize, "the snapshot, back");
  close(file);
}

static void plug(struct machine* m) {
  m->plugged = fresh_memory(kPluggedSize);
  memset(m->plugged, 0x5a, kPluggedSize);
  must(set_slot(m, 1, kPlugged, kPluggedSize, m->plugged) == 0, "plugging");
}

static int is_zero(const uint8_t* at, size_t size) {
  return at[0] == 0 && memcmp(at, at + 1, size - 1) == 0;
}

static void unplug(struct machine* m) {
  must(*(volatile uint64_t*)m->plugged != 0x3333, "the guest's store in clear");
  must(set_slot(m, 1, kPlugged, 0, m->plugged) == 0, "unplugging");
  must(is_zero(m->plugged, kPluggedSize), "what was left");
  munmap(m->plugged, kPluggedSize);
}

static void listen_to(struct machine* m, unsigned said) {
  struct kvm_regs r;
  must(ioctl(m->vcpu, KVM_GET_REGS, &r) == 0, "KVM_GET_REGS");
  must(said == ++m->told && r.rbp == 0, "what the guest found");
  uint64_t* const secret = (uint64_t*)(m->memory + kSecret);
  switch (said) {
    case kBecameSecure:
      must(memcmp(m->memory + kCode, guest_begin, 16) != 0, "the guest's code in clear");
      printf("guest  is secure: the host finds its own code sealed, and it runs on\n");
      break;
    case kShared: {
      must(memcmp(m->memory + kBuffers, "ease ask", 8) == 0, "what the guest wrote");
      *(uint64_t*)(m->memory + kBuffers + kPage) = 0x2222;
      printf("guest  shared two pages for I/O: the host reads its request and answers\n");
      must((*secret ^ secret_key) != hidden_secret, "the secret in clear");
      const struct scan seen = scan_own_memory(m);
      must(seen.found == 0, "the secret where the VMM can read it");
      printf("host   looked through all it can read: the secret is nowhere, its page is noise\n");
      if (seen.in_engine != 0) printf("engine has it in locked memory of its own\n");
      break;
    }
    case kCameBack:
      printf("guest  reads the answer, and its secret, whose page had been paged out\n");
      save_and_restore(m);
      printf("host   saved the guest's sealed pages, gave them up and put them back\n");
      break;
    case kWasRestored:
      printf("guest  finds its secret again\n");
      plug(m);
      printf("host   plugged memory that was full of its own bytes\n");
      break;
    case kUsedPlugged:
      printf("guest  found zeros there, and wrote\n");
      unplug(m);
      printf("host   took the memory out: it sees sealed bytes before, and zeros afterwards\n");
      break;
    case kUnshared:
      must(!is_zero(m->memory + kBuffers, kPage), "the page is sealed");
      printf("guest  unshared its buffers: zeros for it, noise for the host\n");
      memcpy(m->old, secret, kPage);
      break;
    case kChangedSecret:
      must(memcmp(m->old, secret, kPage) != 0, "another sealing");
      memcpy(secret, m->old, kPage);
      printf("host   put an older copy of the secret's page in its place\n");
      break;
    default:
      must(0, "a word the guest does not know");
  }
}

// The guest has ended: its VMM tried something. Reset, it may live again.
static void start_again(struct machine* m) {
  must(m->run->exit_reason == KVM_EXIT_MEMORY_FAULT && m->run->memory_fault.gpa == kSecret,
       "the page that was refused");
  printf("engine refused it: the guest has ended at the page it was to read\n");
  must(ioctl(m->vm, KVM_PPC_SVM_OFF, 0) == 0, "KVM_PPC_SVM_OFF");
  must(is_zero(m->memory, kMemorySize), "memory after a reset");
  printf("host   reset it: all of its memory is zeros\n");
  m->life++;
  m->told = 0;
  load_guest(m);
}

int main(void) {
  struct machine m = {0};
  setvbuf(stdout, NULL, _IOLBF, 0);
  if (!create_machine(&m)) {
    printf("this /dev/kvm has no secure guests\n");
    return kNotOffered;
  }
  for (;;) {
    if (ioctl(m.vcpu, KVM_RUN, 0) != 0) {
      if (errno == EINTR) continue;
      must(errno == EHWPOISON && m.told == kChangedSecret, "KVM_RUN");
      start_again(&m);
      continue;
    }
    switch (m.run->exit_reason) {
      case KVM_EXIT_IO:
        listen_to(&m, *((uint8_t*)m.run + m.run->io.data_offset));
        break;
      case KVM_EXIT_HLT:
        must(m.life == 1 && m.told == kBecameSecure, "all of the story");
        printf("guest  halted in its second life\n");
        return 0;
      default:
        fprintf(stderr, "secure_vmm: exit reason %u was not expected\n", m.run->exit_reason);
        return 1;
    }
  }
}

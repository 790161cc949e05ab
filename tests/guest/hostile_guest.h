// SPDX-License-Identifier: Apache-2.0
#pragma once

// A secure guest of a few instructions that does what a port tells it, and what its VMM may see of
// its memory: no word. For hostile_vmm.c.

#include "tests/guest/small_vmm.h"

enum { kLoad = 1, kStore = 2, kCount = 3, kEsm = 0xF110, kShare = 0xF130, kUnshare = 0xF134 };
enum { kWindowFrame = kWindow / kPage, kWords = kPage / 4, kMemoryFault = 39 };

// start: number, EBX and ECX from port 0x10; does it; EAX to port 0x10; again.
static const unsigned char kGuest[] = {
    0xba, 0x10, 0x00,        // start: mov dx, 0x10
    0x66, 0xed,              // in eax, dx
    0x66, 0x89, 0xc6,        // mov esi, eax
    0x66, 0xed,              // in eax, dx
    0x66, 0x89, 0xc3,        // mov ebx, eax
    0x66, 0xed,              // in eax, dx
    0x66, 0x89, 0xc1,        // mov ecx, eax
    0x66, 0x89, 0xf0,        // mov eax, esi
    0x3c, 0x01, 0x74, 0x0d,  // cmp al, 1; je load
    0x3c, 0x02, 0x74, 0x0e,  // cmp al, 2; je store
    0x3c, 0x03, 0x74, 0x14,  // cmp al, 3; je count
    0x0f, 0x01, 0xc1,        // vmcall
    0xeb, 0x08,              // jmp out
    0x66, 0x8b, 0x07,        // load: mov eax, [bx]
    0xeb, 0x03,              // jmp out
    0x66, 0x89, 0x0f,        // store: mov [bx], ecx
    0xba, 0x10, 0x00,        // out: mov dx, 0x10
    0x66, 0xef,              // out dx, eax
    0xeb, 0xcb,              // jmp start
    0x90, 0x90, 0x90, 0x90,  // count: more than the loop has, which is decoded next
    0x67, 0x0f, 0x1f, 0x80,  // nop dword [eax + a word that comes into no register]
    0xa1, 0xe7, 0xc2, 0x5e,  //
    0x66, 0xff, 0x07,        // inc: inc dword [bx]
    0x66, 0x83, 0x7f, 0x04,  // cmp dword [bx + 4], 0
    0x00, 0x74, 0xf6,        // je inc
    0xeb, 0xe1,              // jmp out
};

static const char* now = "";
static uint32_t said;

static void must(int holds, const char* what) {
  if (holds) return;
  printf("failed: %s: %s: %s\n", now, what, strerror(errno));
  fflush(stdout);
  _exit(1);
}

// ---- the guest ---------------------------------------------------------------------------------

// Until it has said what it was to. 0, or the errno of KVM_RUN; -1: it has no program any more.
static int order_from(const uint32_t* words, unsigned given) {
  for (;;) {
    if (ioctl(vcpu, KVM_RUN, 0) != 0) {
      if (errno == EINTR) continue;
      return errno;
    }
    if (run->exit_reason == KVM_EXIT_MMIO) {
      memset(run->mmio.data, 0xff, sizeof run->mmio.data);
      continue;
    }
    if (run->exit_reason != KVM_EXIT_IO) return -1;
    char* const data = (char*)run + run->io.data_offset;
    if (run->io.direction == KVM_EXIT_IO_OUT) {
      memcpy(&said, data, sizeof said);
      return 0;
    }
    if (given == 3) return -1;
    memcpy(data, &words[given++], sizeof said);
  }
}
static int order(uint32_t number, uint32_t ebx, uint32_t ecx) {
  const uint32_t words[3] = {number, ebx, ecx};
  return order_from(words, 0);
}
// What it could not do it does now.
static int go_on(void) {
  return order_from(NULL, 3);
}
static uint32_t text(unsigned page, unsigned word) {
  return 0xc0de0000u + page * 0x1000 + word * 4;
}
static void guest_has_its_page(unsigned page) {
  must(order(kLoad, page * kPage + 8, 0) == 0, "the guest's load");
  must(said == text(page, 2), "what the guest reads");
  must(order(kLoad, page * kPage + 4092, 0) == 0 && said == text(page, 1023),
       "the page's last word");
}
static void guest_has_all(void) {
  for (unsigned page = 0; page < kPages; page++) guest_has_its_page(page);
}
// It was not its page that came back.
static void guest_has_ended(unsigned page) {
  must(order(kLoad, page * kPage, 0) == EHWPOISON, "the guest's end");
  uint64_t fault[3];  // flags, gpa, size; not in the headers of Debian
  memcpy(fault, &run->hw, sizeof fault);
  must(run->exit_reason == kMemoryFault && fault[1] == (uint64_t)kWindow + page * kPage,
       "where it ended");
  must(order(kLoad, 0, 0) == EHWPOISON, "for good");
}

// ---- the VMM -----------------------------------------------------------------------------------

// Words of the guest's in `bytes`, whichever page's.
static unsigned clear_words(const void* bytes, size_t size) {
  unsigned found = 0;
  for (size_t at = 0; at + 4 <= size; at += 4) {
    uint32_t word;
    memcpy(&word, (const char*)bytes + at, sizeof word);
    found += (word & 0xffff0000u) == 0xc0de0000u && (word & 0xffff) < kPages * 0x1000 &&
             (word & 0xfff) == (at & 0xfff);
  }
  return found;
}
static char* page_at(unsigned page) {
  return window + page * kPage;
}
static void sees_nothing(const void* at, size_t size) {
  must(clear_words(at, size) == 0, "what the VMM reads");
}

static void begin_normal(void) {
  create(kGuest, sizeof kGuest);
  struct kvm_enable_cap cap = {.cap = KVM_CAP_PPC_SECURE_GUEST};
  must(ioctl(vm, KVM_ENABLE_CAP, &cap) == 0, "KVM_CAP_PPC_SECURE_GUEST");
  for (unsigned page = 0; page < kPages; page++) {
    for (unsigned word = 0; word < kWords; word++) {
      ((uint32_t*)page_at(page))[word] = text(page, word);
    }
  }
  must(clear_words(window, kBytes) == kBytes / 4, "the text, which the test finds");
}
static void begin(void) {
  begin_normal();
  must(order(kEsm, 1, 1) == 0 && said == 0, "UV_ESM");
}
static void end(void) {
  const int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
  munmap(run, (size_t)ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0));
  close(kvm);
  close(vcpu);
  close(vm);
}
static void fresh_at(char* at, size_t size) {
  must(mmap(at, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == at,
       "mmap");
}
static void seal(unsigned page) {
  sees_nothing(page_at(page), kPage);
}

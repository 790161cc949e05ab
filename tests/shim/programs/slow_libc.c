// SPDX-License-Identifier: Apache-2.0
// Exports byte-wise string functions as the kernel's selftests do, and counts who calls them.
// Linked with -rdynamic, so they come first in symbol lookup.
#include "machine.h"

static volatile unsigned long calls;

void* memcpy(void* to, const void* from, size_t size) {
  calls++;
  for (size_t i = 0; i < size; i++) ((volatile char*)to)[i] = ((const char*)from)[i];
  return to;
}
void* memset(void* to, int byte, size_t size) {
  calls++;
  for (size_t i = 0; i < size; i++) ((volatile char*)to)[i] = (char)byte;
  return to;
}
int memcmp(const void* left, const void* right, size_t size) {
  calls++;
  const volatile unsigned char *a = left, *b = right;
  for (size_t i = 0; i < size; i++) {
    if (a[i] != b[i]) return a[i] - b[i];
  }
  return 0;
}
size_t strnlen(const char* text, size_t limit) {
  calls++;
  size_t size = 0;
  while (size < limit && ((const volatile char*)text)[size] != 0) size++;
  return size;
}

int main(void) {
  struct machine m;
  create_machine(&m, kHalt, sizeof kHalt);
  const unsigned long own = calls;
  for (unsigned i = 0; i < 16; i++) {
    close(open("/dev/kvm", O_RDWR));
    close(open("/sys/module/kvm/parameters/tdp_mmu", O_RDONLY));
    struct kvm_regs r;
    struct kvm_sregs s;
    REQUIRE(ioctl(m.vcpu, KVM_GET_REGS, &r) == 0);
    REQUIRE(ioctl(m.vcpu, KVM_GET_SREGS, &s) == 0);
  }
  REQUIRE(run_to_exit(&m) == KVM_EXIT_HLT);
  REQUIRE(calls == own);  // nobody but this file calls them
  return 0;
}

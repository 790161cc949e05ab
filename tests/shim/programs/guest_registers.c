// SPDX-License-Identifier: Apache-2.0
// A guest that drives Intel I/OAT itself: its VMM maps the function's registers and gives them to
// KVM as a slot, as QEMU does. The guest has it copy; the VMM sees neither loads nor stores.
#define _GNU_SOURCE
#include "machine.h"
#undef REQUIRE
#define kPage kPageOfVfio
#include "vfio_client.h"
#undef kPage

enum { kBar = 0x800000, kBarSize = 0x4000, kFrom = 0x210000, kTo = 0x220000, kBytes = 4096 };
static const char kFunction[] = "/sys/bus/pci/devices/fffe:00:04.0";

struct copy {
  uint32_t size, control;
  uint64_t source, destination, next, unused[4];
};

// A driver's start of a channel, and one copy. What it hears from the device it tells at the end.
static const uint8_t kDriver[] = {
    0xbb, 0x00, 0x00, 0x80, 0x00,                          // mov ebx, kBar
    0xc6, 0x83, 0x84, 0x00, 0x00, 0x00, 0x20,              // movb [rbx + 84h], 20h: reset
    0xb8, 0x00, 0x10, 0x20, 0x00,                          // mov eax, 201000h
    0x48, 0x89, 0x83, 0x98, 0x00, 0x00, 0x00,              // mov [rbx + 98h], rax: completion
    0xb8, 0x00, 0x00, 0x20, 0x00,                          // mov eax, 200000h
    0x48, 0x89, 0x83, 0x90, 0x00, 0x00, 0x00,              // mov [rbx + 90h], rax: the chain
    0x66, 0xc7, 0x83, 0x80, 0x00, 0x00, 0x00, 0x0c, 0x00,  // movw [rbx + 80h], 0ch
    0xb9, 0x01, 0x00, 0x00, 0x00,                          // mov ecx, 1
    0x66, 0x87, 0x8b, 0x86, 0x00, 0x00, 0x00,              // xchg [rbx + 86h], cx: one copy
    0x48, 0x8b, 0x83, 0x88, 0x00, 0x00, 0x00,              // again: mov rax, [rbx + 88h]
    0x83, 0xe0, 0x07,                                      // and eax, 7: active?
    0x74, 0xf4,                                            // jz again
    0x8b, 0x93, 0x90, 0x00, 0x00, 0x00,                    // mov edx, [rbx + 90h]
    0xf4,                                                  // hlt
};

static int device;
static uint8_t* registers;

static unsigned try_run(struct machine* m) {
  set_rip(m, kCode);
  return ioctl(m->vcpu, KVM_RUN, 0) == 0 ? m->run->exit_reason : (unsigned)-errno;
}
static void command(uint16_t value) {
  REQUIRE(pwrite(device, &value, 2, ((off_t)VFIO_PCI_CONFIG_REGION_INDEX << 40) + 4) == 2);
}

int main(void) {
  struct machine m;
  create_machine(&m, kDriver, sizeof kDriver);
  const int container = open("/dev/vfio/vfio", O_RDWR), group = open(group_of(kFunction), O_RDWR);
  device = open_in_container(container, group, "fffe:00:04.0");
  REQUIRE(map_dma(container, m.memory, 0, kMemorySize) == 0);  // at the guest's own addresses
  command(6);
  registers = mmap(NULL, kBarSize, PROT_READ | PROT_WRITE, MAP_SHARED, device, 0);
  REQUIRE(registers != MAP_FAILED);
  REQUIRE(set_slot(m.vm, 1, kBar, registers, kBarSize, 0) == 0);

  const struct copy copy = {.size = kBytes, .control = 8, .source = kFrom, .destination = kTo};
  memcpy(m.memory + kData, &copy, sizeof copy);
  for (unsigned i = 0; i < kBytes; ++i) m.memory[kFrom + i] = (uint8_t)(i * 7);
  REQUIRE(try_run(&m) == KVM_EXIT_HLT);
  REQUIRE(memcmp(m.memory + kFrom, m.memory + kTo, kBytes) == 0);
  struct kvm_regs r;
  REQUIRE(ioctl(m.vcpu, KVM_GET_REGS, &r) == 0 && r.rdx == kData && (r.rax & 7) == 1);

  // Where they are not there to be stored to: EFAULT. Off, mapped to be read, and gone.
  command(4);
  REQUIRE(try_run(&m) == (unsigned)-EFAULT);
  command(6);
  REQUIRE(try_run(&m) == KVM_EXIT_HLT);
  REQUIRE(mprotect(registers, kBarSize, PROT_READ) == 0);
  REQUIRE(try_run(&m) == (unsigned)-EFAULT);
  REQUIRE(mprotect(registers, kBarSize, PROT_READ | PROT_WRITE) == 0);
  REQUIRE(try_run(&m) == KVM_EXIT_HLT);
  close(device);
  close(group);
  close(container);
  REQUIRE(try_run(&m) == KVM_EXIT_HLT);  // the mapping is what counts
  REQUIRE(munmap(registers, kBarSize) == 0);
  REQUIRE(try_run(&m) == (unsigned)-EFAULT);
  puts("done");
  return 0;
}

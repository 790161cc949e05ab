// SPDX-License-Identifier: Apache-2.0
// S4-19: a guest drives a mediated serial port as an 8250 with FIFOs, trigger level 14: what it
// sends comes back, the cause of the interrupt says when, nothing is lost, and a 17th byte that
// nobody reads is an overrun. Its VMM passes the registers on and knows nothing of them.
#define _GNU_SOURCE
#include <linux/vfio.h>

#include "small_vmm.h"

// ebx: how many times 14 bytes. Ports: 0xe0 wrong or missing bytes, 0xe1 LSR with a 17th byte, 0xe2
// how many bytes are to be read then.
__asm__(
    ".pushsection .rodata\n"
    ".globl driver_begin, driver_end\n"
    ".code16\n"
    "driver_begin:\n"
    "  mov $0x3fb, %dx\n"  // LCR: the divisor, then 8 bits
    "  mov $0x83, %al\n"
    "  out %al, %dx\n"
    "  mov $0x3f8, %dx\n"
    "  mov $1, %al\n"
    "  out %al, %dx\n"
    "  inc %dx\n"
    "  xor %al, %al\n"
    "  out %al, %dx\n"
    "  mov $0x3fb, %dx\n"
    "  mov $0x03, %al\n"
    "  out %al, %dx\n"
    "  mov $0x3fa, %dx\n"  // FCR: on, empty, 14
    "  mov $0xc7, %al\n"
    "  out %al, %dx\n"
    "  mov $0x3f9, %dx\n"  // IER: received
    "  mov $0x01, %al\n"
    "  out %al, %dx\n"
    "  mov $0x3fc, %dx\n"  // MCR: DTR, RTS, OUT2
    "  mov $0x0b, %al\n"
    "  out %al, %dx\n"
    "  xor %edi, %edi\n"  // bytes so far
    "  xor %ebp, %ebp\n"  // wrong ones
    "round:\n"
    "  mov %edi, %esi\n"
    "  mov $14, %cx\n"
    "1: call pattern\n"
    "  mov $0x3f8, %dx\n"
    "  out %al, %dx\n"
    "  inc %edi\n"
    "  loop 1b\n"
    "  mov %esi, %edi\n"
    "  mov $0x3fa, %dx\n"  // IIR
    "2: in %dx, %al\n"
    "  and $0x0f, %al\n"
    "  cmp $0x04, %al\n"
    "  jne 2b\n"
    "  mov $14, %cx\n"
    "3: mov $0x3fd, %dx\n"  // LSR: there is one
    "  in %dx, %al\n"
    "  test $1, %al\n"
    "  jz 4f\n"
    "  call pattern\n"
    "  mov %al, %ah\n"
    "  mov $0x3f8, %dx\n"
    "  in %dx, %al\n"
    "  cmp %al, %ah\n"
    "  je 5f\n"
    "4: inc %ebp\n"
    "5: inc %edi\n"
    "  loop 3b\n"
    "  dec %ebx\n"
    "  jnz round\n"
    "  mov %ebp, %eax\n"
    "  mov $0xe0, %dx\n"
    "  out %eax, %dx\n"
    // Seventeen, and nobody reads.
    "  mov $17, %cx\n"
    "  mov $0x3f8, %dx\n"
    "6: out %al, %dx\n"
    "  loop 6b\n"
    "  mov $0x3fd, %dx\n"
    "  in %dx, %al\n"
    "  out %al, $0xe1\n"
    "  xor %bx, %bx\n"
    "7: mov $0x3fd, %dx\n"
    "  in %dx, %al\n"
    "  test $1, %al\n"
    "  jz 8f\n"
    "  mov $0x3f8, %dx\n"
    "  in %dx, %al\n"
    "  inc %bx\n"
    "  jmp 7b\n"
    "8: mov %bl, %al\n"
    "  out %al, $0xe2\n"
    "  hlt\n"
    // al: the byte of edi.
    "pattern:\n"
    "  mov %edi, %eax\n"
    "  imul $167, %eax, %eax\n"
    "  mov %eax, %edx\n"
    "  shr $11, %edx\n"
    "  add %dl, %al\n"
    "  ret\n"
    "driver_end:\n"
    ".code64\n"
    ".popsection\n");
extern const unsigned char driver_begin[], driver_end[];

static const char kUuid[] = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1019";

static void put(const char* name, const char* text) {
  const int fd = open(name, O_WRONLY);
  check(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text), name);
  close(fd);
}

static int open_port(void) {
  char path[128], link[256];
  put("/sys/class/mdev_bus/serial/mdev_supported_types/serial-1/create", kUuid);
  snprintf(path, sizeof path, "/sys/bus/mdev/devices/%s/iommu_group", kUuid);
  const ssize_t size = readlink(path, link, sizeof link - 1);
  check(size > 0, "readlink of iommu_group");
  link[size] = '\0';
  snprintf(path, sizeof path, "/dev/vfio/%s", strrchr(link, '/') + 1);
  const int group = open(path, O_RDWR), container = open("/dev/vfio/vfio", O_RDWR);
  check(group >= 0 && container >= 0, "open of VFIO");
  check(ioctl(group, VFIO_GROUP_SET_CONTAINER, &container) == 0, "VFIO_GROUP_SET_CONTAINER");
  check(ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1_IOMMU) == 0, "VFIO_SET_IOMMU");
  const int device = ioctl(group, VFIO_GROUP_GET_DEVICE_FD, kUuid);
  check(device >= 0, "VFIO_GROUP_GET_DEVICE_FD");
  return device;
}

int main(int argc, char** argv) {
  const uint32_t bytes = argc > 1 ? (uint32_t)atoi(argv[1]) : 1 << 14;
  const int device = open_port();
  create(driver_begin, (size_t)(driver_end - driver_begin));
  struct kvm_regs regs = {.rip = kCode, .rflags = 2, .rsp = 0x8000, .rbx = (bytes + 13) / 14};
  check(ioctl(vcpu, KVM_SET_REGS, &regs) == 0, "KVM_SET_REGS");
  struct kvm_sregs sregs;
  check(ioctl(vcpu, KVM_GET_SREGS, &sregs) == 0, "KVM_GET_SREGS");
  sregs.ss.base = kWindow;
  sregs.ss.selector = kWindow >> 4;
  check(ioctl(vcpu, KVM_SET_SREGS, &sregs) == 0, "KVM_SET_SREGS");
  uint32_t told[3] = {~0u, ~0u, ~0u};
  for (;;) {
    check(ioctl(vcpu, KVM_RUN, 0) == 0, "KVM_RUN");
    if (run->exit_reason == KVM_EXIT_HLT) break;
    check(run->exit_reason == KVM_EXIT_IO, "an access to a port");
    uint8_t* const data = (uint8_t*)run + run->io.data_offset;
    const unsigned port = run->io.port;
    if (port >= 0xe0 && port < 0xe3) {
      told[port - 0xe0] = 0;
      memcpy(&told[port - 0xe0], data, run->io.size);
      continue;
    }
    check(port >= 0x3f8 && port < 0x400 && run->io.size == 1 && run->io.count == 1, "a register");
    const ssize_t done = run->io.direction == KVM_EXIT_IO_OUT
                             ? pwrite(device, data, 1, port - 0x3f8)
                             : pread(device, data, 1, port - 0x3f8);
    check(done == 1, "the device's register");
  }
  printf("%u of %u bytes lost or wrong; the 17th: overrun %u, %u to be read\n", told[0],
         (bytes + 13) / 14 * 14, told[1] >> 1 & 1, told[2]);
  return 0;
}

// SPDX-License-Identifier: Apache-2.0
#include "tests/support/twin/kvm_cpu.h"

#include <fcntl.h>
#include <linux/kvm.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <utility>
#include <vector>

namespace stagetwo::twin {
namespace {

long raw_ioctl(int fd, unsigned long request, const void* argument) {
  return syscall(SYS_ioctl, fd, request, argument);
}
long raw_ioctl(int fd, unsigned long request, long argument) {
  return syscall(SYS_ioctl, fd, request, argument);
}

kvm_segment segment_of(const vcpu::Segment& s) {
  kvm_segment k = {};
  k.base = s.base;
  k.limit = s.limit;
  k.selector = s.selector;
  k.type = s.type;
  k.present = s.present;
  k.dpl = s.dpl;
  k.db = s.db;
  k.s = s.s;
  k.l = s.l;
  k.g = s.g;
  k.unusable = s.unusable;
  return k;
}

// Written out: C++ gives structures that end in a flexible array another size than C.
constexpr unsigned long kGetSupportedCpuid = 0xc008ae05, kSetCpuid2 = 0x4008ae90,
                        kGetXsave = 0x9000aea4, kSetXsave = 0x5000aea5;
using XsaveArea = std::array<u8, 4096>;
constexpr u32 kMaxCpuid = 128;
constexpr std::size_t kFxMxcsr = 24, kFxXmm = 160, kXsaveComponents = 512;
constexpr u64 kStepLimit = 16384;
constexpr u64 kTssAddress = 0xfffbd000;

}  // namespace

KvmCpu::~KvmCpu() {
  if (run_ != nullptr) munmap(run_, run_bytes_);
  for (const int fd : {vcpu_, vm_, device_})
    if (fd >= 0) close(fd);
  if (memory_ != nullptr) munmap(memory_, kWorldBytes);
}

bool KvmCpu::open(std::string* reason) {
  device_ = static_cast<int>(syscall(SYS_openat, AT_FDCWD, "/dev/kvm", O_RDWR | O_CLOEXEC));
  if (device_ < 0) {
    *reason = std::string("/dev/kvm: ") + std::strerror(errno);
    return false;
  }
  if (raw_ioctl(device_, KVM_GET_API_VERSION, 0L) != KVM_API_VERSION) {
    *reason = "/dev/kvm speaks another version";
    return false;
  }
  vm_ = static_cast<int>(raw_ioctl(device_, KVM_CREATE_VM, 0L));
  if (vm_ < 0) {
    *reason = std::string("KVM_CREATE_VM: ") + std::strerror(errno);
    return false;
  }
  void* memory =
      mmap(nullptr, kWorldBytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return false;
  memory_ = static_cast<u8*>(memory);
  world_.emplace(memory_);
  (void)raw_ioctl(vm_, KVM_SET_TSS_ADDR, static_cast<long>(kTssAddress));
  kvm_userspace_memory_region region = {};
  region.memory_size = kWorldBytes;
  region.userspace_addr = reinterpret_cast<u64>(memory_);
  if (raw_ioctl(vm_, KVM_SET_USER_MEMORY_REGION, &region) != 0) {
    *reason = std::string("KVM_SET_USER_MEMORY_REGION: ") + std::strerror(errno);
    return false;
  }
  return set_up_vcpu(reason);
}

bool KvmCpu::set_up_vcpu(std::string* reason) {
  vcpu_ = static_cast<int>(raw_ioctl(vm_, KVM_CREATE_VCPU, 0L));
  const long size = raw_ioctl(device_, KVM_GET_VCPU_MMAP_SIZE, 0L);
  if (vcpu_ < 0 || size < 0) {
    *reason = std::string("KVM_CREATE_VCPU: ") + std::strerror(errno);
    return false;
  }
  run_bytes_ = static_cast<std::size_t>(size);
  void* run = mmap(nullptr, run_bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu_, 0);
  if (run == MAP_FAILED) return false;
  run_ = static_cast<kvm_run*>(run);
  // kvm_cpuid2: nent, padding, entries.
  std::vector<u8> cpuid(8 + kMaxCpuid * sizeof(kvm_cpuid_entry2));
  std::memcpy(cpuid.data(), &kMaxCpuid, sizeof kMaxCpuid);
  if (raw_ioctl(device_, kGetSupportedCpuid, cpuid.data()) != 0 ||
      raw_ioctl(vcpu_, kSetCpuid2, cpuid.data()) != 0) {
    *reason = std::string("CPUID: ") + std::strerror(errno);
    return false;
  }
  u32 count = 0;
  std::memcpy(&count, cpuid.data(), sizeof count);
  for (u32 i = 0; i < count; ++i) {
    kvm_cpuid_entry2 e = {};
    std::memcpy(&e, &cpuid[8 + i * sizeof e], sizeof e);
    cpuid_.push_back({e.function, e.index, e.flags, e.eax, e.ebx, e.ecx, e.edx});
  }
  if (!reset()) {
    *reason = std::string("KVM_SET_SREGS: ") + std::strerror(errno);
    return false;
  }
  if (touch_everything()) return true;
  *reason = "the guest does not run";
  return false;
}

// Of the first touch of a page a device (PVM) may make an emulation, by an emulator that does not
// know every instruction: no sequence has the first touch.
bool KvmCpu::touch_everything() {
  std::vector<u8> code;
  const auto put = [&](std::initializer_list<u8> bytes) { code.insert(code.end(), bytes); };
  const auto load_rax = [&](u64 value) {
    put({0x48, 0xb8});
    for (unsigned i = 0; i < 8; ++i) code.push_back(static_cast<u8>(value >> 8 * i));
  };
  constexpr std::pair<u64, u64> kAreas[] = {{kScratch, kScratchSize}, {kStack, kStackSize}};
  for (const auto& [start, size] : kAreas) {
    for (u64 at = 0; at < size; at += 0x1000) {
      load_rax(start + at);
      put({0x8a, 0x18, 0x88, 0x18});  // mov bl, [rax]; mov [rax], bl
    }
  }
  for (u64 at = 0; at < kCodeSize; at += 0x1000) {
    load_rax(kCode + at);
    put({0x8a, 0x18});
  }
  load_rax(kExit);
  put({0xff, 0xe0});  // jmp rax
  std::memcpy(world_->code().data(), code.data(), code.size());
  CpuImage start;
  start.rip = kCode;
  start.gpr[vcpu::kRsp] = kStack + kStackSize;
  CpuEnd end;
  std::string what;
  const bool ran = run(start, 3, &end, &what) && end.vector < 0;
  std::memset(world_->code().data(), 0, code.size());  // sequences read there, too
  return ran;
}

bool KvmCpu::reset() {
  const vcpu::SystemState s = guest_world_system(cpuid_);
  kvm_sregs k = {};
  if (raw_ioctl(vcpu_, KVM_GET_SREGS, &k) != 0) return false;
  kvm_segment* const segments[] = {&k.es, &k.cs, &k.ss, &k.ds, &k.fs, &k.gs};
  for (unsigned i = 0; i < 6; ++i) *segments[i] = segment_of(s.seg[i]);
  k.tr = segment_of(s.tr);
  k.ldt = segment_of(s.ldt);
  k.gdt.base = s.gdt.base;
  k.gdt.limit = s.gdt.limit;
  k.idt.base = s.idt.base;
  k.idt.limit = s.idt.limit;
  k.cr0 = s.cr0;
  k.cr3 = s.cr3;
  k.cr4 = s.cr4;
  k.efer = s.efer;
  kvm_vcpu_events events = {};
  (void)raw_ioctl(vcpu_, KVM_SET_VCPU_EVENTS, &events);
  return raw_ioctl(vcpu_, KVM_SET_SREGS, &k) == 0;
}

bool KvmCpu::enter(const CpuImage& start, unsigned cpl) {
  kvm_sregs system = {};
  if (raw_ioctl(vcpu_, KVM_GET_SREGS, &system) != 0) return false;
  system.fs.base = start.fs_base;
  system.gs.base = start.gs_base;
  if (raw_ioctl(vcpu_, KVM_SET_SREGS, &system) != 0) return false;
  kvm_regs regs = {};
  u64* const order[] = {reinterpret_cast<u64*>(&regs.rax), reinterpret_cast<u64*>(&regs.rcx),
                        reinterpret_cast<u64*>(&regs.rdx), reinterpret_cast<u64*>(&regs.rbx),
                        reinterpret_cast<u64*>(&regs.rsp), reinterpret_cast<u64*>(&regs.rbp),
                        reinterpret_cast<u64*>(&regs.rsi), reinterpret_cast<u64*>(&regs.rdi)};
  for (unsigned i = 0; i < 8; ++i) *order[i] = start.gpr[i];
  std::memcpy(&regs.r8, &start.gpr[8], 8 * sizeof(u64));
  regs.rsp = world_->prepare(start, cpl);
  regs.rip = GuestWorld::kIret;
  regs.rflags = 2;
  // KVM_SET_FPU leaves MXCSR alone; KVM_SET_XSAVE does not.
  XsaveArea bytes = {};
  std::memcpy(bytes.data() + kFxMxcsr, &start.mxcsr, sizeof start.mxcsr);
  std::memcpy(bytes.data() + kFxXmm, start.xmm, sizeof start.xmm);
  bytes[0] = 0x7f;  // FCW 037f
  bytes[1] = 3;
  bytes[kXsaveComponents] = 3;
  return raw_ioctl(vcpu_, KVM_SET_REGS, &regs) == 0 &&
         raw_ioctl(vcpu_, kSetXsave, bytes.data()) == 0;
}

bool KvmCpu::read(CpuImage* image) {
  kvm_regs regs = {};
  XsaveArea bytes = {};
  kvm_sregs system = {};
  if (raw_ioctl(vcpu_, KVM_GET_REGS, &regs) != 0 ||
      raw_ioctl(vcpu_, kGetXsave, bytes.data()) != 0 ||
      raw_ioctl(vcpu_, KVM_GET_SREGS, &system) != 0)
    return false;
  const u64 first[] = {regs.rax, regs.rcx, regs.rdx, regs.rbx,
                       regs.rsp, regs.rbp, regs.rsi, regs.rdi};
  std::memcpy(image->gpr, first, sizeof first);
  std::memcpy(&image->gpr[8], &regs.r8, 8 * sizeof(u64));
  image->rip = regs.rip;
  image->rflags = regs.rflags;
  image->fs_base = system.fs.base;
  image->gs_base = system.gs.base;
  std::memcpy(&image->mxcsr, bytes.data() + kFxMxcsr, sizeof image->mxcsr);
  std::memcpy(image->xmm, bytes.data() + kFxXmm, sizeof image->xmm);
  return true;
}

bool KvmCpu::finish(CpuEnd* end, std::string* what) {
  kvm_sregs system = {};
  if (!read(&end->image) || raw_ioctl(vcpu_, KVM_GET_SREGS, &system) != 0) return false;
  end->cr2 = system.cr2;
  if (run_->exit_reason == KVM_EXIT_HLT && world_->read_end(end->image.rip, end)) return true;
  char text[64];
  std::snprintf(text, sizeof text, "exit reason %u at rip %llx", run_->exit_reason,
                static_cast<unsigned long long>(end->image.rip));
  *what = text;
  if (run_->exit_reason == KVM_EXIT_INTERNAL_ERROR)
    *what += " suberror " + std::to_string(run_->internal.suberror);
  (void)reset();
  return false;
}

bool KvmCpu::run(const CpuImage& start, unsigned cpl, CpuEnd* end, std::string* what) {
  if (!enter(start, cpl)) return false;
  if (raw_ioctl(vcpu_, KVM_RUN, 0L) != 0) {
    *what = std::string("KVM_RUN: ") + std::strerror(errno);
    return false;
  }
  return finish(end, what);
}

bool KvmCpu::debug(bool single_step) {
  kvm_guest_debug control = {};
  if (single_step) control.control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP;
  return raw_ioctl(vcpu_, KVM_SET_GUEST_DEBUG, &control) == 0;
}

bool KvmCpu::step(const CpuImage& start, unsigned cpl, const Observer& after, CpuEnd* end,
                  std::string* what) {
  if (!debug(true) || !enter(start, cpl)) {
    *what = "KVM_SET_GUEST_DEBUG refused";
    return false;
  }
  for (u64 steps = 0; steps < kStepLimit; ++steps) {
    if (raw_ioctl(vcpu_, KVM_RUN, 0L) != 0 || run_->exit_reason != KVM_EXIT_DEBUG) break;
    CpuImage image;
    if (!read(&image)) break;
    // In a handler: its HLT is not stepped over (some devices would go on behind it).
    if (GuestWorld::in_handlers(image.rip)) {
      (void)debug(false);
      (void)raw_ioctl(vcpu_, KVM_RUN, 0L);
      break;
    }
    after(image);
  }
  return debug(false) && finish(end, what);
}

}  // namespace stagetwo::twin
